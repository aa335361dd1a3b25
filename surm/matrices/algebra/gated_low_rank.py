"""Low rank with a gate for every component, for methods that learn how many components a layer needs.

    ΔW = b diag(e) a = Σ_i e_i b_i a_iᵀ      b: (n_out, r'),   e: (r',),   a: (r', n_in)

A component whose gate is 0 contributes nothing. Training starts with r' = `initial_rank` components a layer, and ends
with `rank` of them a layer on average, the most important ones of the whole model: see
`surm.peft.schedules.rank_budget`.

Source: AdaLoRA, arXiv 2303.10512, equation 3.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices import low_rank
from surm.matrices.algebra import singular
from surm.matrices.algebra.params import (
    Params,
    check_keys,
    check_ndim,
    check_positive,
    check_shapes,
    check_sizes,
    input_size,
)

GATE = "e"
"""The parameter that switches a component off when it is 0."""


def components(rank: int, initial_rank: int | None) -> int:
    """The number r' of components to start with: `initial_rank`, or one and a half times `rank`.

    Args:
      rank: components that are left after training.
      initial_rank: None for ⌈1.5 rank⌉.

    Returns:
      r'.

    Raises:
      ValueError: if a rank is below 1, or `rank` is above `initial_rank`.

    Examples:
      >>> components(8, None)
      12
    """
    check_positive("rank", rank)
    if initial_rank is None:
        return math.ceil(1.5 * rank)
    if rank > initial_rank:
        raise ValueError(f"rank must be at most initial_rank; given {rank=}, {initial_rank=}")
    return initial_rank


def init(
    key: PRNGKeyArray,
    n_out: int,
    n_in: int,
    *,
    rank: int = 8,
    initial_rank: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters of a zero matrix: a, b ~ N(0, 0.02²), e = 0.

    Args:
      rank: components that are left after training.
      initial_rank: r', components to start with; None for ⌈1.5 rank⌉.

    Returns:
      {"a": (r', n_in), "b": (n_out, r'), "e": (r',)}.

    Raises:
      ValueError: if a size or rank is below 1, or rank is above initial_rank.

    Examples:
      >>> import jax
      >>> {name: array.shape for name, array in init(jax.random.key(0), 4, 3, rank=2).items()}
      {'a': (3, 3), 'b': (4, 3), 'e': (3,)}
    """
    check_sizes(n_out, n_in)
    r = components(rank, initial_rank)
    of_a, of_b = jax.random.split(key)
    return {
        "a": 0.02 * jax.random.normal(of_a, (r, n_in), dtype),
        "b": 0.02 * jax.random.normal(of_b, (n_out, r), dtype),
        "e": jnp.zeros(r, dtype),
    }


def _factors(params: Params, n_out: int, n_in: int) -> Params:
    """The arrays of `low_rank` for the same matrix, after a check of the shapes."""
    check_keys(params, ("a", "b", "e"))
    a, b, e = params["a"], params["b"], params["e"]
    check_ndim("a", a, "rank n_in")
    why = f"rank {a.shape[0]}, n_out={n_out}, n_in={n_in}"
    check_shapes(params, {"a": (a.shape[0], n_in), "b": (n_out, a.shape[0]), "e": a.shape[:1]}, why)
    return {"a": e[:, None] * a, "b": b}


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product b (e ⊙ (a x)).

    Returns:
      The products, computed in the common dtype of x and the parameters and returned in x's dtype. Cost:
      r' (n_out + n_in) multiply-adds per vector.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.ones((1, 3)), "b": jnp.array([[1.0], [2.0]]), "e": jnp.array([0.5])}
      >>> matvec(params, jnp.array([1.0, 2.0, 3.0]), 2).tolist()
      [3.0, 6.0]
    """
    return low_rank.matvec(_factors(params, n_out, input_size(x)), x, n_out)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix b diag(e) a.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.ones((1, 3)), "b": jnp.array([[1.0], [2.0]]), "e": jnp.array([0.5])}
      >>> to_dense(params, 2, 3).tolist()
      [[0.5, 0.5, 0.5], [1.0, 1.0, 1.0]]
    """
    return low_rank.to_dense(_factors(params, n_out, n_in), n_out, n_in)


def num_params(n_out: int, n_in: int, *, rank: int = 8, initial_rank: int | None = None) -> int:
    """The number of trained values: r' (n_out + n_in + 1).

    Args:
      rank: components that are left after training.
      initial_rank: r', components to start with; None for ⌈1.5 rank⌉.

    Raises:
      ValueError: if a size or rank is below 1, or rank is above initial_rank.

    Examples:
      >>> num_params(768, 768, rank=8)
      18444
    """
    return low_rank.num_params(n_out, n_in, rank=components(rank, initial_rank)) + components(rank, initial_rank)


def project(dense: Float[Array, "n_out n_in"], *, rank: int = 8, initial_rank: int | None = None) -> Params:
    """The nearest matrix of r' components: the truncated SVD, with the singular values as gates.

    Args:
      rank: components that are left after training.
      initial_rank: r', components to start with; None for ⌈1.5 rank⌉. Components beyond min(n_out, n_in) are zero.

    Returns:
      {"a", "b", "e"}. Cost: one SVD.

    Raises:
      ValueError: if the matrix is empty, a rank is below 1, or rank is above initial_rank.

    Examples:
      >>> import jax.numpy as jnp
      >>> project(jnp.array([[3.0, 0.0], [0.0, 4.0]]), rank=1, initial_rank=2)["e"].tolist()
      [4.0, 3.0]
    """
    check_sizes(*dense.shape)
    u, s, vt = singular.decompose(dense, components(rank, initial_rank))
    return {name: array.astype(dense.dtype) for name, array in {"a": vt, "b": u, "e": s}.items()}


def not_orthonormal(rows: Float[Array, "r n"]) -> Float[Array, ""]:
    """How far rows are from orthonormal: the Frobenius norm of rows rowsᵀ - I."""
    square = jnp.sum((jnp.matmul(rows, rows.T, precision="highest") - jnp.eye(len(rows), dtype=rows.dtype)) ** 2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)  # the derivative at 0 is 0, not NaN
