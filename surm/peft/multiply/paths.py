"""The ways to multiply by a trained matrix, which have the same result up to rounding but different costs.

branch          the family's own product beside the layer: FFTs, or thin matmuls
branch_dft      the same, with every convolution by small matmuls in the layer's dtype (convolutional families only)
branch_dense    the product with the dense matrix beside the layer
fused           the matrix is added to the layer's kernel; the gradient goes through the family's own product
fused_dense     the same, but the gradient goes through the dense matrix (see `surm.peft.multiply.fused`)

Layers that share an input, as query, key and value do, share its transform in the forward pass, because XLA computes
equal expressions once.

The measurements are for one matrix and a whole batch. If a `vmap` gives every example a matrix of its own, use
`surm.with_path(model, "branch")`, as `surm.serve_batch` does, because the other paths may form a dense matrix for each
example. (For platforms other than a CPU see `beside_each`.) Every member of a population has a batch of its own, so
`auto` is right for populations: the cost of a dense matrix is spread over that batch, as in a single run.
"""

import functools
import importlib.resources
import json
import logging
import math
from collections.abc import Mapping, Sequence

from surm.matrices import FAMILIES

_MANY, _MANY_ELSEWHERE = {"tpu": 2048}, 512
"""Vectors are many from here on, because another product with all of them takes longer than making the matrix again.
(From 768² to 14336×4096 the TPU compiler's answer changes between 1024 and 4096 vectors. The compiler for GPUs gives no
times; by the data sheets of an H100 and an H200 it is some 300 vectors.)"""
_LARGE = 2**22
"""The number of entries from which a matrix is large. (The TPU compiler's answer changes between 768×3072 and 4096² for
Kronecker, and at 2048² for few vectors and a circulant.)"""

FUSED = ("fused", "fused_dense")
"""Paths for updates only; an adapter has a nonlinearity between the layer and itself."""


def available(position: str, family: str) -> tuple[str, ...]:
    """The paths that a family has in a position.

    Args:
      position: `update` or `adapter`; other positions have no path.
      family: a key of `surm.matrices.FAMILIES`.

    Returns:
      Their names.

    Examples:
      >>> available("adapter", "low_rank")
      ('branch', 'branch_dense')
    """
    if position not in ("update", "adapter"):
        return ()
    beside = ("branch", "branch_dft", "branch_dense") if FAMILIES[family].convolutional else ("branch", "branch_dense")
    return beside + FUSED if position == "update" else beside


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
    """The path that `auto` takes: the fastest one in the measurements of the nearest matrix.

    The nearest matrix is found first by the names of its parameters, then by its shape, then by the parameters' shapes,
    which tell a rank or a block size. Sizes are compared by their logarithms; of two equally near matrices the first
    counts. Times are interpolated linearly between the measured numbers of vectors, and beyond the largest.

    Args:
      family: a key of `surm.matrices.FAMILIES`.
      n_out: rows of the matrix.
      n_in: columns of the matrix.
      rows: the number of vectors in the batch of one device.
      parameters: the shapes of the parameters.
      dtype: the dtype of the layer; float64 uses the measurements in float32.
      platform: the name of the platform, as `jax.default_backend` gives it.
      fusible: whether the matrix may be added to the layer's kernel.

    Returns:
      A path that the family has; that of `unmeasured` if there are no measurements for the platform or dtype.
    """
    dtype = "float32" if dtype == "float64" else dtype
    like, parameters = _as_measured(family, n_out, n_in, parameters)
    points = [point for point in _measured(platform) if (point["family"], point["dtype"]) == (like, dtype)]
    if not points:
        taken = unmeasured(family, n_out, n_in, rows, platform, fusible=fusible)
        _say_unmeasured(taken, family, dtype, platform)
        return taken

    nearest = _matrix(min(points, key=lambda point: _distance(point, n_out, n_in, parameters)))
    of_nearest = {point["rows"]: point["seconds"] for point in points if _matrix(point) == nearest}
    measured = [(rows, of_nearest[rows]) for rows in sorted(of_nearest)]
    allowed = [path for path in measured[0][1] if fusible or path not in FUSED]
    return min(allowed, key=lambda path: _at(rows, measured, path))


def _distance(point: dict, n_out: int, n_in: int, parameters: Mapping[str, Sequence[int]]) -> tuple[bool, float, float]:
    """How far a measured matrix is from another: by names of parameters, then by shape, then by sizes of parameters."""
    others = point["parameters"]
    sizes = zip(_sizes(parameters), _sizes(others), strict=False)
    shape = math.log(point["n_out"] / n_out) ** 2 + math.log(point["n_in"] / n_in) ** 2
    return {*others} != {*parameters}, shape, sum(abs(math.log(size / other)) for size, other in sizes)


