"""Toeplitz matrices by their diagonals: the dense form, the fast product, and the sums for a projection.

    n_out = 3, n_in = 4        [d3 d2 d1 d0]
                               [d4 d3 d2 d1]      entry (i, j) = d[i - j + n_in - 1]
                               [d5 d4 d3 d2]

The n_out + n_in - 1 diagonals are listed from the top right corner to the bottom left one: first the first
row backwards, then the rest of the first column. Circulant and skew-circulant matrices have the same form,
with fewer free diagonals.

Source: G. H. Golub, C. F. Van Loan, Matrix Computations, 4th ed., sections 4.7 and 4.8.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from surm.matrices.algebra import fourier
from surm.matrices.algebra.platforms import platform_of


def from_diagonals(diagonals: Float[Array, "*b d"], n_out: int, n_in: int) -> Float[Array, "*b {n_out} {n_in}"]:
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
    return jnp.matrix_transpose(columns(diagonals, n_out, n_in))


def columns(
    diagonals: Float[Array, "*b d"], n_out: int, n_in: int, step: int = 1
) -> Float[Array, "*b columns {n_out}"]:
    """Columns 0, step, 2 step, ... of the dense Toeplitz matrix, each as a row, which is the order of a layer's kernel.

    Args:
      diagonals: n_out + n_in - 1 values, in the order of `from_diagonals`.
      n_out: rows.
      n_in: columns, counting those left out.
      step: the step from one column to the next.

    Returns:
      n_in / step columns, rounded up.

    Examples:
      >>> import jax.numpy as jnp
      >>> columns(jnp.arange(4.0), 2, 3, 2).tolist()
      [[2.0, 3.0], [0.0, 1.0]]
    """
    count = -(-n_in // step)
    start_of_last = n_in - 1 - (count - 1) * step
    seen = diagonals[..., start_of_last:]
    match platform_of(seen):
        case "cpu":
            return _windows(seen, count, step)[..., ::-1, :]
        case "tpu":
            return _stacked(seen, count, step)
        case _:
            return _tiled(seen, count, step)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _windows(v: Float[Array, "*b k"], count: int, step: int) -> Float[Array, "*b {count} length"]:
    """The windows of v that start every step entries; the last one ends where v does."""
    length = v.shape[-1] - (count - 1) * step
    starts, places = jnp.arange(count, dtype=jnp.int32) * step, jnp.arange(length, dtype=jnp.int32)
    return v[..., starts[:, None] + places[None, :]]


@_windows.defjvp
def _windows_jvp(count, step, primals, tangents):
    # Gathering is the fastest way, but its transpose is a scatter, which adds one entry after the other. The transpose
    # of `_overlap_add` is the same linear map, and is transposed back into `_overlap_add`.
    (v,), (tangent,) = primals, tangents
    seen = _windows(v, count, step)
    (change,) = jax.linear_transpose(functools.partial(_overlap_add, step=step), jax.typeof(seen))(tangent)
    return seen, change


_TOGETHER = 8
"""The number of rows added in one loop. More rows take longer to compile; fewer read and write more often."""


def _overlap_add(rows: Float[Array, "*b count length"], step: int) -> Float[Array, "*b k"]:
    """The sum of the rows, each moved step places further right than the one before; the transpose of `_windows`."""
    *batch, count, length = rows.shape
    if step == 1 and count > length:  # fewer rows take less work
        return _overlap_add(rows.swapaxes(-1, -2), 1)
    unpadded = [(0, 0)] * len(batch)
    if count <= _TOGETHER:
        rows, total = jnp.pad(rows, [*unpadded, (0, 0), ((count - 1) * step,) * 2]), length + (count - 1) * step
        return sum(rows[..., row, (count - 1 - row) * step :][..., :total] for row in range(count))
    groups = -(-count // _TOGETHER)
    rows = jnp.pad(rows, [*unpadded, (0, groups * _TOGETHER - count), (0, 0)])
    of_groups = _overlap_add(rows.reshape(*batch, groups, _TOGETHER, length), step)
    return _overlap_add(of_groups, _TOGETHER * step)[..., : length + (count - 1) * step]


_AT_ONCE, _AT_LAST = 8, 12
"""The number of copies stacked at once, and the largest number at the last time. More copies take longer to compile;
fewer read and write more often."""


def _stacked(v: Float[Array, "*b k"], count: int, step: int) -> Float[Array, "*b {count} length"]:
    """`_windows` in reverse order, by slices and concatenations only.

    The first few windows, shifted and stacked below themselves, give many windows, so a few dozen slices make any
    number of them. On devices other than a CPU, a gather, and the scatter of its derivative, would handle one entry
    after the other. Here the derivative is a sum of zero-padded parts.
    """
    rows, have = v[..., None, :], 1
    while have < count:
        total = count if count <= have * _AT_LAST else have * _AT_ONCE
        width = rows.shape[-1] - (total - have) * step
        moved = [slice(start * step, start * step + width) for start in range(total - have, -1, -have)]
        parts = [rows[..., part] for part in moved]
        if rest := total % have:
            parts.append(rows[..., have - rest :, :width])
        rows, have = jnp.concatenate(parts, axis=-2), total
    return rows


def _tiled(v: Float[Array, "*b k"], count: int, step: int) -> Float[Array, "*b {count} length"]:
    """`_windows` in reverse order, by a reshape: one kernel on a GPU.

    Copies of v are written one after another without a gap, and read in rows that are step entries shorter than v. Each
    row then begins step entries earlier in v than the row before. The derivative pads the incoming rows with zeros and
    sums over the copies.
    """
    *batch, k = v.shape
    first, row = (count - 1) * step, k - step
    if row < 1:  # one window of a single entry
        return v[..., None, :]
    copies = -(-(first + count * row) // k)
    written = jnp.broadcast_to(v[..., None, :], (*batch, copies, k)).reshape(*batch, copies * k)
    rows = written[..., first : first + count * row].reshape(*batch, count, row)
    return rows[..., : k - first] if count > 1 else v[..., None, :]


def moved(rows: Float[Array, "count length"], step: int) -> Float[Array, "count k"]:
    """The rows, each moved step places further right than the one before, with zeros around, by a reshape.

    Args:
      rows: the rows.
      step: the number of places.

    Returns:
      Rows of length + (count - 1) step entries.

    Examples:
      >>> import jax.numpy as jnp
      >>> moved(jnp.array([[1.0, 2.0], [3.0, 4.0]]), 1).tolist()
      [[1.0, 2.0, 0.0], [0.0, 3.0, 4.0]]
    """
    count, length = rows.shape
    padded = jnp.pad(rows, ((0, 0), (0, count * step)))
    return padded.ravel()[: count * (length + (count - 1) * step)].reshape(count, -1)


def product(
    diagonals: Float[Array, " d"], x: Float[Array, "*b n_in"], n_out: int, convolve: fourier.Convolution
) -> Float[Array, "*b {n_out}"]:
    """The product with the Toeplitz matrix, as the middle of one linear convolution of the diagonals with x.

    Args:
      diagonals: n_out + n_in - 1 values, in the order of `from_diagonals`.
      x: vectors of length n_in.
      n_out: rows.
      convolve: the function that convolves.

    Returns:
      The products. Cost: a convolution of the first smooth length >= n_out + n_in - 1. Entries that wrap round at
      that length fall on the n_in - 1 entries that are cut off.
    """
    n_in = x.shape[-1]
    length = fourier.smooth_length(n_out + n_in - 1)
    return convolve(diagonals, x, length, 1, slice(n_in - 1, n_in - 1 + n_out))


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
    return _overlap_add(dense[:, ::-1], 1)


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
      The first column t of `symmetric`, of length max(n_out, n_in).
    """
    n_out, n_in = dense.shape

    def fold(sums: Float[Array, " d"]) -> Float[Array, " n"]:
        below, above = sums[n_in - 1 :], sums[: n_in - 1][::-1]
        n = max(n_out, n_in)
        return jnp.pad(below, (0, n - n_out)) + jnp.pad(above, (1, n - n_in))

    return fold(diagonal_sums(dense)) / fold(diagonal_sums(jnp.ones_like(dense)))
