"""The random streams of a model's dropout."""

import jax
import jax.numpy as jnp
from flax import nnx


def reseed_dropout(model: nnx.Module, key: jax.Array) -> None:
    """Gives every dropout layer of a model its own stream, derived from one key, in place.

    A training step that calls it is a pure function of its arguments, so a resumed run draws the same masks. Each layer
    of a stack has a stream of its own.
    """
    streams = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.RngStream)]
    for index, (_, stream) in enumerate(sorted(streams, key=lambda item: str(item[0]))):
        own, stack = jax.random.fold_in(key, index), stream.key[...].shape
        stream.key[...] = jax.random.split(own, stack) if stack else own
        stream.count[...] = jnp.zeros_like(stream.count[...])
