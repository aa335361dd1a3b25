"""DoRA of dynamic rank: gated components, kept by their share in the norm of the update.

    ΔW = b diag(e) a = Σ_i e_i b_i a_iᵀ      b: (n_out, r'),   e: (r',),   a: (r', n_in)

(Not the DoRA that decomposes a weight into magnitude and direction: that is `magnitude` of a `PeftSpec`.) A penalty
keeps the numbers of a row of a, and of a column of b, from spreading until the superfluous components are gone.

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
"""Options of the training, with their defaults; see `surm.matrices.adalora.TRAINING`."""

_DECAY = 0.9


def first_scores(params: Params) -> Float[Array, " r"]:
    """The scores before training: 0."""
    return jnp.zeros_like(params["e"])


def next_scores(before: Float[Array, " r"], params: Params, gradients: Params) -> Float[Array, " r"]:
    """The scores after a step: the average, with decay 0.9, of ‖e_i b_i a_iᵀ‖ / ‖ΔW‖, Frobenius norms.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.eye(2), "b": jnp.eye(2), "e": jnp.array([3.0, -4.0])}
      >>> print(next_scores(jnp.zeros(2), params, params).round(2))  # a tenth of 3/5 and 4/5
      [0.06 0.08]
    """
    a, b, e = params["a"], params["b"], params["e"]
    each = jnp.abs(e) * jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=0)
    # ‖Σ_i e_i b_i a_iᵀ‖² by the products of components with each other, without the dense matrix.
    of_a, of_b = (jnp.matmul(rows, rows.T, precision="highest") for rows in (a, b.T))
    square = jnp.sum(of_a * of_b * e[:, None] * e[None])
    share = jnp.where(square > 0, each / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return _DECAY * before + (1 - _DECAY) * share


def scores(averages: Float[Array, " r"]) -> Float[Array, " r"]:
    """The importance of every component: its averaged share in the norm.

    Returns:
      The same.
    """
    return averages


def surplus(progress: Float[Array, ""]) -> Float[Array, ""]:
    """The share of the superfluous components that is still there: 1 - t³."""
    return 1 - progress**3


def penalty(params: Params) -> Float[Array, ""]:
    """The variance of the numbers of a row of a and of a column of b, the mean over components.

    Examples:
      >>> import jax.numpy as jnp
      >>> float(penalty({"a": jnp.array([[1.0, 3.0]]), "b": jnp.ones((2, 1))}))
      1.0
    """
    return jnp.mean(params["a"].var(1) + params["b"].var(0))
