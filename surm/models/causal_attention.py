"""Causal self-attention with grouped heads, rotary positions, segments and a cache of keys and values."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from surm.errors import InputError
from surm.models.normalization import RMSNorm
from surm.models.rotary import Turn, rotated
from surm.ops.fusion import computed_once
from surm.ops.matmul import dot_general


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens that a decoder has read; an argument and a result, never part of a module.

    All rows write to the same slots, so prompts of different lengths are padded at their left.

    Attributes:
      keys: one array per block, after the rotation.
      values: one array per block.
      segments: the segment of the token in every slot; 0 for padding and for slots that are not written.
      length: the number of slots that are written. It is known to compiled programs only when they run, so it is up to
        the caller that `length` and the new tokens together are at most the number of slots; beyond that, the new
        tokens would overwrite the last slots.
    """

    keys: tuple[Float[Array, "batch heads slots size"], ...]
    values: tuple[Float[Array, "batch heads slots size"], ...]
    segments: Int[Array, "batch slots"]
    length: Int[Array, ""]

    def with_segments(self, segments: Int[Array, "batch tokens"]) -> Int[Array, "batch slots"]:
        """The segments of all slots after new tokens; InputError if these are more than there are slots."""
        tokens, slots = segments.shape[1], self.segments.shape[1]
        if tokens > slots:
            raise InputError(f"{tokens:,} tokens for a cache of {slots:,} slots, expected a slot for every token")
        return jax.lax.dynamic_update_slice(self.segments, segments.astype(jnp.int32), (0, self.length))


@runtime_checkable
class AttentionShape(Protocol):
    """The fields of a configuration that attention reads; see `surm.models.decoder_shape.DecoderConfig`."""

    width: int
    heads: int
    key_value_heads: int
    head_size: int
    biases: tuple[str, ...]
    head_norms: bool
    norm_offset: float
    epsilon: float
    score_size: int | None
    score_cap: float | None


def visible(
    queries: Int[Array, "batch tokens"],
    keys: Int[Array, "batch slots"],
    first: Int[Array, ""] | int = 0,
    window: int | None = None,
) -> Bool[Array, "batch tokens slots"]:
    """The tokens that every token attends to: those of its own segment up to itself, and none in segment 0.

    Args:
      queries: the segments of the tokens.
      keys: the segments of all slots.
      first: the slot of the first token.
      window: how many slots a token sees at most, its own included; None for all.

    Returns:
      True where a token attends to a slot.
    """
    slots = jnp.arange(keys.shape[1])[None, :]
    own = first + jnp.arange(queries.shape[1])[:, None]
    near = slots <= own if window is None else (slots <= own) & (slots > own - window)
    return near & (queries[:, :, None] == keys[:, None, :]) & (keys[:, None, :] != 0)


