"""The ways to multiply by a trained matrix, which have the same result up to rounding but different costs.

branch          the family's own product beside the layer: FFTs, or thin matmuls
branch_dft      the same, with every convolution by small matmuls in the layer's dtype (convolutional families only)
branch_dense    the product with the dense matrix beside the layer
fused           the matrix is added to the layer's kernel; the gradient goes through the family's own product
fused_dft       the same, but the gradient goes through small matmuls (convolutional families only)
fused_dense     the same, but the gradient goes through the dense matrix (see `surm.peft.multiply.fused`)

Layers that share an input, as query, key and value do, share its transform in the forward pass, because XLA computes
equal expressions once.

All measurements are for one matrix and a whole batch. If a `vmap` gives every example a matrix of its own, use
`surm.with_path(model, "branch")`, as `surm.serve_batch` does, because the other paths may form a dense matrix for each
example. (For platforms other than a CPU see `beside_each`.) Every member of a population has a batch of its own, so
`auto` is right for populations: the cost of a dense matrix is spread over that batch, as in a single run.
"""

import functools
import importlib.resources
import json
import logging
from collections.abc import Mapping, Sequence

from surm.matrices import FAMILIES
from surm.matrices.algebra import dft, fourier
from surm.peft.multiply import calibrated, predicted
from surm.peft.multiply.calibrated import Matrix

_MANY, _MANY_ELSEWHERE = {"tpu": 2048}, 512
"""Vectors are many from here on, because another product with all of them takes longer than making the matrix again.
(From 768² to 14336×4096 the TPU compiler's answer changes between 1024 and 4096 vectors; see experiments/compiled. The
compiler for GPUs gives no times. By the data sheet of an H200, two more products with 300 vectors take as long as to
write and to read the matrix once more.)"""
_LARGE = 2**22
"""The number of entries from which a matrix is large. (The TPU compiler's answer changes between 768×3072 and 4096² for
Kronecker, and between 768² and 2048² for few vectors and a circulant; experiments/compiled.)"""
_HUGE = 2**24
_IN_HUGE: dict[str, tuple[int, str]] = {"convolution": (6144, "fused_dft"), "two_convolutions": (4096, "fused_dense")}
"""The number of entries from which convolutions by small products cost a TPU less than a product with the matrix, the
number of vectors from which the matrix is added to the kernel all the same, and the path that is taken then. (The TPU
compiler's answers for a circulant and for W(G,H) of rank one, both of 4096² and of 14336×4096; experiments/compiled.)
"""

BESIDE = ("branch", "branch_dft", "branch_dense")
"""Paths that multiply beside the layer."""
FUSED = {"fused": "branch", "fused_dft": "branch_dft", "fused_dense": "branch_dense"}
"""Paths for updates only, since an adapter has a nonlinearity between the layer and itself; each with the path that its
gradient takes."""
_WITHOUT_FFTS = ("fused_dense", "fused_dft", "branch_dense", "branch_dft", "fused", "branch")
"""All paths; those that may transform come last."""


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
    beside = [path for path in BESIDE if path != "branch_dft" or FAMILIES[family].convolutional]
    return tuple(beside if position == "adapter" else beside + [path for path, by in FUSED.items() if by in beside])


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
    device: str = "",
) -> str:
    """The path that `auto` takes: the fastest one that was measured.

    First count the measurements of the same matrix on the same device, if `surm calibrate` has made some and at least
    two of the paths that are allowed are among them (`surm.peft.multiply.calibrated`); then those of `ranked`.

    Args:
      family: a key of `surm.matrices.FAMILIES`.
      n_out: rows of the matrix.
      n_in: columns of the matrix.
      rows: the number of vectors in the batch of one device.
      parameters: the shapes of the parameters.
      dtype: the dtype of the layer.
      platform: the name of the platform, as `jax.default_backend` gives it.
      fusible: whether the matrix may be added to the layer's kernel.
      device: the kind of device, from `surm.matrices.algebra.platforms.kind_of`; empty if it is not known, so that
        no calibration counts.

    Returns:
      A path that the family has.

    Raises:
      InputError: if the file of the device's calibration is damaged.
    """
    shapes = tuple((name, tuple(parameters[name])) for name in sorted(parameters))
    return of_matrix(Matrix(family, n_out, n_in, rows, shapes, dtype, fusible), platform, device)


