"""Causal self-attention with grouped heads, rotary positions, segments and a cache of keys and values."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from surm.models.rotary import Rotary, angles, rotated
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
      length: the number of slots that are written.
    """

    keys: tuple[Float[Array, "batch heads slots size"], ...]
    values: tuple[Float[Array, "batch heads slots size"], ...]
    segments: Int[Array, "batch slots"]
    length: Int[Array, ""]


@runtime_checkable
class AttentionShape(Protocol):
    """The fields of a configuration that attention reads; see `surm.models.decoder.DecoderConfig`."""

    width: int
    heads: int
    key_value_heads: int
    head_size: int
    rotary: Rotary


def visible(
    queries: Int[Array, "batch tokens"], keys: Int[Array, "batch slots"], first: Int[Array, ""] | int = 0
) -> Bool[Array, "batch tokens slots"]:
    """The tokens that every token attends to: those of its own segment up to itself, and none in segment 0.

    Args:
      queries: the segments of the tokens.
      keys: the segments of all slots.
      first: the slot of the first token.

    Returns:
      True where a token attends to a slot.
    """
    slots = jnp.arange(keys.shape[1])
    before = slots[None, :] <= first + jnp.arange(queries.shape[1])[:, None]
    return before & (queries[:, :, None] == keys[:, None, :]) & (keys[:, None, :] != 0)


class CausalAttention(nnx.Module):
    """Scaled dot-product attention, softmax(Q Kᵀ / √size) V, in which several query heads share one key head.

    Source: Ainslie et al., arXiv 2305.13245 (grouped heads).
    """

    def __init__(self, config: AttentionShape, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the four maps."""
        inner, shared = config.heads * config.head_size, config.key_value_heads * config.head_size
        linear = lambda n_in, n_out: nnx.Linear(  # noqa: E731
            n_in,
            n_out,
            use_bias=False,
            kernel_init=nnx.initializers.normal(0.02),
            dtype=dtype,
            dot_general=dot_general,
            rngs=rngs,
        )
        self.query, self.key, self.value = (linear(config.width, n) for n in (inner, shared, shared))
        self.output = linear(inner, config.width)
        self.size, self.rotary = config.head_size, config.rotary

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        positions: Int[Array, "batch tokens"],
        mask: Bool[Array, "batch tokens slots"],
        past: tuple[Array, Array] | None = None,
        first: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "batch tokens width"], tuple[Array, Array]]:
        """Attends from every token to the slots that the mask shows it.

        Args:
          x: the tokens.
          positions: their positions, which the rotation depends on.
          mask: from `visible`.
          past: keys and values of all slots; None if the tokens themselves are the slots.
          first: the slot of the first token in `past`.

        Returns:
          The attended tokens after the output map, and the keys and values of all slots.
        """
        query, key, value = (
            layer(x).reshape(*x.shape[:2], -1, self.size).swapaxes(1, 2) for layer in (self.query, self.key, self.value)
        )
        turn = angles(self.rotary, positions, self.size)
        query, key = rotated(query, *turn), rotated(key, *turn)
        if past is not None:
            key, value = (
                jax.lax.dynamic_update_slice(slots, new.astype(slots.dtype), (0, 0, first, 0))
                for slots, new in zip(past, (key, value), strict=True)
            )
        attended = attend_grouped(query, key, value, mask)
        return self.output(attended.swapaxes(1, 2).reshape(*x.shape[:2], -1)), (key, value)


def attend_grouped(
    query: Float[Array, "batch heads tokens size"],
    key: Float[Array, "batch shared slots size"],
    value: Float[Array, "batch shared slots size"],
    mask: Bool[Array, "batch tokens slots"],
) -> Float[Array, "batch heads tokens size"]:
    """Computes softmax(Q Kᵀ / √size) V, with the softmax in at least single precision.

    Args:
      query: the queries Q.
      key: the keys K; each of these heads serves heads/shared query heads, neighbours of one another.
      value: the values V.
      mask: True for slots that a token attends to; a token that attends to none gets the mean of all values.

    Returns:
      The weighted means of the values.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(query.shape[0], key.shape[1], -1, *query.shape[2:])
    scores = jnp.einsum("bhgqs,bhks->bhgqk", grouped, key.astype(query.dtype), preferred_element_type=wide)
    scores = jnp.where(mask[:, None, None], scores * query.shape[-1] ** -0.5, jnp.finfo(wide).min / 2)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("bhgqk,bhks->bhgqs", weights, value).reshape(query.shape).astype(query.dtype)
