"""VeRA: two trained vectors that scale the rows of two frozen random matrices, which all layers of one shape share.

    ΔW = diag(b) B diag(d) A      A: (r, n_in),   B: (n_out, r) random, frozen;   b: (n_out,),   d: (r,) trained

There are n_out + r trained values, and the rank is at most r. A product with a vector costs r (n_out + n_in)
multiply-adds. The random matrices are not saved; they are drawn from a fixed seed. Training starts with b = 0
and d = 0.1.

Source: arXiv 2310.11454.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices.algebra.params import (
    Params,
    check_keys,
    check_ndim,
    check_positive,
    check_shapes,
    check_sizes,
    input_size,
    working_dtype,
)

LEARNING_RATE = 1e-2
PRODUCT = "thin_in_large"
MEASURED_AS = "low_rank"

SHARED = {"A": "model", "B": "model"}

_SEED = 0
_ROUNDS = 100
"""The largest number of rounds of alternating least squares in a projection."""
_LEAST_GAIN = 1e-4
"""The rounds end when the error falls by less than this fraction of the norm of the given matrix."""


def fixed(base: Float[Array, "n_out n_in"], *, rank: int = 256) -> Params:
    """The frozen matrices, uniform in ±√(6 / fan-in) (Kaiming uniform).

    Args:
      base: the weight that is updated, of which only shape and dtype are used.
      rank: r.

    Returns:
      {"A": (r, n_in), "B": (n_out, r)}.

    Raises:
      ValueError: if the weight is empty or rank is below 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> {name: array.shape for name, array in fixed(jnp.ones((4, 3)), rank=2).items()}
      {'A': (2, 3), 'B': (4, 2)}
    """
    n_out, n_in = base.shape
    check_sizes(n_out, n_in)
    check_positive("rank", rank)
    with jax.threefry_partitionable(True):  # the same numbers for every setting of the process
        of_a, of_b = jax.random.split(jax.random.key(_SEED, impl="threefry2x32"))
        a = jax.random.uniform(of_a, (rank, n_in), jnp.float32, minval=-1)
        b = jax.random.uniform(of_b, (n_out, rank), jnp.float32, minval=-1)
    drawn = {"A": math.sqrt(6 / n_in) * a, "B": math.sqrt(6 / rank) * b}
    return {name: array.astype(base.dtype) for name, array in drawn.items()}


def init(key: PRNGKeyArray, n_out: int, n_in: int, *, rank: int = 256, dtype: DTypeLike = jnp.float32) -> Params:
    """Parameters of a zero matrix: b = 0, d = 0.1.

    Args:
      rank: r.

    Returns:
      {"b": (n_out,), "d": (r,)}.

    Raises:
      ValueError: if n_out, n_in or rank is below 1.

    Examples:
      >>> import jax
      >>> {name: vector.shape for name, vector in init(jax.random.key(0), 4, 3, rank=2).items()}
      {'b': (4,), 'd': (2,)}
    """
    check_sizes(n_out, n_in)
    check_positive("rank", rank)
    return {"b": jnp.zeros(n_out, dtype), "d": jnp.full(rank, 0.1, dtype)}


def _check(params: Params, n_out: int, n_in: int) -> None:
    check_keys(params, ("A", "B", "b", "d"))
    check_ndim("d", params["d"], "rank")
    rank = params["d"].shape[0]
    why = f"rank {rank}, n_out={n_out}, n_in={n_in}"
    check_shapes(params, {"b": (n_out,), "A": (rank, n_in), "B": (n_out, rank)}, why)


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product b ⊙ (B (d ⊙ (A x))).

    Returns:
      The products, computed in the common dtype of x and the parameters and returned in x's dtype. Cost:
      r (n_out + n_in) multiply-adds per vector.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"A": jnp.ones((1, 3)), "B": jnp.ones((2, 1)), "b": jnp.array([1.0, 2.0]), "d": jnp.array([0.5])}
      >>> matvec(params, jnp.array([1.0, 2.0, 3.0]), 2).tolist()
      [3.0, 6.0]
    """
    _check(params, n_out, input_size(x))
    inner = jnp.einsum("...i,ri,r->...r", x, params["A"], params["d"])
    return jnp.einsum("...r,or,o->...o", inner, params["B"], params["b"]).astype(x.dtype)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix diag(b) B diag(d) A.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"A": jnp.ones((1, 3)), "B": jnp.ones((2, 1)), "b": jnp.array([1.0, 2.0]), "d": jnp.array([0.5])}
      >>> to_dense(params, 2, 3).tolist()
      [[0.5, 0.5, 0.5], [1.0, 1.0, 1.0]]
    """
    _check(params, n_out, n_in)
    left, right = params["b"][:, None] * params["B"], params["d"][:, None] * params["A"]
    return jnp.matmul(left, right, precision="highest")


def num_params(n_out: int, n_in: int, *, rank: int = 256) -> int:
    """The number of trained values: n_out + r.

    Args:
      rank: r.

    Raises:
      ValueError: if n_out, n_in or rank is below 1.

    Examples:
      >>> num_params(768, 768)
      1024
    """
    check_sizes(n_out, n_in)
    check_positive("rank", rank)
    return n_out + rank


def project(dense: Float[Array, "n_out n_in"], *, fixed: Params, rank: int = 256) -> Params:
    """A member close to a matrix: alternately the best b for a given d and the best d for a given b.

    The start comes from M = dense A⁺, the best unrestricted matrix in the place of diag(b) B diag(d). Divided entrywise
    by B, it should be b dᵀ, so d starts as the first right singular vector of the quotient. If dense is a member and
    the rows of A are independent, this start is already exact.

    Args:
      fixed: the frozen matrices, from `fixed`.
      rank: r, the rank of the frozen matrices.

    Returns:
      {"b", "d"}. Cost: an SVD of A and one of an n_out×r matrix, and O(n_out n_in r + r³) for each of up to 100 rounds.

    Raises:
      ValueError: if the matrix is empty, rank is below 1, or the frozen matrices do not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> matrices = {"A": jnp.eye(2), "B": jnp.ones((2, 2))}
      >>> found = project(jnp.array([[1.0, 2.0], [2.0, 4.0]]), fixed=matrices, rank=2)
      >>> to_dense({**matrices, **found}, 2, 2).round(4).tolist()
      [[1.0, 2.0], [2.0, 4.0]]
    """
    n_out, n_in = dense.shape
    check_sizes(n_out, n_in)
    check_positive("rank", rank)
    _check({**fixed, "b": jnp.zeros(n_out), "d": jnp.zeros(rank)}, n_out, n_in)
    wide = working_dtype(dense)
    of_a, of_b, target = fixed["A"].astype(wide), fixed["B"].astype(wide), dense.astype(wide)
    inner = jnp.matmul(target, jnp.linalg.pinv(of_a), precision="highest") / of_b
    start = jnp.linalg.svd(jnp.where(jnp.isfinite(inner), inner, 0), full_matrices=False)[2][0]

    def error(d: Array) -> Array:
        b = _best_b(of_a, of_b, target, d)
        return jnp.linalg.norm(jnp.matmul(b[:, None] * of_b * d[None], of_a, precision="highest") - target)

    def goes_on(state: tuple) -> Array:
        number, _, before, now = state
        return (number < _ROUNDS) & (before - now > _LEAST_GAIN * jnp.linalg.norm(target))

    def once_more(state: tuple) -> tuple:
        number, d, _, before = state
        d = _best_d(of_a, of_b, target, _best_b(of_a, of_b, target, d))
        return number + 1, d, before, error(d)

    d = jax.lax.while_loop(goes_on, once_more, (0, start, jnp.asarray(jnp.inf, wide), error(start)))[1]
    return {"b": _best_b(of_a, of_b, target, d).astype(dense.dtype), "d": d.astype(dense.dtype)}


def _best_b(of_a: Array, of_b: Array, target: Array, d: Array) -> Float[Array, " n_out"]:
    """The best b for a given d; every row of the matrix determines its own entry."""
    rows = jnp.matmul(of_b * d[None], of_a, precision="highest")
    square = jnp.sum(rows**2, axis=1)
    return jnp.sum(rows * target, axis=1) / jnp.where(square > 0, square, 1)


def _best_d(of_a: Array, of_b: Array, target: Array, b: Array) -> Float[Array, " r"]:
    """The best d for a given b: linear least squares, the solution of least norm."""
    left = b[:, None] * of_b
    normal = jnp.matmul(left.T, left, precision="highest") * jnp.matmul(of_a, of_a.T, precision="highest")
    products = jnp.einsum("oi,or,ri->r", target, left, of_a, precision="highest")
    values, vectors = jnp.linalg.eigh(normal)
    kept = values > jnp.finfo(normal.dtype).eps * len(values) * values[-1]
    along = jnp.where(kept, jnp.matmul(products, vectors, precision="highest") / jnp.where(kept, values, 1), 0)
    return jnp.matmul(vectors, along, precision="highest")
