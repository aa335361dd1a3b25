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
from jaxtyping import Array, Float

from surm.matrices.algebra import diagonals


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


def columns(
    starts: Float[Array, "strips rows"], left: Float[Array, "terms B n_out"], right: Float[Array, "terms n_in B"]
) -> Float[Array, "n_in n_out"]:
    """The columns of M, each as a row.

    Args:
      starts: columns 0, B, 2B, ..., with the B - 1 rows above the first one, which move down into the matrix.
      left: columns 0 to B - 1 of L, for every term of a sum Σ L R.
      right: rows 0 to B - 1 of R, for every term, as columns.

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
    return moved + jnp.matmul(gained, left.reshape(-1, n_out), precision="highest")
