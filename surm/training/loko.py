"""LoKO: training by an extended Kalman filter, which treats the outputs of a model as measurements of its parameters.

    S = H P Hᵀ + I⊗R      K = P Hᵀ S⁻¹      θ ← θ + K (y - ŷ)      P ← P - diag(K H P)

θ is the vector of n trained parameters, and the diagonal matrix P holds their variances. ŷ are the predictions for a
batch (for a classifier, probabilities), and y are the targets (one-hot). H = ∂ŷ/∂θ has one row per output of each
example. R is the covariance of the measurement noise of one example: a moving average over steps of
(y - ŷ)(y - ŷ)ᵀ + H P Hᵀ. One step takes all examples of a batch as one measurement, whose noise is independent between
examples.

There is no gradient of a loss and no learning rate; the initial variance takes its place. A step costs one backward
pass per output of each example, batch·outputs·n numbers of memory for H, and (batch·outputs)²·n multiplications. With
10 outputs, 64 examples and n = 294,912, H takes 0.7 GB. The method is meant for few outputs and few parameters.

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
"""The decay of the moving average R."""


class KalmanState(NamedTuple):
    """The state of the filter.

    Attributes:
      shares: the variances P divided by their initial values, by path.
      noise: the weighted sum of which R is the average.
      weight: the sum of its weights, so that R = noise / weight.
    """

    shares: Arrays
    noise: Float[Array, "outputs outputs"]
    weight: Float[Array, ""]


def kalman(initial_variances: Mapping[str, Any], outputs: int = 1) -> optax.GradientTransformationExtraArgs:
    """The filter as an optax transformation; it does not read the values of the gradients.

    Args:
      initial_variances: the initial variance of the entries of each trained array, by path.
      outputs: number of outputs of an example.

    Returns:
      A transformation whose `update` takes the keyword arguments `residuals`, y - ŷ, of shape (batch, outputs);
      `jacobians`, ∂ŷ/∂array by path, of shape (batch, outputs, *shape of the array); and `examples`, the number of rows
      that are examples. Residuals and Jacobians of the other rows, which only pad the batch, must be 0.
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
        # Probabilities sum to 1, so S is singular in one direction, from which nothing can be learnt.
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
    """The new `noise` and `weight` of a `KalmanState` after one more step."""
    batch, outputs = residuals.shape
    of_each = jnp.einsum("ikil->kl", spread.reshape(batch, outputs, batch, outputs))
    now = (jnp.matmul(residuals.T, residuals, precision="highest") + of_each) / jnp.maximum(examples, 1)
    return _DECAY * state.noise + (1 - _DECAY) * now, _DECAY * state.weight + (1 - _DECAY)


def measurement(
    outputs_of: Callable[[Arrays], Float[Array, " outputs"]], trainable: Arrays
) -> tuple[Float[Array, " outputs"], Arrays]:
    """The outputs of one example and their derivatives by the trained arrays.

    Args:
      outputs_of: a function from the trained arrays to the outputs ŷ of the example.
      trainable: the trained arrays by path.

    Returns:
      ŷ, of shape (outputs,), and the Jacobian H by path, of shape (outputs, *shape of the array).
    """
    return outputs_of(trainable), jax.jacrev(outputs_of)(trainable)
