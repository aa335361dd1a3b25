"""The gate of an MLP, y = activation(gate) · values, with a derivative that XLA's CPU compiler computes once.

    d gate = dy · values · activation'(gate),    d values = dy · activation(gate)

Left to itself, that compiler computes both anew inside every product that uses them, and structured updates have
several.
"""

import functools
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
    on_cpu = platform_of(gate, values) == "cpu"
    return (_in_reverse if on_cpu else _product)(activation, gate, values)


def _product(activation: str, gate: Array, values: Array) -> Array:
    return ACTIVATIONS[activation](gate) * values


_in_reverse = jax.custom_vjp(_product, nondiff_argnums=(0,))


def _forward(activation, gate, values):
    return _product(activation, gate, values), (gate, values)


@functools.cache
def _derivative(activation: str) -> Callable[..., tuple[Array, Array]]:
    product = functools.partial(_product, activation)
    return computed_once(lambda gate, values, slope: jax.vjp(product, gate, values)[1](slope))


def _backward(activation, saved, slope):
    return _derivative(activation)(*saved, slope)


_in_reverse.defvjp(_forward, _backward)
