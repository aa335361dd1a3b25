"""Dense matrices in which each column nearly equals the one before it, moved down; in O(n² √n) a term.

    M_ij = M_{i-t, j-t} + Σ_{k<t} L_ik R_kj,     t = j mod B

The first column of every strip of B columns is given. The others are that column, moved down by 1, ..., B - 1, plus the
corrections on the way. For the whole matrix this is one product of inner size B a term, with R set to zero where k >=
t. Products of two Toeplitz matrices, and of a circulant with a skew-circulant, are such matrices. They are computed
with columns as rows, which is the order of the layer's kernel that they are added to, because a loop that reads one of
two arrays across its rows waits for memory.
"""

import math

import jax.numpy as jnp
from jax.lax import PrecisionLike
from jaxtyping import Array, Float

from surm.matrices.algebra import diagonals

_BLOCK = 64
"""The largest B of `from_first_column`. With two terms its products have the inner size of a TPU's matrix unit, 128."""

_PAY = {"tpu": 2**32}
_PAY_ELSEWHERE = 2**34
"""The number of multiplications from which strips take less time than the product of two matrices. By the answer of the
TPU's compiler (experiments/compiled) they do at 2048² and at 3072×768. On a GPU strips are some thirty kernels more,
each of which takes a few microseconds. Not measured."""


def width(n_in: int) -> int:
    """The B to use: the divisor of n_in nearest to √n_in, or, if none is near, √n_in with a narrower last strip.

    A divisor is near if it lies between half of √n_in, rounded down, and twice of it.

    Args:
      n_in: columns of the matrix.

    Returns:
      B.

    Examples:
      >>> width(768), width(127)
      (24, 11)
    """
    root = math.isqrt(n_in)
    near = [b for b in range(max(root // 2, 1), 2 * root + 1) if n_in % b == 0]
    return min(near, key=lambda b: abs(b - math.sqrt(n_in)), default=root)


def pay(platform: str, n_out: int, m: int, n_in: int) -> bool:
    """Whether strips from the first column are faster than multiplying an n_out×m and an m×n_in matrix.

    Args:
      platform: `tpu`, `gpu`, ...; strips with FFTs, which are for a CPU, always pay there.
      n_out: rows of the left matrix.
      m: its columns, and rows of the right one.
      n_in: columns of the right matrix.

    Returns:
      The answer.

    Examples:
      >>> [[pay(platform, n, n, n) for n in (768, 2048, 4096)] for platform in ("tpu", "gpu")]
      [[False, True, True], [False, False, True]]
    """
    return n_out * m * n_in >= _PAY.get(platform, _PAY_ELSEWHERE)


def width_of_products(n_in: int) -> int:
    """The B of `from_first_column`: 64, or less if there are fewer columns.

    Args:
      n_in: columns of the matrix.

    Returns:
      B.
    """
    return min(n_in, _BLOCK)


def columns(
    starts: Float[Array, "strips rows"],
    left: Float[Array, "terms B n_out"],
    right: Float[Array, "terms n_in B"],
    precision: PrecisionLike = "highest",
) -> Float[Array, "n_in n_out"]:
    """The columns of M, each as a row.

    Args:
      starts: columns 0, B, 2B, ..., with the B - 1 rows above the first one, which move down into the matrix.
      left: columns 0 to B - 1 of L, for every term of a sum Σ L R.
      right: rows 0 to B - 1 of R, for every term, as columns.
      precision: the precision of the product.

    Returns:
      Mᵀ.

    Examples:
      >>> import jax.numpy as jnp
      >>> starts = jnp.array([[2.0, 5.0, 7.0]])  # one strip of two columns; the first is 5, 7
      >>> columns(starts, jnp.array([[[1.0, 1.0], [0.0, 0.0]]]), jnp.array([[[1.0, 1.0], [1.0, 1.0]]])).tolist()
      [[5.0, 7.0], [3.0, 6.0]]
    """
    (_, block, n_out), n_in = left.shape, right.shape[1]
    moved = diagonals.columns(starts, n_out, block).reshape(-1, n_out)[:n_in]
    gaining = jnp.arange(block)[None, :] < jnp.arange(n_in)[:, None] % block
    gained = jnp.where(gaining[None], right, 0).swapaxes(0, 1).reshape(n_in, -1)
    return moved + jnp.matmul(gained, left.reshape(-1, n_out), precision=precision)


def from_first_column(
    first: Float[Array, " rows"],
    left: Float[Array, "terms diagonals"],
    right: Float[Array, "terms n_in B"],
    precision: PrecisionLike,
) -> Float[Array, "n_in n_out"]:
    """`columns` where only the first column is known; the first columns of the other strips follow from it.

        M_{i, sB} = M_{i-B, (s-1)B} + Σ_{k<B} L_ik R_{k, sB}

    There is nothing but a few products of inner size terms·B, which suit accelerators.

    Args:
      first: column 0 of M, with the n_in - 1 rows above the first one, which move down into the matrix.
      left: the diagonals of the first B columns of L, for every term, with as many rows above the first one.
      right: rows 0 to B - 1 of R, for every term, as columns.
      precision: the precision of the large products.

    Returns:
      Mᵀ. Cost: O(terms n_out n_in B).
    """
    terms, n_in, block = right.shape
    n_out, strips = first.shape[0] - n_in + 1, -(-n_in // block)
    above = strips * block - n_in  # rows that move into nothing but what is cut off from the last strip
    first, left = jnp.pad(first, (above, 0)), jnp.pad(left, ((0, 0), (above, 0)))
    left = diagonals.columns(left, first.shape[0], block)
    gained_by = right[:, block::block].swapaxes(0, 1).reshape(strips - 1, terms * block)
    gained = jnp.matmul(gained_by, left.reshape(-1, left.shape[-1]), precision=precision)
    starts = _moving_sums(jnp.concatenate([first[None], gained]), block)[:, -n_out - block + 1 :]
    return columns(starts, left[..., -n_out:], right, precision)


def _moving_sums(rows: Float[Array, "count length"], step: int) -> Float[Array, "count length"]:
    """Row s of the result is the sum of rows t ≤ s, each moved (s - t) step places to the right.

    Moved to where they meet, the rows are added by a product with a triangular matrix of ones.
    """
    count, length = rows.shape
    meeting = diagonals.moved(rows[::-1], step)
    sums = jnp.matmul(jnp.triu(jnp.ones((count, count), rows.dtype)), meeting, precision="highest")
    back = jnp.pad(sums.ravel(), (0, count * step)).reshape(count, -1)
    return back[::-1, :length]
