"""The product of one Toeplitz matrix with one vector, by small products and without an FFT.

Matrix and vector are split into blocks of b entries. A block of the matrix depends on the difference of its numbers of
row and column alone, so there are about (n_out + n_in) / b different ones. Each is multiplied by all blocks of the
vector, and what belongs to the same block of the result is added up.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from surm.matrices.algebra import diagonals


def product(given: Float[Array, " d"], x: Float[Array, " n_in"]) -> Float[Array, " n_out"]:
    """The product of the Toeplitz matrix with a vector.

    Args:
      given: n_out + n_in - 1 diagonals, in the order of `diagonals.from_diagonals`.
      x: one vector.

    Returns:
      T x. Cost: n_in (n_out + n_in) multiplications, as with the dense matrix, but O((n_out + n_in) √n_in) numbers in
      memory.

    Examples:
      >>> import jax.numpy as jnp
      >>> product(jnp.array([2.0, 1.0, 0.0, 3.0]), jnp.array([1.0, 2.0, 3.0])).tolist()  # [[0, 1, 2], [3, 0, 1]]
      [8.0, 6.0]
    """
    n_in = x.shape[0]
    n_out, b = given.shape[0] - n_in + 1, 1 << round(math.log2(n_in) / 2)
    of_x, of_y = -(-n_in // b), -(-n_out // b)
    blocks, padding = of_x + of_y - 1, of_x * b - n_in
    given = jnp.pad(given, (padding, (blocks + 1) * b - padding - given.shape[0])).reshape(blocks + 1, b)
    of_blocks = diagonals.columns(jnp.concatenate([given[:-1], given[1:, :-1]], axis=1), b, b)
    parts = jnp.einsum("uji,cj->cui", of_blocks, jnp.pad(x, (0, padding)).reshape(of_x, b), precision="highest")
    return diagonals.moved(parts.reshape(of_x, -1), b).sum(0)[(of_x - 1) * b :][:n_out]
