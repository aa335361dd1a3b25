"""The dense product of two Toeplitz matrices: on a CPU faster than multiplying them, elsewhere without FFTs."""

import functools

import jax.numpy as jnp
from jax.lax import PrecisionLike
from jaxtyping import Array, Float

from surm.matrices.algebra import diagonals, fourier, strips
from surm.matrices.algebra.params import working_dtype
from surm.matrices.algebra.platforms import platform_of


def dense(
    left: Float[Array, " d"],
    right: Float[Array, " e"],
    n_out: int,
    n_in: int,
    *,
    precision: PrecisionLike = "highest",
) -> Float[Array, "{n_out} {n_in}"]:
    """The dense product L R of two Toeplitz matrices, on a CPU without multiplying them.

    From one entry of a diagonal to the next, the sum over k loses one term and gains another:

        (L R)_{i,j} = (L R)_{i-t,j-t} + Σ_{k<t} (L_{i,k} R_{k,j} - L_{i,m+k} R_{m+k,j}),

    where L and R continue beyond their m inner columns and rows. So the product consists of strips with two terms, see
    `strips`. On devices that multiply fast and transform slowly, the two matrices are multiplied.

    Args:
      left: the diagonals of L, n_out×m, in the order of `from_diagonals`.
      right: the diagonals of R, m×n_in.
      n_out: rows.
      n_in: columns.
      precision: the precision of matrix products.

    Returns:
      L R in the common type, in float32 at least. Cost O(n_out n_in √n_in), and FFTs of √n_in vectors; O(n_out m n_in)
      elsewhere than on a CPU.

    Source:
      T. Kailath, S.-Y. Kung, M. Morf, Displacement ranks of matrices and linear equations, 1979.

    Examples:
      >>> import jax.numpy as jnp
      >>> dense(jnp.array([2.0, 1.0, 2.0]), jnp.array([0.0, 1.0, 3.0]), 2, 2).round().tolist()
      [[7.0, 2.0], [5.0, 1.0]]
    """
    wide = working_dtype(left, right)
    left, right = left.astype(wide), right.astype(wide)
    if platform_of(left, right) != "cpu":
        m = left.shape[0] - n_out + 1
        of_both = diagonals.columns(right, m, n_in), diagonals.columns(left, n_out, m)
        return jnp.matmul(*of_both, precision=precision).T
    m, block = left.shape[0] - n_out + 1, strips.width(n_in)
    of_left = functools.partial(_between, left, m - 1)
    of_right = functools.partial(_between, right, n_in - 1)
    first = diagonals.columns(right, m, n_in, block)
    convolve = functools.partial(fourier.convolve, of_batch=False)
    starts = diagonals.product(of_left(2 - block - m, n_out - 1), first, n_out + block - 1, convolve)
    both_left = jnp.stack([of_left(1 - block, n_out - 1), -of_left(1 - block - m, n_out - 1 - m)])  # gained and lost
    both_right = jnp.stack([of_right(1 - n_in, block - 1), of_right(m + 1 - n_in, m + block - 1)])
    left, right = diagonals.columns(both_left, n_out, block), diagonals.columns(both_right, block, n_in)
    return strips.columns(starts, left, right).T


def _between(given: Float[Array, " d"], main: int, first: int, last: int) -> Float[Array, " e"]:
    """The diagonals first to last, counted from the main one at an index, with zeros beyond the ends."""
    first, last = main + first, main + last + 1
    before, after = max(-first, 0), max(last - given.shape[0], 0)
    return jnp.pad(given, (before, after))[first + before : last + before]
