"""What a model answers, by one compiled program for all models of its form."""

import functools

import jax
from flax import nnx


@functools.partial(jax.jit, static_argnums=0)
def _answer(graphdef: nnx.GraphDef, state: nnx.State, inputs: tuple, named: dict) -> jax.Array:
    return nnx.merge(graphdef, state)(*inputs, **named)


def answer(model: nnx.Module, *inputs: jax.Array, **named: jax.Array) -> jax.Array:
    """`model(*inputs, **named)`, without a program for each of its operations and shapes."""
    return _answer(*nnx.split(model), inputs, named)
