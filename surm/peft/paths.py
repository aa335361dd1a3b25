"""The ways to multiply by a trained matrix: the same result, up to rounding, at different cost.

branch          the family's own product beside the layer: FFTs, or thin matmuls
branch_dft      the same with every convolution by small matmuls, in the type of the layer (the convolutional families)
branch_dense    the product with the dense matrix beside the layer
fused           the matrix is added to the layer's kernel; the gradient is that of the family's own product
fused_dense     likewise; the gradient goes through the dense matrix (see `surm.peft.fused`)

Layers that share an input, as query, key and value do, share its transform: XLA computes equal things once.

What was measured is one matrix for the whole batch. Where a `vmap` gives every example a matrix of its own, force
`branch`: all others may form a dense matrix for each.
"""

import functools
import importlib.resources
import json
import math

CONVOLUTIONAL = ("circulant", "skew_circulant", "toeplitz", "low_displacement_rank")
"""Families whose `matvec` takes `convolve`."""

FUSED = ("fused", "fused_dense")
"""For updates alone; an adapter has a nonlinearity between the layer and itself."""


def available(method: str, family: str) -> tuple[str, ...]:
    """The paths that a family has in a position.

    Args:
      method: `update` or `adapter`; others have no path.
      family: a key of `surm.matrices.FAMILIES`.

    Returns:
      Their names.

    Examples:
      >>> available("adapter", "low_rank")
      ('branch', 'branch_dense')
    """
    if method not in ("update", "adapter"):
        return ()
    beside = ("branch", "branch_dft", "branch_dense") if family in CONVOLUTIONAL else ("branch", "branch_dense")
    return beside + FUSED if method == "update" else beside


def quickest(
    family: str, n_out: int, n_in: int, rows: int, trained: int, dtype: str, platform: str, *, fusible: bool
) -> str:
    """The path that `auto` takes: the one that was measured to be the quickest at the nearest point of the grid.

    Nearest is first by the shape of the matrix, then by the vectors in the batch, then by the trained values, of which
    a rank or a block size decides; each by its logarithm.

    Args:
      family: a key of `surm.matrices.FAMILIES`.
      n_out: rows of the matrix.
      n_in: columns of the matrix.
      rows: vectors in the batch.
      trained: values that the matrix stores.
      dtype: of the layer; float64 goes by what was measured in float32.
      platform: as `jax.default_backend` names it.
      fusible: whether the matrix may be added to the layer's kernel.

    Returns:
      A path that the family has; `branch` on a platform or for a dtype that nothing was measured on.
    """
    dtype = "float32" if dtype == "float64" else dtype
    points = [point for point in _measured(platform) if (point["family"], point["dtype"]) == (family, dtype)]
    if not points:
        return "branch"

    def distance(point: dict) -> tuple[float, float, float]:
        shape = math.log(point["n_out"] / n_out) ** 2 + math.log(point["n_in"] / n_in) ** 2
        return shape, abs(math.log(point["rows"] / rows)), abs(math.log(point["trained"] / trained))

    nearest = min(points, key=distance)
    seconds = {path: time for path, time in nearest["seconds"].items() if fusible or path not in FUSED}
    return min(seconds, key=seconds.get)


@functools.cache
def _measured(platform: str) -> list[dict]:
    """The grid of a platform, as experiments/paths/run.py wrote it."""
    file = importlib.resources.files("surm.peft") / "measured" / f"{platform}.json"
    return json.loads(file.read_text())["points"] if file.is_file() else []
