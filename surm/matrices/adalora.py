"""AdaLoRA: gated components, kept where the loss hangs on them, their factors held near orthogonal.

    ΔW = b diag(e) a = Σ_i e_i b_i a_iᵀ      b: (n_out, r'),   e: (r',),   a: (r', n_in)

A singular value decomposition with no decomposing: a penalty keeps the rows of a, and the columns of b, orthonormal.
Of all layers' components the least important are switched off, more and more of them:
`surm.peft.schedules.rank_budget`.

Source: arXiv 2303.10512.
"""

from jaxtyping import Array, Float

from surm.matrices.algebra import sensitivity
from surm.matrices.algebra.gated_low_rank import GATE, init, matvec, not_orthonormal, num_params, project, to_dense
from surm.matrices.algebra.params import Params

__all__ = ["GATE", "init", "matvec", "num_params", "project", "to_dense"]

LEARNING_RATE = 1e-2
PRODUCT = "thin"
MEASURED_AS = "low_rank"

TRAINING = {"begin": 0.1, "end": 0.7, "every_steps": 10, "penalty": 0.1, "penalty_until": 1.0}
"""Options of the training, with their defaults: the shares of the steps between which components are switched off, and
every how many of them; the penalty's weight, and the share of the steps from which on there is none."""

first_scores, next_scores = sensitivity.start, sensitivity.follow


def scores(averages: sensitivity.Smoothed) -> Float[Array, " r"]:
    """The importance of every component: its gate's, and the means of its row's and its column's.

    Returns:
      One number a component (equation 7).
    """
    of = sensitivity.importance(averages)
    return of["e"] + of["a"].mean(1) + of["b"].mean(0)


def surplus(progress: Float[Array, ""]) -> Float[Array, ""]:
    """The share of the superfluous components that is still there: (1 - t)³ (equation 12)."""
    return (1 - progress) ** 3


def penalty(params: Params) -> Float[Array, ""]:
    """The distance from orthonormal factors: ‖a aᵀ - I‖ + ‖bᵀ b - I‖, Frobenius norms.

    Returns:
      A number from 0 on (equation 4, but for the squares of the norms, which the authors' code leaves out too).

    Examples:
      >>> import jax.numpy as jnp
      >>> float(penalty({"a": jnp.eye(2, 3), "b": 2 * jnp.eye(3, 2)}))  # bᵀ b = 4 I
      4.242640495300293
    """
    return not_orthonormal(params["a"]) + not_orthonormal(params["b"].T)
