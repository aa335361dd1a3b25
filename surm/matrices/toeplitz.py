"""Toeplitz matrices, which are constant along every diagonal, and products of two symmetric ones.

    [t0 t1 t2 t3]
    [t1 t0 t1 t2]      T(t) is symmetric: entry (i, j) = t_{|i-j|}.  The default is ΔW = T(b) T(a).
    [t2 t1 t0 t1]
    [t3 t2 t1 t0]

There are three forms, which differ in the names of their parameters; n = max(n_out, n_in):

    parameters        options                      ΔW                                   trained values
    {"a", "b"}        factors=2                    T(b) T(a), leading n_out×n_in part   2n
    {"b"}             factors=1                    T(b), leading n_out×n_in part        n
    {"b_diagonals"}   factors=1, symmetric=False   any Toeplitz matrix                  n_out + n_in - 1

`b_diagonals` lists the diagonals from the top right corner to the bottom left one: the first row backwards, then the
rest of the first column. ΔW can have any rank in each form. But a square T(b) T(a) is centrosymmetric (it does not
change if it is rotated by 180°), and such matrices have only half of the dimensions of all matrices. A product with a
vector costs O(n log n) by FFT. Training starts with b = 0 (or b_diagonals = 0) and a random a.

Source: arXiv 2406.17740; G. H. Golub, C. F. Van Loan, Matrix Computations, 4th ed., section 4.7.
"""

import functools

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices.algebra import centrosymmetric, diagonals, fourier, toeplitz_pair, toeplitz_product
from surm.matrices.algebra.params import Params, check_keys, check_shape, check_sizes, input_size, working_dtype

LEARNING_RATE, ADAPTER_LEARNING_RATE = 3e-3, 2e-3
LINEAR = ("b", "b_diagonals")
PRODUCT = "transforms"


def _check_options(n_out: int, n_in: int, factors: int, symmetric: bool) -> None:
    """Refuse options that are none of the three forms."""
    check_sizes(n_out, n_in)
    if factors not in (1, 2):
        raise ValueError(f"factors must be 1 or 2; given factors={factors}")
    if factors == 2 and not symmetric:
        raise ValueError(
            "given factors=2, symmetric=False; expected factors=1, symmetric=False (one general Toeplitz "
            "matrix) or factors=2, symmetric=True (a product of two symmetric ones)"
        )


