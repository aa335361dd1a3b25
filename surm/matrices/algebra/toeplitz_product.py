"""The dense product of two Toeplitz matrices, faster than multiplying them; without FFTs elsewhere than on a CPU."""

import functools

import jax.numpy as jnp
from jax.lax import PrecisionLike
from jaxtyping import Array, Float

from surm.matrices.algebra import diagonals, fourier, strips, toeplitz_vector
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
    `strips`. On devices that multiply fast and transform slowly, large matrices consist of wider strips, which follow
    from the first column alone, and small ones are multiplied.

    Args:
      left: the diagonals of L, n_out×m, in the order of `from_diagonals`.
      right: the diagonals of R, m×n_in.
      n_out: rows.
      n_in: columns.
      precision: the precision of matrix products.

    Returns:
      L R in the common type, in float32 at least. Cost O(n_out n_in √n_in), and FFTs of √n_in vectors. Elsewhere than
      on a CPU O(n_out m n_in), or a small multiple of 128 n_out n_in where that is less; see `strips.pay`.

    Source:
      T. Kailath, S.-Y. Kung, M. Morf, Displacement ranks of matrices and linear equations, 1979.

    Examples:
      >>> import jax.numpy as jnp
      >>> dense(jnp.array([2.0, 1.0, 2.0]), jnp.array([0.0, 1.0, 3.0]), 2, 2).round().tolist()
      [[7.0, 2.0], [5.0, 1.0]]
    """
    wide = working_dtype(left, right)
    left, right = left.astype(wide), right.astype(wide)
    m = left.shape[0] - n_out + 1
    platform = platform_of(left, right)
    if platform == "cpu":
        return _by_transforms(left, right, n_out, n_in)
    if not strips.pay(platform, n_out, m, n_in):
        of_both = diagonals.columns(right, m, n_in), diagonals.columns(left, n_out, m)
        return jnp.matmul(*of_both, precision=precision).T
    if n_in > n_out:  # strips along the shorter side are fewer; the list of a transpose is the reverse
        return _by_products(right[::-1], left[::-1], n_in, n_out, precision)
    return _by_products(left, right, n_out, n_in, precision).T


def _by_transforms(
    left: Float[Array, " d"], right: Float[Array, " e"], n_out: int, n_in: int
) -> Float[Array, "n_out n_in"]:
    """The product by strips whose first columns are computed by FFT."""
    m, block = left.shape[0] - n_out + 1, strips.width(n_in)
    first = diagonals.columns(right, m, n_in, block)
    convolve = functools.partial(fourier.convolve, of_batch=False)
    of_left = functools.partial(_between, left, m - 1)
    starts = diagonals.product(of_left(2 - block - m, n_out - 1), first, n_out + block - 1, convolve)
    both_left, both_right = _changes(left, right, n_out, n_in, 0, block)
    return strips.columns(starts, diagonals.columns(both_left, n_out, block), both_right).T


def _by_products(
    left: Float[Array, " d"], right: Float[Array, " e"], n_out: int, n_in: int, precision: PrecisionLike
) -> Float[Array, "n_in n_out"]:
    """The transpose of the product, by strips that follow from the first column alone."""
    m, block = left.shape[0] - n_out + 1, strips.width_of_products(n_in)
    first = toeplitz_vector.product(_between(left, m - 1, 2 - n_in - m, n_out - 1), right[n_in - 1 :])
    both_left, both_right = _changes(left, right, n_out, n_in, n_in - 1, block)
    return strips.from_first_column(first, both_left, both_right, precision)


def _changes(
    left: Float[Array, " d"], right: Float[Array, " e"], n_out: int, n_in: int, above: int, block: int
) -> tuple[Float[Array, "2 f"], Float[Array, "2 n_in block"]]:
    """What a diagonal gains and loses: the diagonals of L's first columns, and R's first rows as columns."""
    m = left.shape[0] - n_out + 1
    of_left = functools.partial(_between, left, m - 1)
    of_right = functools.partial(_between, right, n_in - 1)
    top = 1 - block - above
    both_left = jnp.stack([of_left(top, n_out - 1), -of_left(top - m, n_out - 1 - m)])
    both_right = jnp.stack([of_right(1 - n_in, block - 1), of_right(m + 1 - n_in, m + block - 1)])
    return both_left, diagonals.columns(both_right, block, n_in)


def _between(given: Float[Array, " d"], main: int, first: int, last: int) -> Float[Array, " e"]:
    """The diagonals first to last, counted from the main one at an index, with zeros beyond the ends."""
    first, last = main + first, main + last + 1
    before, after = max(-first, 0), max(last - given.shape[0], 0)
    return jnp.pad(given, (before, after))[first + before : last + before]
