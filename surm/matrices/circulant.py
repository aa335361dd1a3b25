"""Circulant matrices: one vector, shifted down by one from column to column.

    [c0 c3 c2 c1]
    [c1 c0 c3 c2]      ΔW_ij = c_{(i-j) mod n},   c = a⊙b  or  c itself
    [c2 c1 c0 c3]
    [c3 c2 c1 c0]

n values (stored as 2n in the paper's Hadamard form), any rank up to n, and a product that is one circular
convolution. A rectangular ΔW is the leading n_out×n_in part, n = max(n_out, n_in). `init` and `num_params`
are those of `f_circulant`.

The gradient of c_k sums min(n_out, n_in) entries' gradients: learning rates are not those of a dense matrix.

Source: arXiv 2406.17740.
"""

from jaxtyping import Array, Float

from surm.matrices.algebra import f_circulant, fourier
from surm.matrices.algebra.f_circulant import init, num_params
from surm.matrices.algebra.fourier import Convolution
from surm.matrices.algebra.params import Params

__all__ = ["LINEAR", "init", "matvec", "num_params", "project", "to_dense"]

LEARNING_RATE, ADAPTER_LEARNING_RATE = 1e-3, 8e-3
LINEAR = ("c",)
PRODUCT = "transforms"


def matvec(
    params: Params, x: Float[Array, "*b n_in"], n_out: int, *, convolve: Convolution = fourier.convolve
) -> Float[Array, "*b {n_out}"]:
    """The product y_i = Σ_j c_{(i-j) mod n} x_j.

    Returns:
      The products, in x's type. Cost: two real FFTs of length max(n_out, n_in) a vector; differentiated,
      params and x alone are kept.

    Examples:
      >>> import jax.numpy as jnp
      >>> matvec({"c": jnp.array([0.0, 1.0, 0.0])}, jnp.array([1.0, 2.0, 3.0]), 3).round().tolist()
      [3.0, 1.0, 2.0]
    """
    return f_circulant.matvec(params, x, n_out, 1, convolve)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix, entry (i, j) = c_{(i-j) mod n}.

    Examples:
      >>> import jax.numpy as jnp
      >>> to_dense({"c": jnp.array([0.0, 1.0, 2.0])}, 2, 3).tolist()
      [[0.0, 2.0, 1.0], [1.0, 0.0, 2.0]]
    """
    return f_circulant.to_dense(params, n_out, n_in, 1)


def project(dense: Float[Array, "n_out n_in"], *, hadamard: bool = True) -> Params:
    """The nearest circulant: c_k is the mean of the entries with i - j = k mod n.

    Args:
      hadamard: return a = 1, b = c, or c alone.

    Returns:
      {"a", "b"} or {"c"}. Cost O(n_out n_in).

    Examples:
      >>> import jax.numpy as jnp
      >>> project(jnp.array([[1.0, 2.0], [4.0, 3.0]]), hadamard=False)["c"].tolist()
      [2.0, 3.0]
    """
    return f_circulant.project(dense, 1, hadamard=hadamard)
