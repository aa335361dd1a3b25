"""Models with random weights and a batch for them, for measurements of time and memory."""

import jax
import jax.numpy as jnp
from flax import nnx

from surm.models import bert, vit


def random(
    preset: str, classes: int, batch: int, length: int, dtype: str = "float32"
) -> tuple[nnx.Module, dict[str, jax.Array]]:
    """A ViT or BERT by the name of its preset, and its inputs: images, or texts of `length` tokens without padding."""
    if preset.startswith("vit"):
        shape = vit.preset(preset)
        size = (batch, shape.image_size, shape.image_size, 3)
        images = jax.random.normal(jax.random.key(0), size, jnp.dtype(dtype))
        return vit.ViT(shape, classes, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)), {"images": images}
    tokens = jax.random.randint(jax.random.key(0), (batch, length), 1000, 30000)
    model = bert.Bert(bert.preset(preset), classes, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    return model, {"tokens": tokens, "mask": jnp.ones_like(tokens, bool)}
