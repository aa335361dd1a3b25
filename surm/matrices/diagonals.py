"""A Toeplitz matrix by its diagonals: the dense form, the fast product, and the sums that make a projection.

    n_out = 3, n_in = 4        [d3 d2 d1 d0]
                               [d4 d3 d2 d1]      entry (i, j) = d[i - j + n_in - 1]
                               [d5 d4 d3 d2]

The n_out + n_in - 1 diagonals are listed from the top right corner to the bottom left one: first the first
row backwards, then the rest of the first column. Circulant and skew-circulant matrices have the same form,
with fewer diagonals to choose.

Source: G. H. Golub, C. F. Van Loan, Matrix Computations, 4th ed., sections 4.7 and 4.8.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from surm.matrices import fourier


def from_diagonals(diagonals: Float[Array, " d"], n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense Toeplitz matrix, entry (i, j) = diagonals[i - j + n_in - 1].

    Args:
      diagonals: n_out + n_in - 1 values, from the top right corner to the bottom left one.
      n_out: rows.
      n_in: columns.

    Returns:
      The matrix.

    Examples:
      >>> import jax.numpy as jnp
      >>> from_diagonals(jnp.arange(4.0), 2, 3).tolist()
      [[2.0, 1.0, 0.0], [3.0, 2.0, 1.0]]
    """
    return _from_diagonals(diagonals, n_out, n_in)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _from_diagonals(diagonals: Float[Array, " d"], n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    return diagonals[jnp.arange(n_out)[:, None] - jnp.arange(n_in)[None, :] + n_in - 1]


@_from_diagonals.defjvp
def _from_diagonals_jvp(n_out, n_in, primals, tangents):
    # Gathering is the fastest way, but its transpose is a scatter, one entry after the other. The transpose of
    # `diagonal_sums` is the same linear map, and is transposed back into `diagonal_sums`.
    (diagonals,), (tangent,) = primals, tangents
    dense = jax.ShapeDtypeStruct((n_out, n_in), tangent.dtype)
    (change,) = jax.linear_transpose(diagonal_sums, dense)(tangent)
    return _from_diagonals(diagonals, n_out, n_in), change


def product(
    diagonals: Float[Array, " d"], x: Float[Array, "*b n_in"], n_out: int, convolve: fourier.Convolution
) -> Float[Array, "*b {n_out}"]:
    """The product with the Toeplitz matrix, as the middle of one linear convolution of the diagonals with x.

    Args:
      diagonals: n_out + n_in - 1 values, in the order of `from_diagonals`.
      x: vectors of length n_in.
      n_out: rows.
      convolve: what convolves.

    Returns:
      The products. Cost: a convolution of the first smooth length >= n_out + n_in - 1; what wraps round at that length
      falls on the n_in - 1 entries that are cut off.
    """
    n_in = x.shape[-1]
    length = fourier.smooth_length(n_out + n_in - 1)
    return convolve(diagonals, x, length, 1)[..., n_in - 1 : n_in - 1 + n_out]


def diagonal_sums(dense: Float[Array, "n_out n_in"]) -> Float[Array, " d"]:
    """The sum of every diagonal; the transpose of `from_diagonals`.

    Args:
      dense: any matrix.

    Returns:
      n_out + n_in - 1 sums, in the order of `from_diagonals`.

    Examples:
      >>> import jax.numpy as jnp
      >>> diagonal_sums(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
      [2.0, 5.0, 3.0]
    """
    n_out, n_in = dense.shape
    if n_out > n_in:  # the rows are what gets longer below: few of them, then
        return diagonal_sums(dense.T)[::-1]
    length = n_out + n_in - 1
    # Rows read in a width one short of the stored one: row i moves i places right, diagonals become columns.
    widened = jnp.pad(dense[:, ::-1], ((0, 0), (0, n_out)))
    return widened.ravel()[: n_out * length].reshape(n_out, length).sum(0)


def strips(columns: Float[Array, "s p"], n_out: int, width: int) -> Float[Array, "{n_out} s*{width}"]:
    """Columns side by side, each followed by itself moved down by 1, ..., width - 1; what leaves comes in on top.

    Args:
      columns: the first column of every strip, p >= n_out rows.
      n_out: rows kept.
      width: columns of a strip.

    Returns:
      The matrix, entry (i, s width + t) = columns[s, (i - t) mod p].

    Examples:
      >>> import jax.numpy as jnp
      >>> strips(jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), 3, 2).tolist()
      [[1.0, 3.0, 4.0, 6.0], [2.0, 1.0, 5.0, 4.0], [3.0, 2.0, 6.0, 5.0]]
    """
    return _strips(columns, n_out, width)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _strips(columns: Float[Array, "s p"], n_out: int, width: int) -> Float[Array, "{n_out} s*{width}"]:
    count, p = columns.shape
    i, j = jnp.arange(n_out)[:, None], jnp.arange(count * width)[None, :]
    return columns.ravel()[j // width * p + (i - j % width) % p]


@_strips.defjvp
def _strips_jvp(n_out, width, primals, tangents):
    (columns,), (tangent,) = primals, tangents  # a gather and no scatter, as above
    count, p = columns.shape
    dense = jax.ShapeDtypeStruct((n_out, count * width), tangent.dtype)
    (change,) = jax.linear_transpose(functools.partial(_strip_sums, p=p, width=width), dense)(tangent)
    return _strips(columns, n_out, width), change


def _strip_sums(dense: Float[Array, "n_out columns"], p: int, width: int) -> Float[Array, "s {p}"]:
    """The transpose of `strips`."""
    n_out, columns = dense.shape
    count, length = columns // width, n_out + width - 1
    # Rows read in a width one more than the stored one: row t of a strip moves t places left.
    rows = jnp.pad(dense.T.reshape(count, width, n_out), ((0, 0), (0, 0), (0, width - 1)))
    moved = jnp.pad(rows.reshape(count, -1), ((0, 0), (width - 1, 1))).reshape(count, width, length + 1)
    sums = moved.sum(1)[:, :length]  # for rows -(width - 1) to n_out - 1
    return jnp.pad(sums[:, width - 1 :], ((0, 0), (0, p - n_out))) + jnp.pad(
        sums[:, : width - 1], ((0, 0), (p - width + 1, 0))
    )


def symmetric(t: Float[Array, " n"], n_out: int, n_in: int) -> Float[Array, " d"]:
    """The diagonals of the leading n_out×n_in part of the symmetric Toeplitz matrix with first column t.

    Args:
      t: first column and first row, at least max(n_out, n_in) values.
      n_out: rows.
      n_in: columns.

    Returns:
      n_out + n_in - 1 values, in the order of `from_diagonals`.

    Examples:
      >>> import jax.numpy as jnp
      >>> symmetric(jnp.arange(3.0), 2, 3).tolist()
      [2.0, 1.0, 0.0, 1.0]
    """
    return jnp.concatenate([t[1:n_in][::-1], t[:n_out]])


def project_symmetric(dense: Float[Array, "n_out n_in"]) -> Float[Array, " n"]:
    """The nearest symmetric Toeplitz matrix: the mean over the diagonals k and -k together.

    Args:
      dense: any matrix.

    Returns:
      First column of length max(n_out, n_in), the t of `symmetric`.
    """
    n_out, n_in = dense.shape

    def fold(sums: Float[Array, " d"]) -> Float[Array, " n"]:
        below, above = sums[n_in - 1 :], sums[: n_in - 1][::-1]
        n = max(n_out, n_in)
        return jnp.pad(below, (0, n - n_out)) + jnp.pad(above, (1, n - n_in))

    return fold(diagonal_sums(dense)) / fold(diagonal_sums(jnp.ones_like(dense)))
