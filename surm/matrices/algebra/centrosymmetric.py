"""Products with centrosymmetric matrices, which a rotation by 180° does not change, at half the cost of dense ones.

    M = [  P    Q ]
        [ JQJ  JPJ]      J reverses: ones on the antidiagonal

For a vector of halves x₁ and x₂ let x± = x₁ ± J x₂. Then y = M x has y± = (P ± QJ) x±, which takes two products
of half the length. The same holds for the gradients.

Source: A. Cantoni, P. Butler, Eigenvalues and eigenvectors of symmetric centrosymmetric matrices, Linear Algebra and
its Applications 13, 1976.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Matmul = Callable[[Array, Array], Array]
"""A product of vectors with a kernel, (rows, n_in) with (n_in, n_out), such as `jnp.matmul`."""


def product(upper: Float[Array, "h n"], x: Float[Array, "*b n"], matmul: Matmul = jnp.matmul) -> Float[Array, "*b n"]:
    """The product M x.

    Args:
      upper: the upper half of M, for even n.
      x: vectors of length n.
      matmul: the function that multiplies.

    Returns:
      The products, in x's dtype. Cost: half of a dense product with M, plus additions for x and for the products.

    Raises:
      ValueError: if the shape of the upper half is not (n/2, n).

    Examples:
      >>> import jax.numpy as jnp
      >>> product(jnp.array([[1.0, 2.0]]), jnp.array([3.0, 5.0])).tolist()  # of [[1, 2], [2, 1]]
      [13.0, 11.0]
    """
    if upper.shape[1] != 2 * upper.shape[0]:
        raise ValueError(f"given an upper half of shape {upper.shape}; expected (n/2, n) with n even")
    of_x, of_upper = _folded(x), _folded(upper)
    even, odd = (matmul(part, by.T.astype(x.dtype)) for part, by in zip(of_x, of_upper, strict=True))
    return jnp.concatenate([even + odd, (even - odd)[..., ::-1]], axis=-1) / 2


def _folded(x: Float[Array, "*b n"]) -> tuple[Float[Array, "*b h"], Float[Array, "*b h"]]:
    """The first half of the last axis plus and minus the second half reversed."""
    first, second = jnp.split(x, 2, axis=-1)
    return first + second[..., ::-1], first - second[..., ::-1]
