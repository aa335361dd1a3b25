"""The dense sum of products of circulant and skew-circulant matrices: fast on a CPU, without FFTs elsewhere.

For M = Σ_i Z_1(g_i) Z_{-1}(h_i)

    M Z_{-1} = Z_1 M - 2 Σ_i g_i (J h_i)ᵀ,      J the reversal.

So each column is the one before it, moved down by one, plus a correction.
"""

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jaxtyping import Array, Float

from surm.matrices.algebra import f_circulant, fourier, strips
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
      The sum. Cost: O(r n² √n) on a CPU, by strips of r terms (see `strips`); O(r n_out n n_in) elsewhere.

    Examples:
      >>> import jax.numpy as jnp
      >>> dense(jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 3.0]]), 2, 2).round().tolist()
      [[2.0, -3.0], [3.0, 2.0]]
    """
    if platform_of(g, h) == "cpu":
        return _by_strips(g, h, n_out, n_in)
    n = g.shape[1]
    both = f_circulant.columns(h, n, n_in, -1), f_circulant.columns(g, n_out, n, 1)
    return jnp.einsum("rkj,rji->ki", *both, precision=precision).T


def _by_strips(g: Float[Array, "r n"], h: Float[Array, "r n"], n_out: int, n_in: int) -> Float[Array, "n_out n_in"]:
    n, block = g.shape[1], strips.width(n_in)
    first = f_circulant.columns(h, n, n_in, -1, block)
    starts = jax.vmap(lambda v, x: fourier.convolve(v, x, n, 1, of_batch=False))(g, first).sum(0)
    starts = jnp.concatenate([starts[:, n - block + 1 :], starts[:, :n_out]], axis=1)
    gained = f_circulant.columns(g, n_out, block, 1)
    gained_by = 2 * f_circulant.columns(h, block, n_in, -1)
    return strips.columns(starts, gained, gained_by).T
