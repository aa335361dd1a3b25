"""Rotary position embeddings: queries and keys are turned by angles that grow with the position.

The two halves of a head's vector are the two coordinates of size/2 planes. This is the layout of Hugging Face's models;
GGUF files interleave the coordinates. Plane i turns by position · frequency[i], so that the product of a query and a
key depends on the difference of their positions only.

Source: Su et al., arXiv 2104.09864.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from surm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """The scaling of Llama 3.1: waves longer than the original context are stretched, short ones are kept.

    Attributes:
      factor: by which long waves are stretched.
      low_frequency_factor: waves longer than `original_positions` over this are stretched by the whole factor.
      high_frequency_factor: waves shorter than `original_positions` over this are kept.
      original_positions: the context that the model was first trained with.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_positions: int

    def __call__(self, frequencies: Float[np.ndarray, " planes"]) -> Float[np.ndarray, " planes"]:
        """The scaled frequencies; between the two limits the stretch is interpolated."""
        waves = self.original_positions * frequencies / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = np.clip((waves - low) / (high - low), 0, 1)
        return (1 - kept) * frequencies / self.factor + kept * frequencies


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All waves are stretched by the same factor, which must be positive."""

    factor: float

    def __call__(self, frequencies: Float[np.ndarray, " planes"]) -> Float[np.ndarray, " planes"]:
        """The scaled frequencies."""
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Rotary:
    """The angles of rotary position embeddings.

    Attributes:
      base: θ in frequency[i] = θ^(−2i/size).
      scaling: changes the frequencies for contexts longer than those of pretraining; None if nothing does.
    """

    base: float = 10_000.0
    scaling: Llama3Scaling | LinearScaling | None = None

    def __post_init__(self):
        if not self.base > 0:
            raise InputError(f"base={self.base} of rotary embeddings, expected a number above 0")

    def frequencies(self, size: int) -> Float[np.ndarray, " planes"]:
        """The angle per position, in radians, of every plane of a head of `size` coordinates."""
        plain = self.base ** (-np.arange(0, size, 2) / size)
        return plain if self.scaling is None else self.scaling(plain)


def angles(
    rotary: Rotary, positions: Int[Array, "batch tokens"], size: int
) -> tuple[Float[Array, "batch 1 tokens planes"], Float[Array, "batch 1 tokens planes"]]:
    """Cosine and sine of the angles of tokens, in float32, with an axis for the heads."""
    turned = positions[:, None, :, None].astype(jnp.float32) * rotary.frequencies(size).astype(np.float32)
    return jnp.cos(turned), jnp.sin(turned)


def rotated(
    x: Float[Array, "batch heads tokens size"],
    cosine: Float[Array, "batch 1 tokens planes"],
    sine: Float[Array, "batch 1 tokens planes"],
) -> Float[Array, "batch heads tokens size"]:
    """Turns queries or keys; the result has the dtype of `x`, the products are taken in float32 at least."""
    first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1).astype(x.dtype)