def init(
    key: PRNGKeyArray,
    n_out: int,
    n_in: int,
    *,
    factors: int = 2,
    symmetric: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters of a zero matrix: a ~ N(0, 0.02²), all other parameters 0.

    Args:
      factors: 2 for T(b) T(a), 1 for one matrix.
      symmetric: whether a single matrix is symmetric; two factors always are.

    Returns:
      {"a", "b"}, {"b"} or {"b_diagonals"}.

    Raises:
      ValueError: if a size is below 1, or the options are none of the three forms.

    Examples:
      >>> import jax
      >>> {name: vector.shape for name, vector in init(jax.random.key(0), 2, 3).items()}
      {'a': (3,), 'b': (3,)}
      >>> init(jax.random.key(0), 2, 3, factors=1, symmetric=False)["b_diagonals"].shape
      (4,)
    """
    _check_options(n_out, n_in, factors, symmetric)
    if not symmetric:
        return {"b_diagonals": jnp.zeros(n_out + n_in - 1, dtype)}
    zero = jnp.zeros(max(n_out, n_in), dtype)
    return {"b": zero} if factors == 1 else {"a": 0.02 * jax.random.normal(key, zero.shape, dtype), "b": zero}


def _check_params(params: Params, n_out: int, n_in: int) -> tuple[str, ...]:
    """The names that tell the form of the parameters, after a check of their lengths."""
    form = check_keys(params, ("a", "b"), ("b",), ("b_diagonals",))
    given = f"with n_out={n_out}, n_in={n_in}"
    if form == ("b_diagonals",):
        check_shape("b_diagonals", params["b_diagonals"], (n_out + n_in - 1,), f"n_out + n_in - 1 {given}")
        return form
    for name in form:
        check_shape(name, params[name], (max(n_out, n_in),), f"max(n_out, n_in) {given}")
    return form


def matvec(
    params: Params, x: Float[Array, "*b n_in"], n_out: int, *, convolve: fourier.Convolution = fourier.convolve
) -> Float[Array, "*b {n_out}"]:
    """The product T x or T(b) (T(a) x), with one convolution for each factor.

    Returns:
      The products, in x's dtype. Cost: two real FFTs per vector and factor, padded to the first smooth length that
      holds the factor's diagonals (n_out + n_in - 1 for a single factor, at most 2n - 1 for two).
      Only params and x are kept for the backward pass.

    Examples:
      >>> import jax.numpy as jnp
      >>> matvec({"b": jnp.array([0.0, 1.0, 0.0])}, jnp.array([1.0, 2.0, 3.0]), 3).round().tolist()
      [2.0, 4.0, 2.0]
    """
    _check_params(params, n_out, input_size(x))
    return _product(params, x, n_out, convolve)


@functools.partial(jax.jit, static_argnums=(2, 3))
@functools.partial(jax.checkpoint, static_argnums=(2, 3))
def _product(params, x, n_out, convolve):
    if "a" in params:
        y = toeplitz_pair.matvec(params["b"], params["a"], x, n_out, convolve)
    else:
        y = diagonals.product(_diagonals(params, n_out, x.shape[-1]), x, n_out, convolve)
    return y.astype(x.dtype)


def _diagonals(params: Params, n_out: int, n_in: int) -> Float[Array, " d"]:
    """The list of diagonals of a form with one factor."""
    return params["b_diagonals"] if "b_diagonals" in params else diagonals.symmetric(params["b"], n_out, n_in)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix: T, or the leading part of T(b) T(a).

    Examples:
      >>> import jax.numpy as jnp
      >>> to_dense({"b": jnp.array([5.0, 1.0, 2.0])}, 2, 3).tolist()
      [[5.0, 1.0, 2.0], [1.0, 5.0, 1.0]]
      >>> to_dense({"b_diagonals": jnp.array([3.0, 2.0, 1.0, 4.0])}, 2, 3).tolist()
      [[1.0, 2.0, 3.0], [4.0, 1.0, 2.0]]
    """
    form = _check_params(params, n_out, n_in)
    if form != ("a", "b"):
        return diagonals.from_diagonals(_diagonals(params, n_out, n_in), n_out, n_in)
    a, b, n = params["a"], params["b"], max(n_out, n_in)
    wide = working_dtype(a, b)  # so that bfloat16 is rounded only once
    left = diagonals.from_diagonals(diagonals.symmetric(b.astype(wide), n_out, n), n_out, n)
    right = diagonals.from_diagonals(diagonals.symmetric(a.astype(wide), n, n_in), n, n_in)
    return jnp.matmul(left, right, precision="highest").astype(jnp.result_type(a, b))


def quick_dense(
    params: Params, n_out: int, n_in: int, *, precision: PrecisionLike = "highest"
) -> Float[Array, "{n_out} {n_in}"]:
    """`to_dense` up to rounding, on a CPU in O(n² √n) instead of O(n³) for two factors; see `toeplitz_product`.

    Examples:
      >>> import jax.numpy as jnp
      >>> quick_dense({"a": jnp.array([0.0, 1.0]), "b": jnp.array([1.0, 2.0])}, 2, 2).round().tolist()
      [[2.0, 1.0], [1.0, 2.0]]
    """
    _check_params(params, n_out, n_in)
    return _dense(params, n_out, n_in, max(n_out, n_in), precision)


def _dense(params: Params, rows: int, n_in: int, n: int, precision: PrecisionLike) -> Float[Array, "{rows} {n_in}"]:
    """The first rows of the matrix whose larger side is n, computed in the fastest way."""
    if "a" not in params:
        return diagonals.from_diagonals(_diagonals(params, rows, n_in), rows, n_in)
    a, b = params["a"], params["b"]
    wide = working_dtype(a, b)  # so that bfloat16 is rounded only once
    left, right = diagonals.symmetric(b.astype(wide), rows, n), diagonals.symmetric(a.astype(wide), n, n_in)
    return toeplitz_product.dense(left, right, rows, n_in, precision=precision).astype(jnp.result_type(a, b))


def dense_matvec(
    params: Params, x: Float[Array, "*b n_in"], n_out: int, *, matmul: centrosymmetric.Matmul = jnp.matmul
) -> Float[Array, "*b {n_out}"]:
    """`matvec` by a product with the dense matrix, which costs half if ΔW is n×n, n even, with symmetric factors.

    T(b) and T(b) T(a) are then centrosymmetric, so that the upper half of the matrix is enough.

    Returns:
      The products, in x's dtype, to which the matrix is rounded before it is multiplied.

    Examples:
      >>> import jax.numpy as jnp
      >>> dense_matvec({"b": jnp.array([5.0, 1.0])}, jnp.array([1.0, 2.0]), 2).tolist()
      [7.0, 11.0]
    """
    n_in = input_size(x)
    form = _check_params(params, n_out, n_in)
    if n_out != n_in or n_in % 2 or form == ("b_diagonals",):
        return matmul(x, quick_dense(params, n_out, n_in).T.astype(x.dtype))
    return centrosymmetric.product(_dense(params, n_out // 2, n_in, n_in, "highest"), x, matmul)


def num_params(n_out: int, n_in: int, *, factors: int = 2, symmetric: bool = True) -> int:
    """The number of trained values: 2n for two factors, n for one symmetric factor, n_out + n_in - 1 for a general one.

    Here n = max(n_out, n_in).

    Args:
      factors: 2 for T(b) T(a), 1 for one matrix.
      symmetric: whether a single matrix is symmetric; two factors always are.

    Raises:
      ValueError: if a size is below 1, or the options are none of the three forms.

    Examples:
      >>> num_params(768, 768), num_params(768, 768, factors=1)
      (1536, 768)
      >>> num_params(768, 768, factors=1, symmetric=False)
      1535
    """
    _check_options(n_out, n_in, factors, symmetric)
    return factors * max(n_out, n_in) if symmetric else n_out + n_in - 1


def project(dense: Float[Array, "n_out n_in"], *, factors: int = 2, symmetric: bool = True) -> Params:
    """The nearest member, or one close to it: means over diagonals for one factor, alternating least squares for two.

    For one factor the result is the nearest matrix. For two factors it is a local optimum, never worse than the
    nearest symmetric Toeplitz matrix, and exact for most members; see `toeplitz_pair`.

    Args:
      factors: 2 for T(b) T(a), 1 for one matrix.
      symmetric: whether a single matrix is symmetric; two factors always are.

    Returns:
      {"a", "b"}, {"b"} or {"b_diagonals"}. Cost O(n_out n_in) for one factor.

    Raises:
      ValueError: if the matrix is empty, or the options are none of the three forms.

    Examples:
      >>> import jax.numpy as jnp
      >>> project(jnp.array([[1.0, 2.0], [4.0, 3.0]]), factors=1, symmetric=False)["b_diagonals"].tolist()
      [2.0, 2.0, 4.0]
    """
    n_out, n_in = dense.shape
    _check_options(n_out, n_in, factors, symmetric)
    target = dense.astype(working_dtype(dense))
    if not symmetric:
        counts = diagonals.diagonal_sums(jnp.ones_like(target))
        found = {"b_diagonals": diagonals.diagonal_sums(target) / counts}
    elif factors == 1:
        found = {"b": diagonals.project_symmetric(target)}
    else:
        found = toeplitz_pair.project(target)
    return {name: vector.astype(dense.dtype) for name, vector in found.items()}
