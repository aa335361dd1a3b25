"""Circulant matrices: each column is the one before it, moved down by one cyclically.

    [c0 c3 c2 c1]
    [c1 c0 c3 c2]      ΔW_ij = c_{(i-j) mod n},   c = a⊙b  or  c itself;   each vector: (n,), n = max(n_out, n_in)
    [c2 c1 c0 c3]
    [c3 c2 c1 c0]

A rectangular ΔW is the leading n_out×n_in part of the n×n matrix. The paper's Hadamard form c = a⊙b (the default) has
2n trained values, c alone has n; ΔW can have any rank up to n. A product with a vector is one circular convolution, at
a cost of O(n log n). Training starts with b = 0 and a random a, or with c = 0. `init` and `num_params` are those of
`f_circulant`.

The gradient of c_k is the sum of the gradients of min(n_out, n_in) entries of ΔW, so good learning rates differ from
those of a dense matrix.

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
PRODUCT = "convolution"


def matvec(
    params: Params, x: Float[Array, "*b n_in"], n_out: int, *, convolve: Convolution = fourier.convolve
) -> Float[Array, "*b {n_out}"]:
    """The product y_i = Σ_j c_{(i-j) mod n} x_j.

    Returns:
      The products, in x's dtype. Cost: two real FFTs of length max(n_out, n_in) per vector. Only params and x are kept
      for the backward pass.

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
    """The nearest circulant matrix: c_k is the mean of the entries with i - j = k mod n.

    Args:
      hadamard: whether to return a = 1 and b = c, or c alone.

    Returns:
      {"a", "b"} or {"c"}. Cost O(n_out n_in).

    Examples:
      >>> import jax.numpy as jnp
      >>> project(jnp.array([[1.0, 2.0], [4.0, 3.0]]), hadamard=False)["c"].tolist()
      [2.0, 3.0]
    """
    return f_circulant.project(dense, 1, hadamard=hadamard)