def of_matrix(matrix: Matrix, platform: str, device: str = "") -> str:
    """`quickest` for a matrix that is named as in calibrations."""
    path = _of_matrix(matrix, platform, device)
    calibrated.note(matrix, path)
    return path


def _of_matrix(matrix: Matrix, platform: str, device: str) -> str:
    own = calibrated.times(matrix, platform, device) if device else {}
    measured = [path for path in allowed(matrix.family, fusible=matrix.fusible) if path in own]
    if len(measured) > 1:
        return min(measured, key=own.__getitem__)
    return ranked(matrix, platform)[0]


def by_path(chosen: Mapping[Matrix, str]) -> dict[str, list[str]]:
    """Which matrices each path is taken for.

    Args:
      chosen: the path of each matrix, as `calibrated.asked` lists them.

    Returns:
      The matrices in words, by path.

    Examples:
      >>> by_path({Matrix("circulant", 768, 768, 8192, (), "bfloat16", True): "fused_dense"})
      {'fused_dense': ['circulant 768×768 with 8,192 vectors in bfloat16']}
    """
    found: dict[str, dict[str, None]] = {}
    for matrix, path in chosen.items():
        size = f"{matrix.family} {matrix.n_out}×{matrix.n_in} with {matrix.rows:,} vectors in {matrix.dtype}"
        found.setdefault(path, {})[size] = None
    return {path: [*sizes] for path, sizes in found.items()}


def told(taken: Mapping[str, Sequence[str]]) -> str:
    """The result of `by_path` as one line."""
    return "; ".join(f"{path} for {', '.join(sizes)}" for path, sizes in taken.items())


def allowed(family: str, *, fusible: bool) -> list[str]:
    """The paths of a family, without the fused ones unless the matrix may be added to the layer's kernel."""
    return [path for path in available("update", family) if fusible or path not in FUSED]


def ranked(matrix: Matrix, platform: str) -> list[str]:
    """The paths by the measurements that surm brings along, the fastest first; see `surm.peft.multiply.predicted`.

    Args:
      matrix: the matrix; in float64 it goes by the measurements in float32.
      platform: the name of the platform, as `jax.default_backend` gives it.

    Returns:
      The paths. If there are no measurements for the platform or dtype, that of `unmeasured` is the first, and those
      with FFTs are the last.
    """
    family, n_out, n_in, rows, parameters, dtype, fusible = matrix
    dtype = "float32" if dtype == "float64" else dtype
    like, shapes = _as_measured(family, n_out, n_in, dict(parameters))
    points = [point for point in _measured(platform) if (point["family"], point["dtype"]) == (like, dtype)]
    if not points:
        terms = dict(parameters).get("g", (1, 0))[-2]  # of W(G,H)
        taken = unmeasured(family, n_out, n_in, rows, platform, fusible=fusible, terms=terms)
        if not calibrated.quiet():
            _say_unmeasured(taken, family, dtype, platform)
        return sorted(allowed(family, fusible=fusible), key=lambda path: (path != taken, _WITHOUT_FFTS.index(path)))
    times = predicted.seconds(points, n_out, n_in, rows, shapes)
    return sorted((path for path in times if fusible or path not in FUSED), key=times.__getitem__)


