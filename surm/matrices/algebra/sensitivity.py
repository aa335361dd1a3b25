"""The importance of each trained value for the loss, averaged over the steps; AdaLoRA keeps components by it.

    s_t = |w g|      S_t = β S_{t-1} + (1-β) s_t      U_t = β U_{t-1} + (1-β) |s_t - S_t|      importance  S_t U_t

Source: AdaLoRA, arXiv 2303.10512, equations 8 to 10, with both decays 0.85 as there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from surm.matrices.algebra.params import Params

_DECAY = 0.85


class Smoothed(NamedTuple):
    """The moving averages S (of the sensitivity) and U (of its deviation) of every parameter."""

    sensitivity: Params
    uncertainty: Params


def start(params: Params) -> Smoothed:
    """The moving averages before training, which are 0.

    Args:
      params: the parameters of a matrix.

    Returns:
      Zeros of the parameters' shapes.
    """
    return Smoothed(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))


def follow(before: Smoothed, params: Params, gradients: Params) -> Smoothed:
    """The moving averages after a step.

    Args:
      before: the averages before the step.
      params: the parameters after the step.
      gradients: the gradients of the step.

    Returns:
      The moving averages.
    """

    def smoothed(average, value):
        return _DECAY * average + (1 - _DECAY) * value

    now = jax.tree.map(lambda w, g: jnp.abs(w * g), params, gradients)
    sensitivity = jax.tree.map(smoothed, before.sensitivity, now)
    deviation = jax.tree.map(lambda s, average: jnp.abs(s - average), now, sensitivity)
    return Smoothed(sensitivity, jax.tree.map(smoothed, before.uncertainty, deviation))


def importance(averages: Smoothed) -> Params:
    """The importance of every number.

    Args:
      averages: the result of `follow`.

    Returns:
      S U, of the parameters' shapes.

    Examples:
      >>> import jax.numpy as jnp
      >>> one = {"a": jnp.ones(1)}
      >>> round(float(importance(follow(start(one), one, one))["a"][0]), 6)  # 0.15 · 0.15 · 0.85
      0.019125
    """
    return jax.tree.map(jnp.multiply, averages.sensitivity, averages.uncertainty)
