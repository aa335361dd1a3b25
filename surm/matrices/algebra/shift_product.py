"""The dense sum of products of circulant and skew-circulant matrices: fast on a CPU, without FFTs elsewhere.

For M = Σ_i Z_f(g_i) Z_{-f}(h_i), f = 1 or -1,

    M Z_{-f} = Z_f M - 2f Σ_i g_i (J h_i)ᵀ,      J the reversal.

So each column is the one before it, moved down by one, plus a correction.
"""

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jaxtyping import Array, Float

from surm.matrices.algebra import f_circulant, fourier, strips, toeplitz_vector
from surm.matrices.algebra.platforms import platform_of


def dense(
    g: Float[Array, "r n"], h: Float[Array, "r n"], n_out: int, n_in: int, *, precision: PrecisionLike = "highest"
) -> Float[Array, "{n_out} {n_in}"]:
    """The leading n_out×n_in part of Σ_i Z_1(g_i) Z_{-1}(h_i).

    Args:
      g: first columns of the circulant matrices, float32 at least.
      h: first columns of the skew-circulant ones.
      n_out: rows.
      n_in: columns.
      precision: the precision of matrix products.

    Returns:
      The sum. Cost: O(r n² √n) on a CPU, by strips of r terms (see `strips`). Elsewhere O(r n_out n n_in), or a small
      multiple of 64 r n_out n_in where that is less; see `strips.pay`.

    Examples:
      >>> import jax.numpy as jnp
      >>> dense(jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 3.0]]), 2, 2).round().tolist()
      [[2.0, -3.0], [3.0, 2.0]]
    """
    platform, n = platform_of(g, h), g.shape[1]
    if platform == "cpu":
        return _by_transforms(g, h, n_out, n_in)
    if not strips.pay(platform, n_out, n, n_in):
        both = f_circulant.columns(h, n, n_in, -1), f_circulant.columns(g, n_out, n, 1)
        return jnp.einsum("rkj,rji->ki", *both, precision=precision).T
    if n_in > n_out:  # strips along the shorter side are fewer
        return _by_products(_transposed(h, -1), _transposed(g, 1), n_in, n_out, -1, precision)
    return _by_products(g, h, n_out, n_in, 1, precision).T


def _by_transforms(g: Float[Array, "r n"], h: Float[Array, "r n"], n_out: int, n_in: int) -> Float[Array, "n_out n_in"]:
    """The sum by strips whose first columns are computed by FFT."""
    n, block = g.shape[1], strips.width(n_in)
    first = f_circulant.columns(h, n, n_in, -1, block)
    starts = jax.vmap(lambda v, x: fourier.convolve(v, x, n, 1, of_batch=False))(g, first).sum(0)
    starts = jnp.concatenate([starts[:, n - block + 1 :], starts[:, :n_out]], axis=1)
    gained = f_circulant.columns(g, n_out, block, 1)
    gained_by = 2 * f_circulant.columns(h, block, n_in, -1)
    return strips.columns(starts, gained, gained_by).T


def _by_products(
    g: Float[Array, "r n"], h: Float[Array, "r n"], n_out: int, n_in: int, f: int, precision: PrecisionLike
) -> Float[Array, "n_in n_out"]:
    """The transpose of Σ_i Z_f(g_i) Z_{-f}(h_i), by strips that follow from the first column alone."""
    n, block = g.shape[1], strips.width_of_products(n_in)
    first = jax.vmap(toeplitz_vector.product)(jnp.concatenate([f * g[:, 1:], g], axis=1), h).sum(0)
    around = lambda v: jnp.concatenate([f * v[..., n - n_in + 1 :], v[..., :n_out]], axis=-1)  # noqa: E731
    gained = jnp.pad(around(g), ((0, 0), (block - 1, 0)))
    gained_by = 2 * f_circulant.columns(h, block, n_in, -f)
    return strips.from_first_column(around(first), gained, gained_by, precision)


def _transposed(v: Float[Array, "r n"], f: int) -> Float[Array, "r n"]:
    """The first columns of Z_f(v)ᵀ."""
    return jnp.concatenate([v[:, :1], f * v[:, :0:-1]], axis=1)