def unmeasured(family: str, n_out: int, n_in: int, rows: int, platform: str, *, fusible: bool, terms: int = 1) -> str:
    """The path for a platform without measurements: on a CPU the branch, elsewhere a path without FFTs.

    Programs were compiled, not run, for devices that were not available (experiments/compiled). According to XLA, FFTs
    on a TPU take minutes to compile and move many times the bytes of a layer, and on a GPU they need several times its
    memory. A dense matrix beside the layer costs three more products, with nothing but matmuls; added to the layer's
    kernel it costs one, but is made twice. Thin products cost even less, unless they are not thin or the matrix is
    small: then their intermediate results cost more than the dense matrix. A dense matrix takes its time for any number
    of vectors. For few of them, thin products cost less in any case; a convolution by small matmuls does if the matrix
    is large; and a small matrix is best made once, beside the layer. On a TPU, if a huge matrix is one or two
    convolutions, small matmuls cost less for many vectors, too. For very many of them a circulant is added to the
    kernel, and only its gradient goes through small matmuls. All this holds for sizes with divisors near their roots.

    Args:
      family: a key of `surm.matrices.FAMILIES`.
      n_out: rows of the matrix.
      n_in: columns of the matrix.
      rows: the number of vectors in the batch of one device.
      platform: the name of the platform, as `jax.default_backend` gives it.
      fusible: whether the matrix may be added to the layer's kernel.
      terms: the number of products of which the matrix is the sum.

    Returns:
      A path that the family has.

    Examples:
      >>> [unmeasured("circulant", 768, 768, rows, "tpu", fusible=True) for rows in (8, 8192)]
      ['branch_dense', 'fused_dense']
      >>> [unmeasured("circulant", 4096, 4096, rows, "tpu", fusible=True) for rows in (2048, 8192)]
      ['branch_dft', 'fused_dft']
    """
    product, few = FAMILIES[family].product, rows < _MANY.get(platform, _MANY_ELSEWHERE)
    large = n_out * n_in >= _LARGE
    if platform == "cpu" or product == "thin" or (product == "thin_in_large" and (few or large)):
        return "branch"
    if large and _small_products_are_small(family, n_out, n_in, terms):
        if product in _IN_HUGE and terms == 1 and platform == "tpu" and n_out * n_in >= _HUGE:
            from_here, then = _IN_HUGE[product]
            return then if fusible and rows >= from_here else "branch_dft"
        if few:
            return "branch_dft"
    return "fused_dense" if fusible and not few else "branch_dense"


def _small_products_are_small(family: str, n_out: int, n_in: int, terms: int = 1) -> bool:
    """Whether the matrices by which `branch_dft` multiplies have at most half as many entries as the dense one."""
    longest = max(n_out, n_in)
    length = longest if FAMILIES[family].product in _IN_HUGE else fourier.smooth_length(2 * longest - 1)
    return FAMILIES[family].convolutional and 2 * terms * dft.entries(length) <= n_out * n_in


def beside_each(family: str, n_out: int, n_in: int, platform: str) -> str:
    """The path if every example has a matrix of its own, whose dense form would cost more than the product.

    Args:
      family: a key of `surm.matrices.FAMILIES`.
      n_out: rows of the matrix.
      n_in: columns of the matrix.
      platform: the name of the platform, as `jax.default_backend` gives it.

    Returns:
      `branch` on a CPU. On other platforms a path without FFTs, which is the dense path if no other costs less.

    Examples:
      >>> [beside_each(family, 768, 768, platform) for family, platform in (("circulant", "cpu"), ("low_rank", "gpu"))]
      ['branch', 'branch']
      >>> [beside_each("circulant", n, 768, "gpu") for n in (768, 30522)]
      ['branch_dft', 'branch_dense']
    """
    if platform == "cpu" or not FAMILIES[family].transforms:
        return "branch"
    return "branch_dft" if _small_products_are_small(family, n_out, n_in) else "branch_dense"


def _as_measured(
    family: str, n_out: int, n_in: int, parameters: Mapping[str, Sequence[int]]
) -> tuple[str, Mapping[str, Sequence[int]]]:
    """The family whose measurements are used for a family, and the shapes of parameters to look up there."""
    like = FAMILIES[family].measured_as
    if like == family or like != "low_rank":
        return like, parameters
    thin = parameters.get("a", ())
    rank = (
        thin[-2] if len(thin) > 1 else min(predicted.sizes(parameters))
    )  # the thin products decide, not those between
    return like, {"a": (rank, n_in), "b": (n_out, rank)}


@functools.cache
def _measured(platform: str) -> list[dict]:
    """The measurements on a platform, as written by experiments/paths/run.py."""
    file = importlib.resources.files("surm.peft.multiply") / "measured" / f"{platform}.json"
    return json.loads(file.read_text())["points"] if file.is_file() else []


@functools.cache
def _say_unmeasured(taken: str, family: str, dtype: str, platform: str) -> None:
    """Logs once for each combination that it was not measured."""
    by = "" if platform == "cpu" else " according to XLA's compilers (experiments/compiled)"
    what = f"{family} in {dtype} on a {platform} has not been measured (`surm calibrate` does so)"
    logging.getLogger(__name__).info("path='auto' is '%s'%s: %s", taken, by, what)
