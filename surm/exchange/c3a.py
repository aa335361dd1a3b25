"""PEFT's C3A: a grid of p×p circulant blocks, stored by first rows and divided by n_in.

    PEFT                          ΔW_{Ip+k, Jp+l} = w[I, J, (l-k) mod p] / n_in
    surm's c3a                    the same, multiplied by scale
    surm's block_circulant        ΔW_{Ip+k, Jp+l} = scale · c[I, J, (k-l) mod p]: first columns, not divided,
                                  so w[j] = n_in · scale · c[-j mod p]
    surm's circulant (n×n)        the same with one block

Source: peft.tuners.c3a; C3A, arXiv 2407.19342.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from surm.errors import InputError
from surm.exchange.updates import Tensors, Update, refuse_magnitude, take, usual

PREFIX = "c3a_"
FAMILIES = ("c3a", "block_circulant", "circulant")
READS = {"block_size": 256, "block_size_pattern": {}}
TRAINING = ("init_weights",)
ACCEPTS = {"bias": ("none", "all", "c3a_only")}


def write(updates: dict[str, Update]) -> tuple[dict[str, Any], Tensors]:
    """Writes updates as fields of the config and tensors; C3A has no scale, so it is multiplied into the tensors.

    Args:
      updates: the updates by module, each of one of `FAMILIES`.

    Returns:
      The fields, and the tensors by module.

    Raises:
      InputError: if a circulant's layer is not square, or an update has a magnitude.
    """
    refuse_magnitude(updates, "C3A")
    kernels = {module: kernel(module, update) for module, update in updates.items()}
    size, sizes = usual({module: kernel.shape[2] for module, kernel in kernels.items()})
    fields = {"block_size": size, "block_size_pattern": sizes, "bias": "none", "init_weights": True}
    return fields, {module: {"c3a_kernel": kernel} for module, kernel in kernels.items()}


def kernel(module: str, update: Update) -> Float[np.ndarray, "rows columns block"]:
    """PEFT's tensor of an update of one of `FAMILIES`, its scale included; InputError for a circulant of no square."""
    if update.family == "c3a":
        return np.float32(update.scale) * update.params["c"]
    if update.family == "block_circulant":
        columns = update.params["c"]
    elif update.n_out == update.n_in:
        columns = math.prod(update.params.values()).reshape(1, 1, -1)
    else:
        size = f"{update.n_out}×{update.n_in}"
        raise InputError(
            f"{module}: a circulant matrix of {size} is not block circulant, as C3A requires; expected a square "
            "one. surm.to_low_rank makes a LoRA close to it"
        )
    return np.float32(update.n_in * update.scale) * np.roll(columns[:, :, ::-1], 1, axis=2)


def read(config: dict[str, Any], tensors: Tensors) -> dict[str, Update]:
    """Reads a config and its tensors as updates of the family c3a.

    Args:
      config: PEFT's JSON, with its options already checked; the tensors give the sizes of the blocks.
      tensors: the tensors by module.

    Returns:
      The updates by module.

    Raises:
      InputError: if a tensor does not belong to C3A.
    """
    updates = {}
    for module, given in tensors.items():
        (kernel,) = take(module, given, "c3a_kernel", axes=3)
        rows, columns, size = kernel.shape
        updates[module] = Update("c3a", {"block_size": size}, {"c": kernel}, rows * size, columns * size)
    return updates
