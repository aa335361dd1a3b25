"""The choice of the next token from logits, with the definitions and in the order of Hugging Face's transformers.

logits -> repetition penalty -> the largest                                      (temperature 0)
logits -> repetition penalty -> / temperature -> top-k -> top-p -> a random token (otherwise)
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from surm.errors import InputError
from surm.machine.notes import say


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: divides the logits before a token is drawn; 0 for the token with the largest logit.
      top_k: tokens with a smaller logit than the k-th largest are never drawn; None or 0 for no such limit.
      top_p: only the most probable tokens are drawn, as many as are needed for a total probability of top_p.
      repetition_penalty: the logit of every token that occurs in the prompt or in the new text is divided by this if it
        is positive, and multiplied if it is negative. Source: Keskar et al., arXiv 1909.05858.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        _check("temperature", self.temperature, "a number of at least 0", lambda value: value >= 0)
        _check("top_p", self.top_p, "a number above 0 and at most 1", lambda value: 0 < value <= 1)
        _check("repetition_penalty", self.repetition_penalty, "a number above 0", lambda value: value > 0)
        if self.top_k is not None:
            _check("top_k", self.top_k, "None or a whole number of at least 0", lambda value: value >= 0, kind=int)
        if not self.temperature and (self.top_k or self.top_p < 1):
            say("temperature=0 chooses the most probable token, so top_k and top_p change nothing")

    @property
    def numbers(self) -> dict[str, float]:
        """The settings that change something, without top_k; a program is compiled for every set of their names."""
        found = {} if self.repetition_penalty == 1 else {"repetition_penalty": float(self.repetition_penalty)}
        if self.temperature:
            found |= {"temperature": float(self.temperature)}
            found |= {} if self.top_p == 1 else {"top_p": float(self.top_p)}
        return found


def _check(name: str, value: object, expected: str, fits: Callable[[float], bool], kind: type = float) -> None:
    number = isinstance(value, kind | int) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not fits(value):
        raise InputError(f"{name}={value!r}, expected {expected}")


GREEDY = Sampling()
"""Always the token with the largest logit."""


def choose(
    logits: Float[Array, "batch vocabulary"],
    numbers: dict[str, Float[Array, ""] | float],
    *,
    top_k: int | None = None,
    seen: Bool[Array, "batch vocabulary"] | None = None,
    keys: Key[Array, " batch"] | None = None,
) -> Int[Array, " batch"]:
    """Chooses the next token of every row.

    Args:
      logits: the logits of the next token.
      numbers: from `Sampling.numbers`.
      top_k: from `Sampling`; static under `jax.jit`.
      seen: True for tokens that the repetition penalty acts on.
      keys: one random key per row, so that a row's choice does not depend on the other rows.

    Returns:
      The tokens.
    """
    logits = logits.astype(jnp.float32)
    if "repetition_penalty" in numbers:
        logits = penalised(logits, seen, numbers["repetition_penalty"])
    if "temperature" not in numbers:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / numbers["temperature"]
    if top_k and top_k < logits.shape[-1]:
        logits = limited_to_k(logits, top_k)
    if "top_p" in numbers:
        logits = limited_to_p(logits, numbers["top_p"])
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def penalised(
    logits: Float[Array, "batch vocabulary"],
    seen: Bool[Array, "batch vocabulary"],
    penalty: Float[Array, ""] | float,
) -> Float[Array, "batch vocabulary"]:
    """Makes the tokens that were seen less probable, for a penalty above 1."""
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def limited_to_k(logits: Float[Array, "batch vocabulary"], k: int) -> Float[Array, "batch vocabulary"]:
    """Sets logits below the k-th largest to −∞; all that equal the k-th largest are kept."""
    least = jax.lax.top_k(logits, k)[0][:, -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def limited_to_p(
    logits: Float[Array, "batch vocabulary"], p: Float[Array, ""] | float
) -> Float[Array, "batch vocabulary"]:
    """Sets the least probable logits to −∞, as many as have a total probability of at most 1 − p.

    At least one token is kept. Of several equal logits at the limit, those of smaller tokens are removed first. Tokens
    are sorted by value only, because sorting pairs of values and tokens takes several times as long on a CPU.
    """
    ascending = jnp.sort(logits, axis=-1)
    total = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
    removed = jnp.sum(total[:, :-1] <= 1 - p, axis=-1, keepdims=True)  # the last one is never removed
    limit = jnp.take_along_axis(ascending, removed, axis=-1)
    equal = logits == limit
    equal_and_removed = removed - jnp.sum(logits < limit, axis=-1, keepdims=True)
    kept = (logits > limit) | (equal & (jnp.cumsum(equal, axis=-1) > equal_and_removed))
    return jnp.where(kept, logits, -jnp.inf)
