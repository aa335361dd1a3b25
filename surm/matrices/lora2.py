"""LoRA²: gated components whose two factors are themselves products of low rank.

    ΔW = (b_out b_in) diag(e) (a_out a_in)      b_out: (n_out, p),   b_in: (p, r'),   a_out: (r', p),   a_in: (p, n_in)

The outer factors choose p = `inner` directions of the weights; the inner ones mix them into r' components, each with a
gate in e: (r',). That makes (n_out + n_in) p + 2 r' p + r' trained values and rank min(r', p). A product with a vector
costs p (n_out + n_in + 2 r') multiply-adds. Training starts with e = 0 and random factors. A penalty keeps the four
factors close to orthonormal; the least important components are switched off as in AdaLoRA.

Source: arXiv 2408.06854.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices.adalora import TRAINING, first_scores, next_scores, surplus
from surm.matrices.algebra import gated_low_rank, sensitivity
from surm.matrices.algebra.gated_low_rank import GATE, components, not_orthonormal
from surm.matrices.algebra.params import (
    Params,
    check_keys,
    check_ndim,
    check_positive,
    check_shapes,
    check_sizes,
    input_size,
)

__all__ = ["GATE", "TRAINING", "first_scores", "next_scores", "surplus"]

LEARNING_RATE = 1e-2
PRODUCT = "thin_in_large"
MEASURED_AS = "low_rank"


def init(
    key: PRNGKeyArray,
    n_out: int,
    n_in: int,
    *,
    rank: int = 8,
    initial_rank: int | None = None,
    inner: int = 8,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters of a zero matrix: e = 0, all other parameters ~ N(0, 0.02²).

    Args:
      rank: components that are left after training.
      initial_rank: r', components to start with; None for ⌈1.5 rank⌉.
      inner: p, the inner size of both factors.

    Returns:
      {"a_in": (p, n_in), "a_out": (r', p), "b_in": (p, r'), "b_out": (n_out, p), "e": (r',)}.

    Raises:
      ValueError: if a size or rank is below 1, or rank is above initial_rank.

    Examples:
      >>> import jax
      >>> {name: array.shape for name, array in init(jax.random.key(0), 4, 3, rank=2, inner=1).items()}
      {'a_in': (1, 3), 'a_out': (3, 1), 'b_in': (1, 3), 'b_out': (4, 1), 'e': (3,)}
    """
    check_sizes(n_out, n_in)
    check_positive("inner", inner)
    r = components(rank, initial_rank)
    shapes = {"a_in": (inner, n_in), "a_out": (r, inner), "b_in": (inner, r), "b_out": (n_out, inner)}
    keys = jax.random.split(key, len(shapes))
    drawn = {name: 0.02 * jax.random.normal(key, shapes[name], dtype) for name, key in zip(shapes, keys, strict=True)}
    return {**drawn, "e": jnp.zeros(r, dtype)}