def capped(x: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """Bounds numbers to ±cap smoothly, cap · tanh(x / cap); None leaves them as they are."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class CausalAttention(nnx.Module):
    """Scaled dot-product attention, softmax(Q Kᵀ / √size) V, in which several query heads share one key head.

    Source: Ainslie et al., arXiv 2305.13245 (grouped heads).
    """

    def __init__(self, config: AttentionShape, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the four maps, and the norms of queries and keys if there are any."""
        inner, shared = config.heads * config.head_size, config.key_value_heads * config.head_size
        self.query = linear(config, "query", config.width, inner, dtype, rngs)
        self.key = linear(config, "key", config.width, shared, dtype, rngs)
        self.value = linear(config, "value", config.width, shared, dtype, rngs)
        self.output = linear(config, "output", inner, config.width, dtype, rngs)
        if config.head_norms:
            options = {"epsilon": config.epsilon, "offset": config.norm_offset, "dtype": dtype}
            self.query_norm, self.key_norm = (RMSNorm(config.head_size, **options) for _ in range(2))
        self.size = config.head_size
        self.score_scale = (config.score_size or config.head_size) ** -0.5
        self.score_cap = config.score_cap
        self.head_norms = config.head_norms

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        turn: Turn | None,
        mask: Bool[Array, "batch tokens slots"],
        past: tuple[Array, Array] | None = None,
        first: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "batch tokens width"], tuple[Array, Array]]:
        """Attends from every token to the slots that the mask shows it.

        Args:
          x: the tokens.
          turn: from `surm.models.rotary.angles`; None without a rotation.
          mask: from `visible`.
          past: keys and values of all slots; None if the tokens themselves are the slots.
          first: the slot of the first token in `past`.

        Returns:
          The attended tokens after the output map, and the keys and values of all slots.
        """
        query, key, value = (
            layer(x).reshape(*x.shape[:2], -1, self.size).swapaxes(1, 2) for layer in (self.query, self.key, self.value)
        )
        if self.head_norms:
            query, key = self.query_norm(query), self.key_norm(key)
        if turn is not None:
            query, key = rotated(query, turn), rotated(key, turn)
        if past is not None:
            key, value = (
                _written(slots, new.astype(slots.dtype), first) for slots, new in zip(past, (key, value), strict=True)
            )
        attended = attend_grouped(query, key, value, mask, self.score_scale, self.score_cap)
        return self.output(attended.swapaxes(1, 2).reshape(*x.shape[:2], -1)), (key, value)


def attend_grouped(
    query: Float[Array, "batch heads tokens size"],
    key: Float[Array, "batch shared slots size"],
    value: Float[Array, "batch shared slots size"],
    mask: Bool[Array, "batch tokens slots"],
    scale: float,
    cap: float | None = None,
) -> Float[Array, "batch heads tokens size"]:
    """Computes softmax(scale · Q Kᵀ) V, with the softmax in at least single precision.

    Args:
      query: the queries Q.
      key: the keys K; each of these heads serves heads/shared query heads, neighbours of one another.
      value: the values V.
      mask: True for slots that a token attends to; a token that attends to none gets the mean of all values.
      scale: multiplies the scores, 1/√size in most models.
      cap: bounds the scaled scores; see `capped`.

    Returns:
      The weighted means of the values.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(query.shape[0], key.shape[1], -1, *query.shape[2:])
    scores = _products(grouped, key.astype(query.dtype), wide)
    scores = jnp.where(mask[:, None, None], capped(scores * scale, cap), jnp.finfo(wide).min / 2)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("bhgqk,bhks->bhgqs", weights, value).reshape(query.shape).astype(query.dtype)


@computed_once
def _written(
    slots: Float[Array, "batch shared slots size"],
    new: Float[Array, "batch shared tokens size"],
    first: Int[Array, ""] | int,
) -> Float[Array, "batch shared slots size"]:
    """The slots with new ones in them; computed twice, as XLA on a CPU would, they could not be written in place."""
    return jax.lax.dynamic_update_slice(slots, new, (0, 0, first, 0))


def _products(
    grouped: Float[Array, "batch shared group tokens size"], key: Float[Array, "batch shared slots size"], wide: Any
) -> Float[Array, "batch shared group tokens slots"]:
    """Q Kᵀ. For a single token, the keys are the left factor, because XLA on a CPU would transpose a right one."""
    if grouped.shape[3] > 1:
        return jnp.einsum("bhgqs,bhks->bhgqk", grouped, key, preferred_element_type=wide)
    return jnp.einsum("bhks,bhgqs->bhkgq", key, grouped, preferred_element_type=wide).transpose(0, 1, 3, 4, 2)


def linear(
    config: AttentionShape, name: str, n_in: int, n_out: int, dtype: jax.typing.DTypeLike | None, rngs: nnx.Rngs
) -> nnx.Linear:
    """Creates a linear map of a decoder, with a bias if the configuration names it among `biases`."""
    return nnx.Linear(
        n_in,
        n_out,
        use_bias=name in config.biases,
        kernel_init=nnx.initializers.normal(0.02),
        dtype=dtype,
        dot_general=dot_general,
        rngs=rngs,
    )
