"""C3A: block circulant as its authors and Hugging Face PEFT store it, by first rows and divided by n_in.

    [c0 c1 c2 | d0 d1 d2]
    [c2 c0 c1 | d2 d0 d1] / n_in      ΔW_{Ip+k, Jp+l} = c[I, J, (l-k) mod p] / n_in      c: (n_out/p, n_in/p, p)
    [c1 c2 c0 | d1 d2 d0]

The matrices, the n_out n_in / p trained values, the cost and the start at c = 0 are those of `block_circulant`, which
stores the first columns of the blocks and does not divide. Because of the division, the same step of ΔW needs a
learning rate that is n_in times larger: 0.1 and more is usual.

Source: arXiv 2407.19342.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from surm.matrices import block_circulant
from surm.matrices.algebra.params import Params, check_keys, check_ndim, input_size
from surm.matrices.block_circulant import init, num_params

__all__ = ["init", "matvec", "num_params", "project", "to_dense"]

LEARNING_RATE = 2e-1
LINEAR = ("c",)
PRODUCT = "transforms"
MEASURED_AS = "block_circulant"


def _by_first_columns(params: Params, n_in: int) -> Params:
    """The parameters of `block_circulant` that make the same matrix."""
    check_keys(params, ("c",))
    check_ndim("c", params["c"], "n_out/block_size n_in/block_size block_size")
    return {"c": _reversed(params["c"]) / n_in}


def _reversed(c: Float[Array, "*grid p"]) -> Float[Array, "*grid p"]:
    """The first columns of circulant matrices from their first rows, or the first rows from the first columns."""
    return jnp.roll(c[..., ::-1], 1, axis=-1)


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product; its block row I is y_I = Σ_J circulant(c[I, J])ᵀ x_J / n_in.

    Returns:
      The products, in x's dtype. The cost is that of `block_circulant.matvec`.

    Examples:
      >>> import jax.numpy as jnp
      >>> c = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
      >>> matvec({"c": c}, jnp.array([4.0, 8.0, 12.0, 16.0]), 2).round().tolist()
      [5.0, 5.0]
    """
    return block_circulant.matvec(_by_first_columns(params, input_size(x)), x, n_out)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix, entry (Ip+k, Jp+l) = c[I, J, (l-k) mod p] / n_in.

    Examples:
      >>> import jax.numpy as jnp
      >>> to_dense({"c": jnp.array([[[3.0, 6.0, 9.0]]])}, 3, 3).tolist()
      [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [2.0, 3.0, 1.0]]
    """
    return block_circulant.to_dense(_by_first_columns(params, n_in), n_out, n_in)


def project(dense: Float[Array, "n_out n_in"], *, block_size: int | None = None) -> Params:
    """The nearest member: each block has n_in times the means over its wrapped diagonals.

    Args:
      block_size: p, a common divisor of both sides; None for the greatest.

    Returns:
      {"c"}. Cost O(n_out n_in).

    Raises:
      ValueError: if the matrix is empty, p is below 1, or p does not divide both sides.

    Examples:
      >>> import jax.numpy as jnp
      >>> project(jnp.array([[1.0, 2.0], [4.0, 3.0]]))["c"].tolist()
      [[[4.0, 6.0]]]
    """
    found = block_circulant.project(dense, block_size=block_size)
    return {"c": dense.shape[1] * _reversed(found["c"])}