def _check(params: Params, n_out: int, n_in: int) -> None:
    check_keys(params, ("a_in", "a_out", "b_in", "b_out", "e"))
    check_ndim("a_out", params["a_out"], "rank inner")
    r, p = params["a_out"].shape
    why = f"rank {r}, inner {p}, n_out={n_out}, n_in={n_in}"
    check_shapes(params, {"a_in": (p, n_in), "b_in": (p, r), "b_out": (n_out, p), "e": (r,)}, why)


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product b_out (b_in (e ⊙ (a_out (a_in x)))).

    Returns:
      The products, computed in the common dtype of x and the parameters and returned in x's dtype. Cost:
      p (n_out + n_in + 2 r') multiply-adds per vector.

    Examples:
      >>> import jax.numpy as jnp
      >>> one = jnp.ones((1, 1))
      >>> params = {"a_in": jnp.ones((1, 2)), "a_out": one, "b_in": one, "b_out": one, "e": jnp.array([0.5])}
      >>> matvec(params, jnp.array([1.0, 2.0]), 1).tolist()
      [1.5]
    """
    _check(params, n_out, input_size(x))
    y = jnp.einsum("...i,pi->...p", x, params["a_in"])
    y = jnp.einsum("...p,rp,r->...r", y, params["a_out"], params["e"])
    return jnp.einsum("...r,pr,op->...o", y, params["b_in"], params["b_out"]).astype(x.dtype)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix (b_out b_in) diag(e) (a_out a_in).

    Examples:
      >>> import jax.numpy as jnp
      >>> one = jnp.ones((1, 1))
      >>> params = {"a_in": jnp.ones((1, 2)), "a_out": one, "b_in": one, "b_out": one, "e": jnp.array([0.5])}
      >>> to_dense(params, 1, 2).tolist()
      [[0.5, 0.5]]
    """
    _check(params, n_out, n_in)
    a = jnp.matmul(params["a_out"], params["a_in"], precision="highest")
    b = jnp.matmul(params["b_out"], params["b_in"], precision="highest")
    return gated_low_rank.to_dense({"a": a, "b": b, "e": params["e"]}, n_out, n_in)


def num_params(n_out: int, n_in: int, *, rank: int = 8, initial_rank: int | None = None, inner: int = 8) -> int:
    """The number of trained values: p (n_out + n_in) + 2 r' p + r'.

    Args:
      rank: components that are left after training.
      initial_rank: r', components to start with; None for ⌈1.5 rank⌉.
      inner: p, the inner size of both factors.

    Raises:
      ValueError: if a size or rank is below 1, or rank is above initial_rank.

    Examples:
      >>> num_params(768, 768, rank=8, initial_rank=8)
      12424
    """
    check_sizes(n_out, n_in)
    check_positive("inner", inner)
    r = components(rank, initial_rank)
    return inner * (n_out + n_in) + 2 * r * inner + r


def project(
    dense: Float[Array, "n_out n_in"], *, rank: int = 8, initial_rank: int | None = None, inner: int = 8
) -> Params:
    """The nearest matrix: the SVD truncated to rank min(r', p), with the singular values as gates.

    Args:
      rank: components that are left after training.
      initial_rank: r', components to start with; None for ⌈1.5 rank⌉.
      inner: p, the inner size of both factors.

    Returns:
      Parameters as `init` makes them. The outer factors hold the first p pairs of singular vectors, and the inner ones
      pick one pair for each component. Cost: one SVD.

    Raises:
      ValueError: if the matrix is empty, a size or rank is below 1, or rank is above initial_rank.

    Examples:
      >>> import jax.numpy as jnp
      >>> project(jnp.array([[3.0, 0.0], [0.0, 4.0]]), rank=2, inner=1)["e"].tolist()
      [4.0, 0.0, 0.0]
    """
    check_positive("inner", inner)
    r = components(rank, initial_rank)
    found = gated_low_rank.project(dense, rank=inner, initial_rank=inner)
    chosen = jnp.eye(inner, dtype=dense.dtype)[jnp.arange(r) % inner]  # those beyond p have a gate of 0 but a gradient
    e = jnp.pad(found["e"][:r], (0, max(r - inner, 0)))
    return {"a_in": found["a"], "a_out": chosen, "b_in": chosen.T, "b_out": found["b"], "e": e}


def scores(averages: sensitivity.Smoothed) -> Float[Array, " r"]:
    """The importance of every component: its gate's plus the means over its row of a_out and its column of b_in."""
    of = sensitivity.importance(averages)
    return of["e"] + of["a_out"].mean(1) + of["b_in"].mean(0)


def penalty(params: Params) -> Float[Array, ""]:
    """How far the four factors are from having orthonormal rows or columns, whichever are fewer.

    Returns:
      The sum of the Frobenius norms ‖m mᵀ - I‖ of the four factors, transposed if they have more rows than columns.

    Examples:
      >>> import jax.numpy as jnp
      >>> names = ("a_in", "a_out", "b_in", "b_out")
      >>> float(penalty(dict.fromkeys(names, jnp.eye(2, 3))))
      0.0
    """
    factors = (params[name] for name in ("a_in", "a_out", "b_in", "b_out"))
    return sum(not_orthonormal(m if m.shape[0] <= m.shape[1] else m.T) for m in factors)
