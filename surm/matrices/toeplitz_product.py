"""The dense product of two Toeplitz matrices, faster than their multiplication."""

import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from surm.matrices import diagonals, fourier
from surm.matrices.diagonals import from_diagonals, strips


def dense(left: Float[Array, " d"], right: Float[Array, " e"], n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense product L R of two Toeplitz matrices, without multiplying them.

    One place further along a diagonal, the sum over k that makes an entry loses one term and gains another:

        (L R)_{i,j} = (L R)_{i-t,j-t} + Σ_{k<t} (L_{i,k} R_{k,j} - L_{i,m+k} R_{m+k,j}),

    where L and R go on beyond their m inner columns and rows. So the columns 0, B, 2B, ... are computed, by FFT, all
    others are these moved down by t < B, and what is gained and lost is one product of inner size 2B.

    Args:
      left: the diagonals of L, n_out×m, in the order of `from_diagonals`.
      right: the diagonals of R, m×n_in.
      n_out: rows.
      n_in: columns.

    Returns:
      L R in the common type, float32 at least. Cost O(n_out n_in √n_in), with B about √n_in.

    Source:
      T. Kailath, S.-Y. Kung, M. Morf, Displacement ranks of matrices and linear equations, 1979.

    Examples:
      >>> import jax.numpy as jnp
      >>> dense(jnp.array([2.0, 1.0, 2.0]), jnp.array([0.0, 1.0, 3.0]), 2, 2).round().tolist()
      [[7.0, 2.0], [5.0, 1.0]]
    """
    m, block = left.shape[0] - n_out + 1, math.isqrt(n_in)
    starts = range(0, n_in, block)
    columns = len(starts) * block
    of_left = functools.partial(_between, left, m - 1)
    of_right = functools.partial(_between, right, n_in - 1)
    # Columns 0, B, 2B, ..., with the B - 1 rows above the first, which move down into it.
    chosen = jnp.stack([of_right(-start, m - 1 - start) for start in starts])
    products = diagonals.product(of_left(2 - block - m, n_out - 1), chosen, n_out + block - 1, fourier.convolve)
    moved = strips(jnp.roll(products, 1 - block, axis=1), n_out, block)
    gained_left = from_diagonals(of_left(1 - block, n_out - 1), n_out, block)
    lost_left = from_diagonals(of_left(1 - block - m, n_out - 1 - m), n_out, block)
    gained_right = from_diagonals(of_right(1 - columns, block - 1), block, columns)
    lost_right = from_diagonals(of_right(m + 1 - columns, m + block - 1), block, columns)
    change = jnp.concatenate([gained_left, -lost_left], axis=1)
    since_start = jnp.arange(block)[:, None] < jnp.arange(columns)[None, :] % block
    by = jnp.where(jnp.tile(since_start, (2, 1)), jnp.concatenate([gained_right, lost_right]), 0)
    return (moved + jnp.matmul(change, by, precision="highest"))[:, :n_in]


def _between(given: Float[Array, " d"], main: int, first: int, last: int) -> Float[Array, " e"]:
    """The diagonals first to last, counted from the main one at an index; zeros beyond the ends."""
    first, last = main + first, main + last + 1
    before, after = max(-first, 0), max(last - given.shape[0], 0)
    return jnp.pad(given, (before, after))[first + before : last + before]
