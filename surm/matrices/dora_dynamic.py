"""DoRA with dynamic rank: low rank with a gate per component; those with a small share of ΔW's norm are switched off.

    ΔW = b diag(e) a = Σ_i e_i b_i a_iᵀ      b: (n_out, r'),   e: (r',),   a: (r', n_in)

(The other DoRA, which decomposes a weight into magnitude and direction, is the field `magnitude` of a `PeftSpec`.)
There are r' (n_out + n_in + 1) trained values, r' = ⌈1.5 rank⌉ by default, and the rank is at most r'. A product with a
vector costs r' (n_out + n_in) multiply-adds. Training starts with e = 0 and random a and b. Until the last components
are switched off, a penalty keeps the variance within each row of a and each column of b small.

Source: arXiv 2405.17357.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from surm.matrices.algebra.gated_low_rank import GATE, init, matvec, num_params, project, to_dense
from surm.matrices.algebra.params import Params

__all__ = ["GATE", "init", "matvec", "num_params", "project", "to_dense"]

LEARNING_RATE = 1e-2
PRODUCT = "thin"
MEASURED_AS = "low_rank"

TRAINING = {"begin": 0.15, "end": 0.5, "every_steps": 10, "penalty": 0.1, "penalty_until": 0.5}
"""The options of the training with their defaults; `surm.matrices.adalora.TRAINING` explains them."""

_DECAY = 0.9


def first_scores(params: Params) -> Float[Array, " r"]:
    """The scores before training, which are 0."""
    return jnp.zeros_like(params["e"])


def next_scores(before: Float[Array, " r"], params: Params, gradients: Params) -> Float[Array, " r"]:
    """The scores after a step: the moving average, with decay 0.9, of ‖e_i b_i a_iᵀ‖ / ‖ΔW‖ (Frobenius norms).

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.eye(2), "b": jnp.eye(2), "e": jnp.array([3.0, -4.0])}
      >>> print(next_scores(jnp.zeros(2), params, params).round(2))  # a tenth of 3/5 and 4/5
      [0.06 0.08]
    """
    a, b, e = params["a"], params["b"], params["e"]
    each = jnp.abs(e) * jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=0)
    # ‖Σ_i e_i b_i a_iᵀ‖² from the inner products of the components, without the dense matrix.
    of_a, of_b = (jnp.matmul(rows, rows.T, precision="highest") for rows in (a, b.T))
    square = jnp.sum(of_a * of_b * e[:, None] * e[None])
    share = jnp.where(square > 0, each / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return _DECAY * before + (1 - _DECAY) * share


def scores(averages: Float[Array, " r"]) -> Float[Array, " r"]:
    """The importance of every component, which is its averaged share of the norm.

    Returns:
      One number per component: `averages` itself.
    """
    return averages


def surplus(progress: Float[Array, ""]) -> Float[Array, ""]:
    """The fraction of the components to be removed that is still on: 1 - t³ at progress t."""
    return 1 - progress**3


def penalty(params: Params) -> Float[Array, ""]:
    """The variance within a row of a plus the variance within a column of b, averaged over the components.

    Examples:
      >>> import jax.numpy as jnp
      >>> float(penalty({"a": jnp.array([[1.0, 3.0]]), "b": jnp.ones((2, 1))}))
      1.0
    """
    return jnp.mean(params["a"].var(1) + params["b"].var(0))
