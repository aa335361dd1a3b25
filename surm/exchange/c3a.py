"""PEFT's C3A: a grid of p×p blocks, each circulant by its first row and divided by n_in.

    theirs        ΔW_{Ip+k, Jp+l} = w[I, J, (l-k) mod p] / n_in
    our c3a       the same, times scale
    our block_circulant, and circulant on a square layer (one block): by the first column, not divided
                  ΔW_{Ip+k, Jp+l} = scale · c[I, J, (k-l) mod p],   so  w[j] = n_in · scale · c[-j mod p]

Source: peft.tuners.c3a; C3A, arXiv 2407.19342.
"""

import math
from typing import Any

import numpy as np

from surm.errors import InputError
from surm.exchange.updates import Tensors, Update, refuse_magnitude, take, usual

PREFIX = "c3a_"
FAMILIES = ("c3a", "block_circulant", "circulant")
READS = {"block_size": 256, "block_size_pattern": {}}
TRAINING = ("init_weights",)
ACCEPTS = {"bias": ("none", "all", "c3a_only")}


def write(updates: dict[str, Update]) -> tuple[dict[str, Any], Tensors]:
    """The config's fields and the tensors of updates; there is no scale in C3A, so it is folded in.

    Args:
      updates: by module, each of one of `FAMILIES`.

    Returns:
      Fields, and tensors by module.

    Raises:
      InputError: if a circulant's layer is not square, or an update has a magnitude.
    """
    refuse_magnitude(updates, "C3A")
    kernels = {module: _kernel(module, update) for module, update in updates.items()}
    size, sizes = usual({module: kernel.shape[2] for module, kernel in kernels.items()})
    fields = {"block_size": size, "block_size_pattern": sizes, "bias": "none", "init_weights": True}
    return fields, {module: {"c3a_kernel": kernel} for module, kernel in kernels.items()}


def _kernel(module: str, update: Update) -> np.ndarray:
    if update.family == "c3a":
        return np.float32(update.scale) * update.params["c"]
    if update.family == "block_circulant":
        columns = update.params["c"]
    elif update.n_out == update.n_in:
        columns = math.prod(update.params.values()).reshape(1, 1, -1)
    else:
        size = f"{update.n_out}×{update.n_in}"
        raise InputError(
            f"{module}: a circulant of {size} is not block circulant, as C3A's are; expected a square "
            "one. surm.to_low_rank makes a LoRA near it"
        )
    return np.float32(update.n_in * update.scale) * np.roll(columns[:, :, ::-1], 1, axis=2)


def read(config: dict[str, Any], tensors: Tensors) -> dict[str, Update]:
    """The updates of a config and its tensors, of the family c3a.

    Args:
      config: the JSON of PEFT, its options checked; the sizes of the blocks are the tensors' own.
      tensors: by module.

    Returns:
      The updates by module.

    Raises:
      InputError: if a tensor is none of C3A's.
    """
    updates = {}
    for module, given in tensors.items():
        (kernel,) = take(module, given, "c3a_kernel", axes=3)
        rows, columns, size = kernel.shape
        updates[module] = Update("c3a", {"block_size": size}, {"c": kernel}, rows * size, columns * size)
    return updates
