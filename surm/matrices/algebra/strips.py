"""Dense matrices whose columns are almost the ones before them, moved down; in O(n² √n) a term.

    M_ij = M_{i-t, j-t} + Σ_{k<t} L_ik R_kj,     t = j mod B

Of every strip of B columns the first is given, the others are that one moved down by 1, ..., B - 1 and what was gained
on the way: for the whole matrix one product of inner size B a term, with R set to zero where k >= t. Products of two
Toeplitz matrices, and of a circulant with a skew-circulant, are such matrices. They are made with columns as rows, in
the order of a layer's kernel, to which they are added: a loop that reads one of two across its rows waits for memory.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from surm.matrices.algebra import diagonals


def width(n_in: int) -> int:
    """The B to use: the divisor of n_in nearest to √n_in; where none is near, √n_in, and a narrower last strip.

    Near is from half of √n_in, rounded down, to twice.

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
      starts: columns 0, B, 2B, ... from B - 1 rows above the first on: what moves down into it.
      left: columns 0 to B - 1 of L, for every term of a sum Σ L R.
      right: rows 0 to B - 1 of R, likewise, as columns.

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
