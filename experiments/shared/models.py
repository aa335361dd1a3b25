"""Models with random weights and a batch for them, where only time and memory are measured."""

import jax
import jax.numpy as jnp
from flax import nnx

from surm.models import bert, vit


def random(
    shape: str, classes: int, batch: int, length: int, dtype: str = "float32"
) -> tuple[nnx.Module, dict[str, jax.Array]]:
    """A model and its inputs by name.

    Args:
      shape: the name of a ViT's or a BERT's preset.
      classes: outputs of its head.
      batch: examples.
      length: tokens of a text, none of them padding; unread for images.
      dtype: of activations and images.

    Returns:
      The model and what it is called with.
    """
    if shape.startswith("vit"):
        preset = vit.preset(shape)
        size = (batch, preset.image_size, preset.image_size, 3)
        images = jax.random.normal(jax.random.key(0), size, jnp.dtype(dtype))
        return vit.ViT(preset, classes, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)), {"images": images}
    tokens = jax.random.randint(jax.random.key(0), (batch, length), 1000, 30000)
    model = bert.Bert(bert.preset(shape), classes, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    return model, {"tokens": tokens, "mask": jnp.ones_like(tokens, bool)}
