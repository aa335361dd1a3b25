"""Trains nothing, yet moves every trained array away from its initial value."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from surm.peft import surgery


def randomize(model: nnx.Module, seed: int = 1, deviation: float = 0.3) -> nnx.Module:
    """The model with normal noise on all trained arrays; made by numpy, which compiles nothing for a new shape."""
    graphdef, trainable, frozen = surgery.split(model)
    random = np.random.default_rng(seed)
    noisy = {}
    for path, array in sorted(trainable.items()):
        noise = deviation * random.standard_normal(array.shape, np.float32)
        noisy[path] = jnp.asarray(np.asarray(array) + noise.astype(array.dtype))
    return surgery.join(graphdef, noisy, frozen)
