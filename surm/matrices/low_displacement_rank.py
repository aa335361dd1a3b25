"""Low displacement rank: a sum of products of a circulant and a skew-circulant matrix.

            [g0 g2 g1] [h0 -h2 -h1]
    ΔW  = Σ [g1 g0 g2] [h1  h0 -h2]      ΔW = Σ_{i<=r} Z_1(g_i) Z_{-1}(h_i),   g, h: (r, n),   n = max(n_out, n_in)
          i [g2 g1 g0] [h2  h1  h0]

A rectangular ΔW is the leading n_out×n_in part of the n×n matrix. There are 2rn trained values, as many as a low-rank
matrix of rank r has for n×n, but ΔW can have any rank up to n; it is the displacement ∇_{Z_1, Z_{-1}}(ΔW) that has rank
at most r. With r = n the family contains every matrix (see `displacement`). A product with a vector costs 2r + 2 FFTs
of length n. Training starts with g = 0 and a random h.

Source: arXiv 2406.17740; V. Sindhwani, T. Sainath, S. Kumar, Structured transforms for small-footprint deep learning,
2015.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices.algebra import alternating, displacement, f_circulant, fourier, shift_product
from surm.matrices.algebra.params import (
    Params,
    check_keys,
    check_ndim,
    check_positive,
    check_shapes,
    check_sizes,
    input_size,
    working_dtype,
)

LEARNING_RATE, ADAPTER_LEARNING_RATE = 3e-3, 2e-3
PRODUCT = "two_convolutions"


def init(
    key: PRNGKeyArray,
    n_out: int,
    n_in: int,
    *,
    rank: int = 1,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters of a zero matrix: g = 0, h ~ N(0, 0.02²).

    Args:
      rank: r, the number of terms.

    Returns:
      {"g", "h"}, each (r, max(n_out, n_in)).

    Raises:
      ValueError: if n_out, n_in or rank is below 1.

    Examples:
      >>> import jax
      >>> {name: array.shape for name, array in init(jax.random.key(0), 2, 3, rank=2).items()}
      {'g': (2, 3), 'h': (2, 3)}
    """
    check_sizes(n_out, n_in)
    check_positive("rank", rank)
    shape = (rank, max(n_out, n_in))
    return {"g": jnp.zeros(shape, dtype), "h": 0.02 * jax.random.normal(key, shape, dtype)}


def _generators(params: Params, n_out: int, n_in: int) -> tuple[Float[Array, "r n"], Float[Array, "r n"]]:
    """The arrays g and h, after a check of their shapes."""
    check_keys(params, ("g", "h"))
    g, h = params["g"], params["h"]
    check_ndim("g", g, "rank max(n_out,n_in)")
    expected = (g.shape[0], max(n_out, n_in))
    check_shapes(params, {"g": expected, "h": expected}, f"rank {g.shape[0]}, n_out={n_out}, n_in={n_in}")
    return g, h


def matvec(
    params: Params, x: Float[Array, "*b n_in"], n_out: int, *, convolve: fourier.Convolution = fourier.convolve
) -> Float[Array, "*b {n_out}"]:
    """The product Σ_i Z_1(g_i) (Z_{-1}(h_i) x).

    Returns:
      The products, in x's dtype. Cost: 2r + 2 FFTs of length max(n_out, n_in) per vector, because the terms share the
      transform of x and the inverse transform of the result; with another `convolve`, 2r convolutions.
      Only params and x are kept for the backward pass.

    Examples:
      >>> import jax.numpy as jnp
      >>> turn = {"g": jnp.array([[1.0, 0.0, 0.0]]), "h": jnp.array([[0.0, 1.0, 0.0]])}
      >>> matvec(turn, jnp.array([1.0, 2.0, 3.0]), 3).round().tolist()
      [-3.0, 1.0, 2.0]
    """
    n_in = input_size(x)
    g, h = _generators(params, n_out, n_in)
    return _product_with(g, h, x, n_out, convolve)


