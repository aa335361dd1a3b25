"""Changes of rotary frequencies for contexts longer than those of pretraining, by their names in Hugging Face's files.

A scaling is called with the unscaled frequencies of all planes, in radians per position, and with the length of the
context; it returns the frequencies to be used. `amplitude` multiplies the turned queries and keys.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Frequencies = Float[np.ndarray, " planes"] | Float[Array, " planes"]


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """`linear`: all waves are stretched by the same factor, which must be positive."""

    factor: float
    amplitude = 1.0

    def __call__(self, plain: Float[np.ndarray, " planes"], length: Int[Array, ""] | int) -> Frequencies:
        """The scaled frequencies."""
        return plain / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """`llama3`: waves longer than the original context are stretched, short ones are kept.

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
    amplitude = 1.0

    def __call__(self, plain: Float[np.ndarray, " planes"], length: Int[Array, ""] | int) -> Frequencies:
        """The scaled frequencies; between the two limits the stretch is interpolated."""
        waves = self.original_positions * plain / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = np.clip((waves - low) / (high - low), 0, 1)
        return (1 - kept) * plain / self.factor + kept * plain


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """`yarn`: planes that turn often in the original context are kept, those that turn seldom are stretched.

    Attributes:
      factor: by which the slow planes are stretched.
      original_positions: the context that the model was first trained with.
      amplitude: of turned queries and keys.
      fast: planes that turn more often than this in the original context are kept.
      slow: planes that turn less often than this are stretched by the whole factor.
      truncate: whether the limits between kept and stretched planes are rounded to whole planes.

    Source: Peng et al., arXiv 2309.00071.
    """

    factor: float
    original_positions: int
    amplitude: float = 1.0
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True

    def __call__(self, plain: Float[np.ndarray, " planes"], length: Int[Array, ""] | int) -> Frequencies:
        """The scaled frequencies; between the two limits the stretch is interpolated over the planes."""
        low, high = self._plane(self.fast, plain), self._plane(self.slow, plain)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * len(plain) - 1)
        stretched = np.clip((np.arange(len(plain)) - low) / (high - low or 0.001), 0, 1)
        return stretched * plain / self.factor + (1 - stretched) * plain

    def _plane(self, turns: float, plain: Float[np.ndarray, " planes"]) -> float:
        """The plane, a fraction, that turns so many times in the original context."""
        # plain[i] = base^(-i/planes), so that plain[1] gives the base
        log_step = -math.log(plain[1]) if len(plain) > 1 else 1.0
        return math.log(self.original_positions / (turns * 2 * math.pi)) / log_step


@dataclasses.dataclass(frozen=True)
class DynamicScaling:
    """`dynamic`: the base grows with the context once that is longer than the one of pretraining.

    Attributes:
      factor: how fast the base grows.
      original_positions: up to this context nothing is scaled.
    """

    factor: float
    original_positions: int
    amplitude = 1.0

    def __call__(self, plain: Float[np.ndarray, " planes"], length: Int[Array, ""] | int) -> Frequencies:
        """The scaled frequencies."""
        longer = jnp.maximum(length, self.original_positions) / self.original_positions
        # The base is multiplied by the power planes/(planes − 1) of this, so that the slowest plane is divided by it.
        stretch = self.factor * longer - (self.factor - 1)
        return plain * stretch ** -(np.arange(len(plain)) / max(len(plain) - 1, 1))


@dataclasses.dataclass(frozen=True)
class LongScaling:
    """`longrope`: every plane has a factor of its own, one for contexts up to the original one and one for longer ones.

    The largest position of a call decides. Keys in a cache keep the rotation of the call that wrote them.

    Attributes:
      short: the factors for contexts up to `original_positions`.
      long: the factors for longer contexts.
      original_positions: the context that the model was first trained with.
      amplitude: of turned queries and keys.

    Source: Ding et al., arXiv 2402.13753.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_positions: int
    amplitude: float = 1.0

    def __call__(self, plain: Float[np.ndarray, " planes"], length: Int[Array, ""] | int) -> Frequencies:
        """The scaled frequencies."""
        short, long = plain / np.array(self.short), plain / np.array(self.long)
        return jnp.where(length > self.original_positions, long.astype(np.float32), short.astype(np.float32))


Scaling = LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling | LongScaling
