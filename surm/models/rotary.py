"""Rotary position embeddings: queries and keys are turned by angles that grow with the position.

The two halves of a head's vector are the two coordinates of size/2 planes. This is the layout of Hugging Face's models;
GGUF files interleave the coordinates. Plane i turns by position · frequency[i], so that the product of a query and a
key depends on the difference of their positions only.

Source: Su et al., arXiv 2104.09864.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from surm.errors import InputError
from surm.models.rotary_scaling import Frequencies, LongScaling, Scaling

Turn = tuple[Float[Array, "batch 1 tokens planes"], Float[Array, "batch 1 tokens planes"]]
"""Cosine and sine of the angles of tokens, with an axis for the heads."""


@dataclasses.dataclass(frozen=True)
class Rotary:
    """The angles of rotary position embeddings.

    Attributes:
      base: θ in frequency[i] = θ^(−2i/size).
      scaling: changes the frequencies for contexts longer than those of pretraining; None if nothing does.
      share: the share of a head's coordinates that is turned, in (0, 1]; the others stay as they are.
    """

    base: float = 10_000.0
    scaling: Scaling | None = None
    share: float = 1.0

    def __post_init__(self):
        if not self.base > 0:
            raise InputError(f"base={self.base} of rotary embeddings, expected a number above 0")
        if not 0 < self.share <= 1:
            raise InputError(f"share={self.share} of rotary embeddings, expected a number above 0 and at most 1")

    def check(self, size: int) -> None:
        """Raises InputError if the rotation does not fit heads of `size` coordinates."""
        turned = int(size * self.share)
        if turned < 2 or turned % 2:
            raise InputError(
                f"head_size={size}, share={self.share}: {turned} coordinates turn, expected an even number"
            )
        of_planes = () if not isinstance(self.scaling, LongScaling) else (self.scaling.short, self.scaling.long)
        if wrong := [len(factors) for factors in of_planes if len(factors) != turned // 2]:
            raise InputError(f"{wrong[0]} factors of rotary embeddings, expected {turned // 2}, half of what turns")

    def frequencies(self, size: int, length: Int[Array, ""] | int = 0) -> Frequencies:
        """The angle per position of every plane of a head.

        Args:
          size: the coordinates of a head.
          length: the length of the context, on which some scalings depend.

        Returns:
          The angles in radians.
        """
        turned = int(size * self.share)
        plain = self.base ** (-np.arange(0, turned, 2) / turned)
        return plain if self.scaling is None else self.scaling(plain, length)


def angles(rotary: Rotary, positions: Int[Array, "batch tokens"], size: int) -> Turn:
    """Cosine and sine of the angles of tokens, in float32; computed once for all blocks with the same rotation.

    Args:
      rotary: the rotation.
      positions: the positions of the tokens; the largest one gives the length of the context.
      size: the coordinates of a head.

    Returns:
      Cosine and sine, each multiplied by the amplitude of the scaling.
    """
    frequencies = jnp.asarray(rotary.frequencies(size, positions.max() + 1), jnp.float32)
    turned = positions[:, None, :, None].astype(jnp.float32) * frequencies
    amplitude = 1.0 if rotary.scaling is None else rotary.scaling.amplitude
    return jnp.cos(turned) * amplitude, jnp.sin(turned) * amplitude


def rotated(x: Float[Array, "batch heads tokens size"], turn: Turn) -> Float[Array, "batch heads tokens size"]:
    """Turns queries or keys; the result has the dtype of `x`, the products are taken in float32 at least."""
    cosine, sine = turn
    planes = cosine.shape[-1]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    first, second, rest = wide[..., :planes], wide[..., planes : 2 * planes], wide[..., 2 * planes :]
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate([*turned, rest] if rest.shape[-1] else turned, axis=-1).astype(x.dtype)