@partial(jax.jit, static_argnums=(3, 4))
@partial(jax.checkpoint, static_argnums=(3, 4))
def _product_with(g, h, x, n_out, convolve):
    if convolve is fourier.convolve:
        return _by_fft(g, h, x, n_out)
    return _by_convolutions(g, h, x, n_out, convolve)


def _by_fft(g: Float[Array, "r n"], h: Float[Array, "r n"], x: Float[Array, "*b n_in"], n_out: int) -> Array:
    """The product by FFTs, where all terms share the spectrum of x and that of the result."""
    dtype, n = working_dtype(g, h, x), g.shape[1]
    g_spectra = fourier.spectrum(g.astype(dtype), n, 1, of_batch=False)
    h_spectra = fourier.spectrum(h.astype(dtype), n, -1, of_batch=False)
    x_spectrum = fourier.spectrum(x.astype(dtype)[..., None, :], n, -1)
    inner = fourier.from_spectrum(fourier.for_each(h_spectra, x_spectrum) * x_spectrum, n, -1)
    inner_spectra = fourier.spectrum(inner, n, 1)
    y_spectrum = (fourier.for_each(g_spectra, inner_spectra) * inner_spectra).sum(-2)
    return fourier.from_spectrum(y_spectrum, n, 1)[..., :n_out].astype(x.dtype)


def _by_convolutions(
    g: Float[Array, "r n"],
    h: Float[Array, "r n"],
    x: Float[Array, "*b n_in"],
    n_out: int,
    convolve: fourier.Convolution,
) -> Array:
    """The product, term by term, with two convolutions each."""
    n = g.shape[1]

    def term(g, h):
        return convolve(g, convolve(h, x, n, -1, fourier.ALL), n, 1, slice(n_out))

    return jax.vmap(term)(g, h).sum(0).astype(x.dtype)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix Σ_i Z_1(g_i) Z_{-1}(h_i).

    Examples:
      >>> import jax.numpy as jnp
      >>> to_dense({"g": jnp.array([[1.0, 0.0]]), "h": jnp.array([[2.0, 3.0]])}, 2, 2).tolist()
      [[2.0, -3.0], [3.0, 2.0]]
    """
    g, h = _generators(params, n_out, n_in)
    n, wide = g.shape[1], working_dtype(g, h)
    circulants, skew_circulants = f_circulant.dense(g, n_out, n, 1), f_circulant.dense(h, n, n_in, -1)
    dense = jnp.einsum("rij,rjk->ik", circulants.astype(wide), skew_circulants.astype(wide), precision="highest")
    return dense.astype(jnp.result_type(g, h))


def quick_dense(
    params: Params, n_out: int, n_in: int, *, precision: PrecisionLike = "highest"
) -> Float[Array, "{n_out} {n_in}"]:
    """`to_dense` up to rounding, on a CPU in O(r n² √n) instead of O(r n³); see `shift_product`.

    Examples:
      >>> import jax.numpy as jnp
      >>> quick_dense({"g": jnp.array([[1.0, 0.0]]), "h": jnp.array([[2.0, 3.0]])}, 2, 2).round().tolist()
      [[2.0, -3.0], [3.0, 2.0]]
    """
    g, h = _generators(params, n_out, n_in)
    wide = working_dtype(g, h)  # so that bfloat16 is rounded only once
    dense = shift_product.dense(g.astype(wide), h.astype(wide), n_out, n_in, precision=precision)
    return dense.astype(jnp.result_type(g, h))


def num_params(n_out: int, n_in: int, *, rank: int = 1) -> int:
    """The number of trained values: 2r max(n_out, n_in).

    Args:
      rank: r, the number of terms.

    Raises:
      ValueError: if n_out, n_in or rank is below 1.

    Examples:
      >>> num_params(4096, 4096)
      8192
    """
    check_sizes(n_out, n_in)
    check_positive("rank", rank)
    return 2 * rank * max(n_out, n_in)


def project(dense: Float[Array, "n_out n_in"], *, rank: int = 1) -> Params:
    """A member close to a matrix: the best of three starts, each improved by alternating least squares.

    The starts are h_i = e_i with the best g (for r = 1 the nearest circulant matrix), g_i = e_i with the best h (for
    r = 1 the nearest skew-circulant matrix), and the g and h given by the singular vectors of the displacement, which
    recover a member exactly. The result is a local optimum and never worse than any of the starts. Its error
    nearly always falls as r grows, but this is not guaranteed; it is 0 for r = n.

    Args:
      rank: r, the number of terms.

    Returns:
      {"g", "h"}. Cost: a few hundred products with n_in vectors for each start; see `alternating`.

    Raises:
      ValueError: if the matrix is empty or rank is below 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> member = {"g": jnp.array([[1.0, 2.0, 3.0]]), "h": jnp.array([[1.0, 0.0, 2.0]])}
      >>> delta = to_dense(member, 3, 3)
      >>> bool(jnp.allclose(to_dense(project(delta), 3, 3), delta, atol=1e-4))
      True
    """
    check_sizes(*dense.shape)
    check_positive("rank", rank)
    g, h = _fit(dense.astype(working_dtype(dense)), rank)
    return {"g": g.astype(dense.dtype), "h": h.astype(dense.dtype)}


@partial(jax.jit, static_argnums=1)
def _fit(target: Float[Array, "n_out n_in"], rank: int) -> tuple[Float[Array, "r n"], Float[Array, "r n"]]:
    """The g and h of `project`."""
    units = _units(rank, max(target.shape), target.dtype)
    nothing = jnp.zeros_like(units)  # the side that is zero is solved for first
    starts = (nothing, units), (units, nothing), _from_displacement(target, rank)
    return alternating.alternate(_product, target, *(jnp.stack(side) for side in zip(*starts, strict=True)))


def _product(
    g: Float[Array, "r n"],
    h: Float[Array, "r n"],
    n_out: int,
    n_in: int,
) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix by FFT, bilinear in g and h, for `alternating`."""
    return matvec({"g": g, "h": h}, jnp.eye(n_in, dtype=g.dtype), n_out).T