def unmeasured(family: str, n_out: int, n_in: int, rows: int, platform: str, *, fusible: bool) -> str:
    """The path for a platform without measurements: on a CPU the branch, elsewhere a path without FFTs.

    Programs were compiled, not run, for devices that were not available (experiments/compiled). According to XLA, FFTs
    on a TPU take minutes to compile and move many times the bytes of a layer, and on a GPU they need several times its
    memory. A dense matrix beside the layer costs three more products, with nothing but matmuls; added to the layer's
    kernel it costs one, but is made twice. Thin products cost even less, unless they are not thin or the matrix is
    small: then their intermediate results cost more than the dense matrix. A dense matrix takes its time for any number
    of vectors. For few of them, thin products cost less in any case; a convolution by small matmuls does if the matrix
    is large; and a small matrix is best made once, beside the layer.

    Args:
      family: a key of `surm.matrices.FAMILIES`.
      n_out: rows of the matrix.
      n_in: columns of the matrix.
      rows: the number of vectors in the batch of one device.
      platform: the name of the platform, as `jax.default_backend` gives it.
      fusible: whether the matrix may be added to the layer's kernel.

    Returns:
      A path that the family has.

    Examples:
      >>> [unmeasured("circulant", 768, 768, rows, "tpu", fusible=True) for rows in (8, 8192)]
      ['branch_dense', 'fused_dense']
      >>> unmeasured("circulant", 4096, 4096, 8, "tpu", fusible=True)
      'branch_dft'
    """
    product, few = FAMILIES[family].product, rows < _MANY.get(platform, _MANY_ELSEWHERE)
    large = n_out * n_in >= _LARGE
    if platform == "cpu" or product == "thin" or (product == "thin_in_large" and (few or large)):
        return "branch"
    if few and large and FAMILIES[family].convolutional:
        return "branch_dft"
    return "fused_dense" if fusible and not few else "branch_dense"


def beside_each(family: str, platform: str) -> str:
    """The path if every example has a matrix of its own, whose dense form would cost more than the product.

    Args:
      family: a key of `surm.matrices.FAMILIES`.
      platform: the name of the platform, as `jax.default_backend` gives it.

    Returns:
      `branch` on a CPU. On other platforms a path without FFTs, which is the dense path if there is no other.

    Examples:
      >>> beside_each("circulant", "cpu"), beside_each("circulant", "gpu"), beside_each("low_rank", "gpu")
      ('branch', 'branch_dft', 'branch')
    """
    if platform == "cpu" or FAMILIES[family].product != "transforms":
        return "branch"
    return "branch_dft" if FAMILIES[family].convolutional else "branch_dense"


def _as_measured(
    family: str, n_out: int, n_in: int, parameters: Mapping[str, Sequence[int]]
) -> tuple[str, Mapping[str, Sequence[int]]]:
    """The family whose measurements are used for a family, and the shapes of parameters to look up there."""
    like = FAMILIES[family].measured_as
    if like == family or like != "low_rank":
        return like, parameters
    thin = parameters.get("a", ())
    rank = thin[-2] if len(thin) > 1 else min(_sizes(parameters))  # the thin products decide, not what is between them
    return like, {"a": (rank, n_in), "b": (n_out, rank)}


def _matrix(point: dict) -> tuple[int, int, Mapping[str, Sequence[int]]]:
    """The key of a measured matrix."""
    return point["n_out"], point["n_in"], point["parameters"]


def _sizes(parameters: Mapping[str, Sequence[int]]) -> list[int]:
    """The lengths of all axes, by the parameters' names."""
    return [size for name in sorted(parameters) for size in parameters[name]]


def _at(rows: int, measured: list[tuple[int, Mapping[str, float]]], path: str) -> float:
    """Interpolates the seconds for a number of vectors; below the smallest measured number its time counts."""
    if len(measured) == 1 or rows <= measured[0][0]:
        return measured[0][1][path]
    index = next((index for index, (other, _) in enumerate(measured) if other >= rows), len(measured) - 1)
    (fewer, before), (more, after) = measured[index - 1 : index + 1]
    return before[path] + (after[path] - before[path]) / (more - fewer) * (rows - fewer)


@functools.cache
def _measured(platform: str) -> list[dict]:
    """The measurements on a platform, as written by experiments/paths/run.py."""
    file = importlib.resources.files("surm.peft.multiply") / "measured" / f"{platform}.json"
    return json.loads(file.read_text())["points"] if file.is_file() else []


@functools.cache
def _say_unmeasured(taken: str, family: str, dtype: str, platform: str) -> None:
    """Logs once for each combination that it was not measured."""
    by = "" if platform == "cpu" else " according to XLA's compilers (experiments/compiled)"
    what = f"{family} in {dtype} on a {platform} has not been measured (experiments/paths)"
    logging.getLogger(__name__).info("path='auto' is '%s'%s: %s", taken, by, what)
