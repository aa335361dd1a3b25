"""The activation of an MLP, with or without a gate, with a derivative that XLA's CPU compiler computes once.

    y = activation(gate) · values:   d gate = dy · values · activation'(gate),    d values = dy · activation(gate)
    y = activation(x):               d x = dy · activation'(x)

Left to itself, that compiler computes them anew inside every product that uses them, and structured updates have
several.
"""

import functools
import math
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from surm.matrices.algebra.platforms import platform_of
from surm.ops.activations import ACTIVATIONS
from surm.ops.fusion import computed_once


def gated(
    activation: str, gate: Float[Array, "*batch width"], values: Float[Array, "*batch width"]
) -> Float[Array, "*batch width"]:
    """Computes activation(gate) · values; on a CPU it can be differentiated in reverse mode only.

    Args:
      activation: a name in `surm.ops.activations.ACTIVATIONS`.
      gate: the input of the activation.
      values: what its output multiplies.

    Returns:
      The products. Gate and values are kept for the backward pass, and nothing else.
    """
    return _answer(activation, gate, values)


def activated(activation: str, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Computes activation(x) like `gated`, without values that it multiplies; x is kept for the backward pass."""
    return _answer(activation, x)


def _answer(activation: str, *arrays: Array) -> Array:
    return (_in_reverse if platform_of(*arrays) == "cpu" else _product)(activation, *arrays)


def _product(activation: str, gate: Array, *values: Array) -> Array:
    return math.prod(values, start=ACTIVATIONS[activation](gate))


_in_reverse = jax.custom_vjp(_product, nondiff_argnums=(0,))


def _forward(activation, *arrays):
    return _product(activation, *arrays), arrays


@functools.cache
def _derivative(activation: str) -> Callable[..., tuple[Array, ...]]:
    product = functools.partial(_product, activation)
    return computed_once(lambda slope, *arrays: jax.vjp(product, *arrays)[1](slope))


def _backward(activation, saved, slope):
    return _derivative(activation)(slope, *saved)


_in_reverse.defvjp(_forward, _backward)
