"""PEFT's LoKr: ΔW = α/r · kron(w1, w2); one number, decompose_factor, determines the shapes of w1 and w2 in all layers.

    PEFT                w1 (f(n_out), f(n_in)),   w2 (n_out/f(n_out), n_in/f(n_in)),   each possibly a product itself
    surm's kronecker    b  (n_out/r, r),          a  (r, n_in/r)

The shapes agree if f(n_in) = n_out/f(n_out) = r. On a square layer this means r = √n: r = 16 for 256, 32 for 1024, and
no value for 768. So only such updates are written. Every LoKr is read: if w1 is u·r wide and w2 is v·r high, the sum of
u·v kroneckers of rank r is the same matrix.

Source: peft.tuners.lokr; LoKr, arXiv 2309.14859.
"""

import math
from typing import Any

import numpy as np

from surm.errors import InputError
from surm.exchange.updates import Tensors, Update, number_for, refuse_magnitude, take, usual, whole

PREFIX = "lokr_"
FAMILIES = ("kronecker",)
READS = {"r": 8, "alpha": 8, "rank_pattern": {}, "alpha_pattern": {}}
TRAINING = (
    "init_weights", "rank_dropout", "module_dropout", "rank_dropout_scale",
    "use_effective_conv2d", "decompose_both", "decompose_factor",  # these give shapes, which are read from the tensors
)  # fmt: skip
ACCEPTS: dict[str, tuple] = {}


def write(updates: dict[str, Update]) -> tuple[dict[str, Any], Tensors]:
    """Writes updates of the family kronecker, with one term, as fields of the config and tensors.

    Args:
      updates: the updates by module.

    Returns:
      The fields, and the tensors by module.

    Raises:
      InputError: if an update has several terms or a magnitude, or no decompose_factor gives the shapes.
    """
    refuse_magnitude(updates, "LoKr")
    for module, update in updates.items():
        if len(update.params["a"]) != 1:
            raise InputError(f"{module}: kronecker with terms={len(update.params['a'])}; LoKr has one term")
    # If the rank is at least half of each side of w2, PEFT does not factorise w2.
    rank = max(max(update.params["a"].shape[1:]) for update in updates.values())
    alpha, alphas = usual({module: whole(update.scale * rank) for module, update in updates.items()})
    fields = {
        "r": rank, "alpha": alpha, "alpha_pattern": alphas, "decompose_factor": _decompose_factor(updates),
        "decompose_both": False, "init_weights": True,
    }  # fmt: skip
    named = {module: {"lokr_w1": update.params["b"][0], "lokr_w2": update.params["a"][0]}
             for module, update in updates.items()}  # fmt: skip
    return fields, named


def read(config: dict[str, Any], tensors: Tensors) -> dict[str, Update]:
    """Reads a config and its tensors as updates of the family kronecker.

    Args:
      config: PEFT's JSON, with its options already checked.
      tensors: the tensors by module.

    Returns:
      The updates by module.

    Raises:
      InputError: if a tensor does not belong to LoKr on a linear layer, or the family kronecker would have more
        parameters than the layer itself.
    """
    found = {module: _read(config, module, given) for module, given in tensors.items()}
    if all(update.options["terms"] == 1 for update in found.values()):
        return {module: update._replace(options={"rank": update.options["rank"]}) for module, update in found.items()}
    return found


def _read(config: dict[str, Any], module: str, given: dict[str, np.ndarray]) -> Update:
    w1, w2 = _factor_of(module, given, "lokr_w1"), _factor_of(module, given, "lokr_w2")
    alpha = number_for(config, "alpha", READS["alpha"], "alpha_pattern", module)
    rank = number_for(config, "r", READS["r"], "rank_pattern", module)
    if rank < 1:
        raise InputError(f"r={rank:g} in the adapter's config for {module}, expected at least 1")
    n_out, n_in = len(w1) * len(w2), w1.shape[1] * w2.shape[1]
    params = _terms(w1, w2)
    terms, common, _ = params["a"].shape
    if terms > 1 and terms * (n_out + n_in) > n_out * n_in:
        raise InputError(
            f"{module} has a LoKr of {_size(w1)} and {_size(w2)}, which is a sum of {terms} kroneckers here, larger "
            "than the layer; supported: sizes with a larger common divisor (peft.save_as_lora converts others to LoRA)"
        )
    return Update("kronecker", {"rank": common, "terms": terms}, params, n_out, n_in, alpha / rank)


def _terms(w1: np.ndarray, w2: np.ndarray) -> dict[str, np.ndarray]:
    """The parameters of the family kronecker for kron(w1, w2).

    Let w1 have r·v columns (j, j') and w2 have u·r rows (i, i'). Then kron(w1, w2) is the sum over s < u and t < v of
    kron(b_st, a_st), where b_st holds w1's columns (j, t) in the rows (·, s), and a_st w2's rows (s, i') in the columns
    (t, ·); both are 0 elsewhere.
    """
    rank = math.gcd(w1.shape[1], len(w2))
    u, v = len(w2) // rank, w1.shape[1] // rank
    a, b = np.zeros((u, v, rank, v, w2.shape[1]), np.float32), np.zeros((u, v, len(w1), u, rank), np.float32)
    for t in range(v):
        a[:, t, :, t] = w2.reshape(u, rank, -1)
    for s in range(u):
        b[s, :, :, s] = w1.reshape(len(w1), rank, v).transpose(2, 0, 1)
    return {"a": a.reshape(u * v, rank, -1), "b": b.reshape(u * v, -1, rank)}


def _factor_of(module: str, tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The factor w1 or w2, multiplied out if it is a product itself."""
    given = {key: array for key, array in tensors.items() if key == name or key.startswith(f"{name}_")}
    others = [key for key in tensors if not key.startswith(("lokr_w1", "lokr_w2"))]
    if others:
        raise InputError(f"{module} has the tensor {others[0]}; supported: lokr_w1 and lokr_w2, or their factors")
    if name in given:
        return take(module, given, name)[0]
    left, right = take(module, given, f"{name}_a", f"{name}_b")
    return left @ right


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}×{array.shape[1]}"


def factorization(size: int, factor: int) -> tuple[int, int]:
    """The two numbers into which PEFT splits a side of a layer, for the first and the second factor.

    Args:
      size: the size of the side.
      factor: `decompose_factor`: the first number if it divides the size, otherwise a limit to it; -1 means no limit.

    Returns:
      Two numbers whose product is the size.

    Examples:
      >>> factorization(768, -1), factorization(768, 8), factorization(768, 10)
      ((24, 32), (8, 96), (8, 96))
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    first = next(number for number in range(limit, 0, -1) if size % number == 0)
    return first, size // first


def _decompose_factor(updates: dict[str, Update]) -> int:
    """The decompose_factor that gives every layer its shapes."""
    wanted = {(update.n_out, update.n_in, update.params["a"].shape[1]) for update in updates.values()}
    largest = max(max(n_out, n_in) for n_out, n_in, _ in wanted)
    for factor in (-1, *range(1, largest + 1)):
        if all(factorization(n_out, factor)[1] == factorization(n_in, factor)[0] == r for n_out, n_in, r in wanted):
            return factor
    shapes = ", ".join(f"rank={r} of {n_out}×{n_in}" for n_out, n_in, r in sorted(wanted))
    raise InputError(
        f"kronecker with {shapes} is not a LoKr: PEFT splits the sides of all layers by one decompose_factor, which on "
        "square layers allows only the divisor nearest to √n as rank; surm.export_merged writes the whole model, "
        "surm.to_low_rank makes a LoRA"
    )
