"""f-circulant matrices: the common part of circulant (f = 1) and skew-circulant (f = -1) matrices.

Z_f is the shift down by one whose wrapped entry is f, and Z_f(v) = Σ_k v_k Z_fᵏ is the f-circulant with first
column v:

    Z_f = [0 0 0 f]      Z_f(v) = [v0 fv3 fv2 fv1]
          [1 0 0 0]               [v1  v0 fv3 fv2]
          [0 1 0 0]               [v2  v1  v0 fv3]
          [0 0 1 0]               [v3  v2  v1  v0]

A rectangular f-circulant is the leading n_out×n_in part of the n×n one, n = max(n_out, n_in). The parameters are
either {"a", "b"}, with v = a⊙b (the paper's Hadamard form), or {"c"}, with v = c.

Source: arXiv 2406.17740; V. Y. Pan, Structured Matrices and Polynomials, Birkhäuser 2001, for Z_f.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices.algebra import diagonals
from surm.matrices.algebra.fourier import Convolution
from surm.matrices.algebra.params import Params, check_keys, check_shape, check_sizes, input_size, working_dtype


def init(
    key: PRNGKeyArray,
    n_out: int,
    n_in: int,
    *,
    hadamard: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters of a zero matrix: a ~ N(0, 1) and b = 0, or c = 0.

    Args:
      hadamard: store the vector as a product a⊙b, or as it is.

    Returns:
      {"a", "b"} or {"c"}, each of length max(n_out, n_in).

    Examples:
      >>> import jax
      >>> {name: vector.shape for name, vector in init(jax.random.key(0), 2, 3).items()}
      {'a': (3,), 'b': (3,)}
    """
    check_sizes(n_out, n_in)
    zero = jnp.zeros(max(n_out, n_in), dtype)
    return {"a": jax.random.normal(key, zero.shape, dtype), "b": zero} if hadamard else {"c": zero}


def num_params(n_out: int, n_in: int, *, hadamard: bool = True) -> int:
    """The number of trained values: 2 max(n_out, n_in), or half as many without the Hadamard pair.

    Args:
      hadamard: store the vector as a product a⊙b, or as it is.

    Examples:
      >>> num_params(768, 768), num_params(768, 768, hadamard=False)
      (1536, 768)
    """
    check_sizes(n_out, n_in)
    return (2 if hadamard else 1) * max(n_out, n_in)


def _vector(params: Params, n_out: int, n_in: int) -> Float[Array, " n"]:
    """The first column v, in float32 at least, so that a bfloat16 pair is not rounded twice."""
    form = check_keys(params, ("a", "b"), ("c",))
    for name in form:
        expected = (max(n_out, n_in),)
        check_shape(name, params[name], expected, f"max(n_out, n_in) with n_out={n_out}, n_in={n_in}")
    vectors = [params[name].astype(working_dtype(params[name])) for name in form]
    return vectors[0] if form == ("c",) else vectors[0] * vectors[1]


def matvec(
    params: Params, x: Float[Array, "*b n_in"], n_out: int, f: int, convolve: Convolution
) -> Float[Array, "*b {n_out}"]:
    """The product Z_f(v) x, one convolution of length max(n_out, n_in) with wrap factor f.

    Args:
      params: {"a", "b"} or {"c"}.
      x: vectors of length n_in.
      n_out: rows.
      f: 1 or -1.
      convolve: the function that convolves.

    Returns:
      The products, in x's dtype. Cost O(n log n) per vector by FFT. Only v and x are kept for the backward pass.

    Raises:
      ValueError: if the names or lengths of the parameters do not fit.
    """
    return _product(_vector(params, n_out, input_size(x)), x, n_out, f, convolve)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
@functools.partial(jax.checkpoint, static_argnums=(2, 3, 4))
def _product(v, x, n_out, f, convolve):
    return convolve(v, x, v.shape[0], f, slice(n_out)).astype(x.dtype)


def dense(v: Float[Array, "*b n"], n_out: int, n_in: int, f: int) -> Float[Array, "*b {n_out} {n_in}"]:
    """The leading n_out×n_in part of Z_f(v).

    Args:
      v: first column, of length n >= max(n_out, n_in).
      n_out: rows.
      n_in: columns.
      f: 1 or -1.

    Returns:
      The matrix.

    Examples:
      >>> import jax.numpy as jnp
      >>> dense(jnp.array([5.0, 1.0, 2.0]), 2, 3, -1).tolist()
      [[5.0, -2.0, -1.0], [1.0, 5.0, -2.0]]
    """
    return jnp.matrix_transpose(columns(v, n_out, n_in, f))


def columns(
    v: Float[Array, "*b n"], n_out: int, n_in: int, f: int, step: int = 1
) -> Float[Array, "*b columns {n_out}"]:
    """Columns 0, step, 2 step, ... of the leading n_out×n_in part of Z_f(v), each as a row.

    Args:
      v: first column, of length n >= max(n_out, n_in).
      n_out: rows.
      n_in: columns, counting those left out.
      f: 1 or -1.
      step: the step from one column to the next.

    Returns:
      n_in / step columns, rounded up.

    Examples:
      >>> import jax.numpy as jnp
      >>> columns(jnp.array([5.0, 1.0, 2.0]), 2, 3, -1, 2).tolist()
      [[5.0, 1.0], [-1.0, -2.0]]
    """
    wrapped = f * v[..., v.shape[-1] - n_in + 1 :]
    return diagonals.columns(jnp.concatenate([wrapped, v[..., :n_out]], axis=-1), n_out, n_in, step)


def to_dense(params: Params, n_out: int, n_in: int, f: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix of the parameters, entry (i, j) = v_{i-j} or f v_{n+i-j}.

    Args:
      params: {"a", "b"} or {"c"}.
      n_out: rows.
      n_in: columns.
      f: 1 or -1.

    Returns:
      The matrix, in the parameters' dtype.

    Raises:
      ValueError: if the names or lengths of the parameters do not fit.
    """
    v = _vector(params, n_out, n_in)
    return dense(v, n_out, n_in, f).astype(jnp.result_type(*params.values()))


def project(delta: Float[Array, "n_out n_in"], f: int, *, hadamard: bool) -> Params:
    """The nearest f-circulant: v_k is the mean over diagonal k and over f times the diagonal that continues it.

    Args:
      delta: any matrix.
      f: 1 or -1.
      hadamard: whether to return a = 1 and b = v, or c = v.

    Returns:
      {"a", "b"} or {"c"}.

    Raises:
      ValueError: if the matrix is empty.
    """
    n_out, n_in = delta.shape
    check_sizes(n_out, n_in)
    n = max(n_out, n_in)
    sums = diagonals.diagonal_sums(delta)
    straight = jnp.pad(sums[n_in - 1 :], (0, n - n_out))
    wrapped = jnp.pad(sums[: n_in - 1], (n - n_in + 1, 0))
    # Each row (or column, if there are fewer columns) has exactly one entry with i - j = k mod n.
    v = (straight + f * wrapped) / min(n_out, n_in)
    return {"a": jnp.ones_like(v), "b": v} if hadamard else {"c": v}
