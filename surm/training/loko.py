"""LoKO: training by a Kalman filter that takes the outputs of a model for measurements of its parameters.

    S = H P Hᵀ + I⊗R      K = P Hᵀ S⁻¹      θ ← θ + K (y - ŷ)      P ← P - diag(K H P)

θ: the trained numbers, P: their variances, a diagonal. ŷ: the outputs of a batch, for a classifier probabilities, and
y what they should be: one-hot. H: the derivative of ŷ by θ, one row an output. R: the covariance of what is measured,
of one example, the average over steps of (y - ŷ)(y - ŷ)ᵀ + H P Hᵀ. A batch is measured at once, its examples
independently of each other.

There is no gradient and no learning rate; the variance that P starts from takes its place. A step costs a backward
pass for every output of every example, the memory of H, batch·outputs·(trained numbers), and (batch·outputs)²·(trained
numbers) products: 0.7 GB with 10 outputs, 64 examples and 294,912 numbers. It is meant for few of each.

Source: arXiv 2410.11551.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Arrays = dict[str, jax.Array]

_DECAY = 0.95
"""Of the average R."""


class KalmanState(NamedTuple):
    """The variances P over those they start from, by path; and R, with the weight of all that it is an average of."""

    shares: Arrays
    noise: Float[Array, "outputs outputs"]
    weight: Float[Array, ""]


def kalman(initial_variances: Mapping[str, Any], outputs: int = 1) -> optax.GradientTransformationExtraArgs:
    """The filter, as an optax transformation that reads no gradients.

    Args:
      initial_variances: what P starts from, of each trained array, by path.
      outputs: of an example.

    Returns:
      A transformation whose `update` takes, by name, `residuals`, y - ŷ, (batch, outputs), `jacobians`, of ŷ by
      every array, (batch, outputs, *its shape), and `examples`, how many of the batch are real; of the others residuals
      and jacobians are 0.
    """

    def init(params: Arrays) -> KalmanState:
        shares = jax.tree.map(lambda array: jnp.ones_like(array, jnp.float32), params)
        return KalmanState(shares, jnp.zeros((outputs, outputs)), jnp.zeros(()))

    def update(
        gradients: Arrays,
        state: KalmanState,
        params: Arrays | None = None,
        *,
        residuals: Float[Array, "batch outputs"],
        jacobians: Arrays,
        examples: int | Int[Array, ""],
    ) -> tuple[Arrays, KalmanState]:
        variances = {path: initial_variances[path] * share for path, share in state.shares.items()}
        rows = {path: _rows(jacobian) for path, jacobian in jacobians.items()}
        flat = {path: variance.reshape(1, -1) for path, variance in variances.items()}
        spread = sum(jnp.matmul(rows[path] * flat[path], rows[path].T, precision="highest") for path in rows)
        noise, weight = _noise(state, residuals, spread, examples)
        measured = spread + jnp.kron(jnp.eye(len(residuals)), noise / weight)
        # Probabilities add up to 1: in one direction nothing is measured, and nothing to be learnt.
        ridge = 1e-6 * jnp.trace(measured) / len(measured) + jnp.finfo(measured.dtype).tiny
        factors = jax.scipy.linalg.lu_factor(measured + ridge * jnp.eye(len(measured)))
        solve = functools.partial(jax.scipy.linalg.lu_solve, factors)
        error, seen = solve(residuals.reshape(-1)), {path: solve(row) for path, row in rows.items()}
        pulled = {path: jnp.matmul(error, rows[path], precision="highest") for path in rows}
        updates = {path: variances[path] * pulled[path].reshape(variances[path].shape) for path in rows}
        lost = {path: (flat[path][0] * jnp.sum(rows[path] * seen[path], axis=0)) for path in rows}
        shares = {
            path: share * jnp.clip(1 - lost[path].reshape(share.shape), 0, 1) for path, share in state.shares.items()
        }
        updates = {path: updates[path].astype(gradients[path].dtype) for path in gradients}
        return updates, KalmanState(shares, noise, weight)

    return optax.GradientTransformationExtraArgs(init, update)


def _rows(jacobian: Float[Array, "batch outputs *shape"]) -> Float[Array, "measured numbers"]:
    return jacobian.reshape(jacobian.shape[0] * jacobian.shape[1], -1)


def _noise(
    state: KalmanState,
    residuals: Float[Array, "batch outputs"],
    spread: Float[Array, "measured measured"],
    examples: int | Int[Array, ""],
) -> tuple[Float[Array, "outputs outputs"], Float[Array, ""]]:
    """The sums that R is the quotient of, after another step."""
    batch, outputs = residuals.shape
    of_each = jnp.einsum("ikil->kl", spread.reshape(batch, outputs, batch, outputs))
    now = (jnp.matmul(residuals.T, residuals, precision="highest") + of_each) / jnp.maximum(examples, 1)
    return _DECAY * state.noise + (1 - _DECAY) * now, _DECAY * state.weight + (1 - _DECAY)


def measurement(
    outputs_of: Callable[[Arrays], Float[Array, " outputs"]], trainable: Arrays
) -> tuple[Float[Array, " outputs"], Arrays]:
    """What one example measures: its outputs, and their derivatives.

    Args:
      outputs_of: from the trained arrays to the outputs of the example.
      trainable: by path.

    Returns:
      ŷ, and H by path.
    """
    return outputs_of(trainable), jax.jacrev(outputs_of)(trainable)
