"""The two compiled programs of generation.

    prompts, padded at their left               -> fill    -> the cache with all tokens of the prompts but the last
    the cache and the newest token of every row -> advance -> the same after some more tokens

`advance` is one loop on the device, which ends early when all rows have ended.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int, Key

from surm.models.causal_attention import Cache
from surm.models.sampling import choose


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """A batch of texts that are being generated.

    Attributes:
      cache: the cache with all tokens but the newest.
      newest: the newest token of every row.
      positions: the positions of these tokens; those of rows that have ended stay as they are.
      tokens: the new tokens of every row.
      counts: how many of `tokens` each row has, the token that ended the row among them.
      number: how many tokens the longest row has.
      ended: whether a row has ended.
      limits: how many new tokens each row gets at most.
      seen: the tokens of the prompt and the text; None if there is no repetition penalty.
    """

    cache: Cache
    newest: Int[Array, " batch"]
    positions: Int[Array, " batch"]
    tokens: Int[Array, "batch room"]
    counts: Int[Array, " batch"]
    number: Int[Array, ""]
    ended: Bool[Array, " batch"]
    limits: Int[Array, " batch"]
    seen: Bool[Array, "batch vocabulary"] | None


@functools.partial(jax.jit, static_argnames=("graphdef", "slots", "dtype"))
def fill(
    graphdef: nnx.GraphDef,
    weights: nnx.State,
    tokens: Int[Array, "batch tokens"],
    segments: Int[Array, "batch tokens"],
    *,
    slots: int,
    dtype: jax.typing.DTypeLike,
) -> Cache:
    """The cache of a model that has read some tokens; compiled for every shape and number of slots.

    Args:
      graphdef: the structure of a decoder, from `nnx.split`.
      weights: its arrays.
      tokens: the tokens, padded at their left.
      segments: 1 for tokens, 0 for padding.
      slots: the number of slots of the cache.
      dtype: the dtype of its keys and values.

    Returns:
      The cache. The logits are not computed.
    """
    model = nnx.merge(graphdef, weights)
    model.eval()
    return model(tokens=tokens, segments=segments, cache=model.empty_cache(tokens.shape[0], slots, dtype))[1]


@functools.partial(jax.jit, static_argnames=("graphdef", "top_k"), donate_argnames=("progress",))
def advance(
    graphdef: nnx.GraphDef,
    weights: nnx.State,
    progress: Progress,
    until: Int[Array, ""] | int,
    numbers: dict[str, Array | float],
    keys: Key[Array, " batch"],
    ends: Int[Array, " ends"],
    *,
    top_k: int | None,
) -> Progress:
    """Generates until the longest row has `until` new tokens or all rows have ended; `progress` is used up.

    Args:
      graphdef: the structure of a decoder, from `nnx.split`.
      weights: its arrays.
      progress: the texts so far; its memory is reused.
      until: the number of new tokens.
      numbers: from `Sampling.numbers`.
      keys: one random key per row.
      ends: the tokens that end a text.
      top_k: from `Sampling`.

    Returns:
      The texts after the new tokens.
    """
    model = nnx.merge(graphdef, weights)
    model.eval()

    def going_on(now: Progress) -> Bool[Array, ""]:
        return (now.number < until) & ~jnp.all(now.ended)

    def one_token(now: Progress) -> Progress:
        logits, cache = model(
            tokens=now.newest[:, None],
            positions=now.positions[:, None],
            segments=jnp.ones_like(now.newest[:, None]),
            cache=now.cache,
        )
        each = jax.vmap(jax.random.fold_in, (0, None))(keys, now.number)
        tokens = choose(logits[:, -1], numbers, top_k=top_k, seen=now.seen, keys=each)
        return _with(now, jnp.where(now.ended, 0, tokens), cache, ends)

    return jax.lax.while_loop(going_on, one_token, progress)


@functools.partial(jax.jit, static_argnames="room")
def widened(progress: Progress, room: int) -> Progress:
    """The same texts with room for `room` new tokens each, in the texts and in the cache."""
    more, cache = room - progress.tokens.shape[1], progress.cache
    slots = lambda array, axis: jnp.pad(array, [(0, more * (axis == own)) for own in range(array.ndim)])  # noqa: E731
    keys, values = (tuple(slots(array, 2) for array in arrays) for arrays in (cache.keys, cache.values))
    cache = dataclasses.replace(cache, keys=keys, values=values, segments=slots(cache.segments, 1))
    return dataclasses.replace(progress, cache=cache, tokens=slots(progress.tokens, 1))


def _with(now: Progress, tokens: Int[Array, " batch"], cache: Cache, ends: Int[Array, " ends"]) -> Progress:
    """The texts with one more token in every row that has not ended."""
    counts = now.counts + ~now.ended
    last = (tokens[:, None] == ends).any(axis=1) | (counts >= now.limits)
    seen = now.seen
    return Progress(
        cache=cache,
        newest=tokens,
        positions=now.positions + ~(now.ended | last),  # so that no position is behind the context
        tokens=jax.lax.dynamic_update_slice(now.tokens, tokens[:, None], (0, now.number)),
        counts=counts,
        number=now.number + 1,
        ended=now.ended | last,
        limits=now.limits,
        seen=None if seen is None else seen.at[jnp.arange(len(tokens)), tokens].set(True),
    )
