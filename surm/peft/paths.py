"""The ways to multiply by a trained matrix: the same result, up to rounding, at different cost.

branch          the family's own product beside the layer: FFTs, or thin matmuls
branch_dft      the same with every convolution by small matmuls, in the layer's type (the convolutional families)
branch_dense    the product with the dense matrix beside the layer
fused           the matrix is added to the layer's kernel; the gradient is that of the family's own product
fused_dense     likewise; the gradient goes through the dense matrix (see `surm.peft.fused`)

Layers that share an input, as query, key and value do, share its transform in the forward pass: XLA computes equal
things once.

What was measured is one matrix for the whole batch. Where a `vmap` gives every example a matrix of its own, take
`surm.with_path(model, "branch")`: all others may form a dense matrix for each.
"""

import functools
import importlib.resources
import inspect
import json
import math
from collections.abc import Mapping, Sequence

from absl import logging

from surm.matrices import FAMILIES

CONVOLUTIONAL = tuple(
    name for name, family in FAMILIES.items() if "convolve" in inspect.signature(family.matvec).parameters
)
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
    family: str,
    n_out: int,
    n_in: int,
    rows: int,
    parameters: Mapping[str, Sequence[int]],
    dtype: str,
    platform: str,
    *,
    fusible: bool,
) -> str:
    """The path that `auto` takes: the quickest by what was measured with the nearest matrix.

    Nearest is a matrix first by the form of its parameters (their names), then by its shape, then by theirs, which tell
    a rank or a block size; sizes by their logarithms. Between the measured numbers of vectors, and beyond the largest,
    times are taken to be linear.

    Args:
      family: a key of `surm.matrices.FAMILIES`.
      n_out: rows of the matrix.
      n_in: columns of the matrix.
      rows: vectors in the batch, of one device.
      parameters: their shapes.
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

    def distance(point: dict) -> tuple[bool, float, float]:
        others = point["parameters"]
        sizes = zip(_sizes(parameters), _sizes(others), strict=False)
        shape = math.log(point["n_out"] / n_out) ** 2 + math.log(point["n_in"] / n_in) ** 2
        return {*others} != {*parameters}, shape, sum(abs(math.log(size / other)) for size, other in sizes)

    distances = [distance(point) for point in points]
    least = min(distances)
    nearest = [point for point, far in zip(points, distances, strict=True) if far == least]
    nearest.sort(key=lambda point: point["rows"])
    seconds = {path: _at(rows, nearest, path) for path in nearest[0]["seconds"] if fusible or path not in FUSED}
    return min(seconds, key=seconds.get)


def _sizes(parameters: Mapping[str, Sequence[int]]) -> list[int]:
    """The lengths of all axes, by the parameters' names."""
    return [size for name in sorted(parameters) for size in parameters[name]]


def _at(rows: int, points: list[dict], path: str) -> float:
    """Seconds for a number of vectors, from points with ascending ones; for fewer than the fewest, theirs."""
    if len(points) == 1 or rows <= points[0]["rows"]:
        return points[0]["seconds"][path]
    index = next((index for index, point in enumerate(points) if point["rows"] >= rows), len(points) - 1)
    before, after = points[index - 1], points[index]
    slope = (after["seconds"][path] - before["seconds"][path]) / (after["rows"] - before["rows"])
    return before["seconds"][path] + slope * (rows - before["rows"])


@functools.cache
def _measured(platform: str) -> list[dict]:
    """The grid of a platform, as experiments/paths/run.py wrote it."""
    file = importlib.resources.files("surm.peft") / "measured" / f"{platform}.json"
    if not file.is_file():
        logging.warning("path='auto' is 'branch': nothing was measured on a %s yet (experiments/paths)", platform)
        return []
    return json.loads(file.read_text())["points"]
