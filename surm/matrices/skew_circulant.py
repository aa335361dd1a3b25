"""Skew-circulant matrices: circulant ones, with a minus sign on the entries that wrap around.

    [c0 -c3 -c2 -c1]
    [c1  c0 -c3 -c2]      ΔW_ij = c_{i-j} if i >= j, -c_{n+i-j} if i < j,   c = a⊙b  or  c itself
    [c2  c1  c0 -c3]
    [c3  c2  c1  c0]

The vectors have length n = max(n_out, n_in), and a rectangular ΔW is the leading n_out×n_in part of the n×n matrix. The
Hadamard form c = a⊙b (the default) has 2n trained values, c alone has n; ΔW can have any rank up to n. A product with a
vector is one skew-circular convolution, at a cost of O(n log n). Training starts with b = 0 and a random a, or with
c = 0. `init` and `num_params` are those of `f_circulant`.

Source: arXiv 2406.17740.
"""

from jaxtyping import Array, Float

from surm.matrices.algebra import f_circulant, fourier
from surm.matrices.algebra.f_circulant import init, num_params
from surm.matrices.algebra.fourier import Convolution
from surm.matrices.algebra.params import Params

__all__ = ["LINEAR", "init", "matvec", "num_params", "project", "to_dense"]

LEARNING_RATE, ADAPTER_LEARNING_RATE = 1e-3, 8e-3  # the rates of circulant; not measured for this family
LINEAR = ("c",)
PRODUCT = "convolution"


def matvec(
    params: Params, x: Float[Array, "*b n_in"], n_out: int, *, convolve: Convolution = fourier.convolve
) -> Float[Array, "*b {n_out}"]:
    """The product y_i = Σ_{j<=i} c_{i-j} x_j - Σ_{j>i} c_{n+i-j} x_j.

    Returns:
      The products, in x's dtype. Cost per vector: two complex FFTs of length n/2 if n = max(n_out, n_in) is even, or
      two real ones of length n if it is odd. Only params and x are kept for the backward pass.

    Examples:
      >>> import jax.numpy as jnp
      >>> matvec({"c": jnp.array([0.0, 1.0, 0.0])}, jnp.array([1.0, 2.0, 3.0]), 3).round().tolist()
      [-3.0, 1.0, 2.0]
    """
    return f_circulant.matvec(params, x, n_out, -1, convolve)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix, entry (i, j) = c_{i-j} on and below the diagonal, -c_{n+i-j} above it.

    Examples:
      >>> import jax.numpy as jnp
      >>> to_dense({"c": jnp.array([5.0, 1.0, 2.0])}, 2, 3).tolist()
      [[5.0, -2.0, -1.0], [1.0, 5.0, -2.0]]
    """
    return f_circulant.to_dense(params, n_out, n_in, -1)


def project(dense: Float[Array, "n_out n_in"], *, hadamard: bool = True) -> Params:
    """The nearest skew-circulant matrix: c_k is the signed mean of the entries with i - j = k mod n.

    Args:
      hadamard: whether to return a = 1 and b = c, or c alone.

    Returns:
      {"a", "b"} or {"c"}. Cost O(n_out n_in).

    Examples:
      >>> import jax.numpy as jnp
      >>> project(jnp.array([[1.0, -2.0], [4.0, 3.0]]), hadamard=False)["c"].tolist()
      [2.0, 3.0]
    """
    return f_circulant.project(dense, -1, hadamard=hadamard)
