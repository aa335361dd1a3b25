"""The ways to multiply by a trained matrix: the same result at different cost.

branch          the family's own product beside the layer: FFTs, or thin matmuls
branch_dft      the same with every convolution by small matmuls (the convolutional families)
branch_dense    the product with the dense matrix beside the layer
fused           the matrix is added to the layer's kernel; the gradient is that of the family's own product
fused_dense     likewise; the gradient goes through the dense matrix (see `surm.peft.fused`)
"""

import functools
import importlib.resources
import inspect
import json
import math

from surm import matrices

FUSED = ("fused", "fused_dense")
"""For updates alone; an adapter has a nonlinearity between the layer and itself."""


def available(method: str, family: str) -> tuple[str, ...]:
    """The paths that a family has in a position.

    Args:
      method: `update` or `adapter`.
      family: a key of `surm.matrices.FAMILIES`.

    Returns:
      Their names.

    Examples:
      >>> available("adapter", "low_rank")
      ('branch', 'branch_dense')
    """
    convolves = "transform" in inspect.signature(matrices.FAMILIES[family].matvec).parameters
    beside = ("branch", "branch_dft", "branch_dense") if convolves else ("branch", "branch_dense")
    return beside + FUSED if method == "update" else beside


def quickest(family: str, n: int, rows: int, dtype: str, platform: str, *, fusible: bool) -> str:
    """The path that `auto` takes: the one that was measured to be the quickest at the nearest point of the grid.

    Args:
      family: a key of `surm.matrices.FAMILIES`.
      n: the larger side of the matrix.
      rows: vectors in the batch.
      dtype: of the layer.
      platform: as `jax.default_backend` names it.
      fusible: whether the matrix may be added to the layer's kernel.

    Returns:
      A path that the family has; `branch` on a platform that nothing was measured on.
    """
    points = [point for point in _measured(platform) if (point["family"], point["dtype"]) == (family, dtype)]
    if not points:
        return "branch"
    nearest = min(points, key=lambda p: math.log(p["n"] / n) ** 2 + math.log(p["rows"] / rows) ** 2)
    seconds = {path: time for path, time in nearest["seconds"].items() if fusible or path not in FUSED}
    return min(seconds, key=seconds.get)


@functools.cache
def _measured(platform: str) -> list[dict]:
    """The grid of a platform, as experiments/paths/run.py wrote it."""
    file = importlib.resources.files("surm.peft") / "measured" / f"{platform}.json"
    return json.loads(file.read_text())["points"] if file.is_file() else []
