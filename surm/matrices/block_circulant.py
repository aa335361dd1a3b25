"""Block circulant: a grid of p×p blocks, each of which is circulant.

    [c0 c2 c1 | d0 d2 d1]
    [c1 c0 c2 | d1 d0 d2]      ΔW_{Ip+k, Jp+l} = c[I, J, (k-l) mod p]      c: (n_out/p, n_in/p, p)
    [c2 c1 c0 | d2 d1 d0]

There are n_out n_in / p trained values, and ΔW can have any rank. Both sides must be multiples of p, which by default
is their greatest common divisor. With p = n_out = n_in the matrix is circulant; with p = 1 it is an arbitrary dense
matrix, which is therefore the default if the sides have no common divisor. A product with a vector costs an FFT of
length p for each block of x and of y, and n_out n_in / (2p) complex multiplications between them. Training starts with
c = 0. Unlike C3A (`surm.matrices.c3a`), ΔW is not divided by n_in.

Source: CirCNN, arXiv 1708.08917; as an update, C3A, arXiv 2407.19342.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices.algebra import f_circulant, fourier
from surm.matrices.algebra.params import (
    Params,
    check_divides,
    check_keys,
    check_ndim,
    check_shape,
    check_sizes,
    input_size,
    working_dtype,
)
from surm.matrices.algebra.platforms import platform_of

LEARNING_RATE, ADAPTER_LEARNING_RATE = 1e-3, 8e-3  # the rates of circulant; not measured for this family
LINEAR = ("c",)
PRODUCT = "transforms"


def _block_size(n_out: int, n_in: int, block_size: int | None) -> int:
    """The block size p, after a check that it fits the shape."""
    check_sizes(n_out, n_in)
    if block_size is None:
        return math.gcd(n_out, n_in)
    check_divides("block_size", block_size, n_out, n_in)
    return block_size


def init(
    key: PRNGKeyArray,
    n_out: int,
    n_in: int,
    *,
    block_size: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters of a zero matrix: c = 0.

    Args:
      block_size: p, a common divisor of both sides; None for the greatest.

    Returns:
      {"c": (n_out/p, n_in/p, p)}.

    Raises:
      ValueError: if a size or p is below 1, or p does not divide both sides.

    Examples:
      >>> import jax
      >>> init(jax.random.key(0), 6, 9)["c"].shape
      (2, 3, 3)
    """
    p = _block_size(n_out, n_in, block_size)
    return {"c": jnp.zeros((n_out // p, n_in // p, p), dtype)}


def _blocks(params: Params, n_out: int, n_in: int) -> Float[Array, "rows columns p"]:
    """The parameter c, after a check of its shape."""
    check_keys(params, ("c",))
    c = params["c"]
    check_ndim("c", c, "n_out/block_size n_in/block_size block_size")
    p = c.shape[2]
    check_divides("block_size", p, n_out, n_in)
    check_shape("c", c, (n_out // p, n_in // p, p), f"block_size {p}, n_out={n_out}, n_in={n_in}")
    return c


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product; its block row I is y_I = Σ_J circulant(c[I, J]) x_J.

    Returns:
      The products, in x's dtype. Cost: one real FFT of every block of x and of y, and about n_out n_in / (2p) complex
      multiplications per vector. Only params and x are kept for the backward pass.

    Examples:
      >>> import jax.numpy as jnp
      >>> c = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
      >>> matvec({"c": c}, jnp.array([1.0, 2.0, 3.0, 4.0]), 2).round().tolist()
      [5.0, 5.0]
    """
    return _product(_blocks(params, n_out, input_size(x)), x)


@jax.jit
@jax.checkpoint
def _product(c, x):
    rows, columns, p = c.shape
    dtype = working_dtype(c, x)
    of_c = fourier.spectrum(c.astype(dtype), p, 1, of_batch=False)
    of_x = fourier.spectrum(x.astype(dtype).reshape(*x.shape[:-1], columns, p), p, 1)
    y = fourier.from_spectrum(jnp.einsum("ijk,...jk->...ik", of_c, of_x), p, 1)
    return y.reshape(*x.shape[:-1], rows * p).astype(x.dtype)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix, entry (Ip+k, Jp+l) = c[I, J, (k-l) mod p].

    Examples:
      >>> import jax.numpy as jnp
      >>> to_dense({"c": jnp.array([[[1.0, 2.0], [3.0, 4.0]]])}, 2, 4).tolist()
      [[1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 3.0]]
    """
    c = _blocks(params, n_out, n_in)
    p = c.shape[2]
    k = jnp.arange(p)
    on_cpu = platform_of(c) == "cpu"  # where a gather is fast
    blocks = c[:, :, (k[:, None] - k[None, :]) % p] if on_cpu else f_circulant.dense(c, p, p, 1)
    return blocks.transpose(0, 2, 1, 3).reshape(n_out, n_in)


def num_params(n_out: int, n_in: int, *, block_size: int | None = None) -> int:
    """The number of trained values: n_out n_in / p.

    Args:
      block_size: p, a common divisor of both sides; None for the greatest.

    Raises:
      ValueError: if a size or p is below 1, or p does not divide both sides.

    Examples:
      >>> num_params(768, 768), num_params(768, 3072, block_size=128)
      (768, 18432)
    """
    return n_out * n_in // _block_size(n_out, n_in, block_size)


def project(dense: Float[Array, "n_out n_in"], *, block_size: int | None = None) -> Params:
    """The nearest block circulant matrix: each block has the means over its wrapped diagonals.

    Args:
      block_size: p, a common divisor of both sides; None for the greatest.

    Returns:
      {"c"}. Cost O(n_out n_in).

    Raises:
      ValueError: if the matrix is empty, p is below 1, or p does not divide both sides.

    Examples:
      >>> import jax.numpy as jnp
      >>> project(jnp.array([[1.0, 2.0], [4.0, 3.0]]))["c"].tolist()
      [[[2.0, 3.0]]]
    """
    n_out, n_in = dense.shape
    p = _block_size(n_out, n_in, block_size)
    blocks = dense.reshape(n_out // p, p, n_in // p, p).transpose(0, 2, 1, 3)
    k = jnp.arange(p)
    # Row m of a block, read to the left from the diagonal (cyclically), lists c_0, c_1, ...: the mean is over rows.
    return {"c": blocks[:, :, k[:, None], (k[:, None] - k[None, :]) % p].mean(2)}