def _units(count: int, n: int, dtype: jnp.dtype) -> Float[Array, "count n"]:
    """The first `count` unit vectors; beyond n they start again with the first."""
    return jnp.eye(n, dtype=dtype)[jnp.arange(count) % n]


def _pad_with_units(vectors: Float[Array, "k n"], count: int) -> Float[Array, "{count} n"]:
    """The first `count` vectors, followed by unit vectors if there are fewer."""
    vectors = vectors[:count]
    return jnp.concatenate([vectors, _units(count - vectors.shape[0], vectors.shape[1], vectors.dtype)])


def _from_displacement(
    target: Float[Array, "n_out n_in"], rank: int
) -> tuple[Float[Array, "{rank} n"], Float[Array, "{rank} n"]]:
    """The g and h, or the one of them that follows from the known part of Z_1 M - M Z_{-1} = 2 Σ g_i (J h_i)ᵀ."""
    n_out, n_in = target.shape
    if n_out == n_in:
        params = displacement.from_dense(target, rank=rank)
        return params["g"], params["h"]
    known, nothing = displacement.displacement(target), jnp.zeros((rank, max(n_out, n_in)), target.dtype)
    if n_out < n_in:  # all but the first row is known; its row space is that of the J h_i
        rows = jnp.linalg.svd(known[1:], full_matrices=False)[2]
        return nothing, _pad_with_units(rows[:, ::-1], rank)
    # all but the last column is known; its column space is that of the g_i
    columns = jnp.linalg.svd(known[:, :-1], full_matrices=False)[0]
    return _pad_with_units(columns.T, rank), nothing
