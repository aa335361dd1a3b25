"""AdaLoRA: low rank with a gate per component; the least important components are switched off during training.

    ΔW = b diag(e) a = Σ_i e_i b_i a_iᵀ      b: (n_out, r'),   e: (r',),   a: (r', n_in)

The form is that of a singular value decomposition, but no decomposition is computed: a penalty keeps the rows of a and
the columns of b close to orthonormal. There are r' (n_out + n_in + 1) trained values, r' = ⌈1.5 rank⌉ by default, and
the rank is at most r'. A product with a vector costs r' (n_out + n_in) multiply-adds. Training starts with e = 0 and
random a and b. The importance of a component comes from its weights and gradients; `surm.peft.schedules.rank_budget`
compares the components of all layers and switches off the least important ones, until `rank` per layer are left on
average.

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
"""The options of the training with their defaults. Components are switched off every `every_steps` steps between the
fractions `begin` and `end` of the training. The penalty has the weight `penalty` up to the fraction `penalty_until`."""

first_scores, next_scores = sensitivity.start, sensitivity.follow


def scores(averages: sensitivity.Smoothed) -> Float[Array, " r"]:
    """The importance of every component: its gate's plus the means over its row of a and its column of b.

    Returns:
      One number per component (equation 7).
    """
    of = sensitivity.importance(averages)
    return of["e"] + of["a"].mean(1) + of["b"].mean(0)


def surplus(progress: Float[Array, ""]) -> Float[Array, ""]:
    """The fraction of the components to be removed that is still on: (1 - t)³ at progress t (equation 12)."""
    return (1 - progress) ** 3


def penalty(params: Params) -> Float[Array, ""]:
    """How far the factors are from orthonormal: ‖a aᵀ - I‖ + ‖bᵀ b - I‖ in Frobenius norms.

    Returns:
      A number that is at least 0. (Equation 4 has squares of the norms; the authors' code has the norms, as here.)

    Examples:
      >>> import jax.numpy as jnp
      >>> float(penalty({"a": jnp.eye(2, 3), "b": 2 * jnp.eye(3, 2)}))  # bᵀ b = 4 I
      4.242640495300293
    """
    return not_orthonormal(params["a"]) + not_orthonormal(params["b"].T)
