"""Trains nothing, yet moves every trained array away from its initial value."""

import jax
from flax import nnx

from surm.peft import surgery


def randomize(model: nnx.Module, seed: int = 1, deviation: float = 0.3) -> nnx.Module:
    """The model with normal noise on all trained arrays."""
    graphdef, trainable, frozen = surgery.split(model)
    keys = dict(zip(sorted(trainable), jax.random.split(jax.random.key(seed), len(trainable)), strict=True))
    noisy = {path: a + deviation * jax.random.normal(keys[path], a.shape, a.dtype) for path, a in trainable.items()}
    return surgery.join(graphdef, noisy, frozen)
