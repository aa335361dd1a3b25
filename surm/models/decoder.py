"""A decoder: a pre-norm Transformer whose tokens see earlier tokens only, in Flax NNX with 2-D kernels throughout.

    tokens -> word -> [norm1 -> attention -> + -> norm2 -> mlp -> +] x depth -> norm -> lm_head

Source: Touvron et al. (Llama), arXiv 2302.13971.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from surm.errors import InputError, nearest
from surm.models.causal_attention import Cache, CausalAttention, visible
from surm.models.normalization import RMSNorm
from surm.models.rotary import Rotary
from surm.ops.activations import ACTIVATIONS
from surm.ops.matmul import dot_general


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder.

    Attributes:
      vocabulary: number of tokens.
      width: size of a token's representation.
      depth: number of blocks.
      heads: heads of the queries in a block.
      key_value_heads: heads of the keys and of the values; divides `heads`.
      head_size: size of a head.
      mlp_width: hidden size of a block's MLP.
      positions: the longest context that the model was trained with, in tokens.
      activation: one of `surm.ops.activations.ACTIVATIONS`.
      epsilon: added to the mean square in every RMSNorm.
      rotary: the rotation of queries and keys.
      tied: whether the output map is the transposed table of the words.
      kind: the `model_type` of the config.json that the shape was read from; it does not count in comparisons.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    key_value_heads: int
    head_size: int
    mlp_width: int
    positions: int = 2048
    activation: str = "silu"
    epsilon: float = 1e-5
    rotary: Rotary = Rotary()
    tied: bool = False
    kind: str = dataclasses.field(default="", compare=False)

    def __post_init__(self):
        for name in ("vocabulary", "width", "depth", "heads", "key_value_heads", "head_size", "mlp_width", "positions"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}, expected at least 1")
        if self.heads % self.key_value_heads:
            raise InputError(f"key_value_heads={self.key_value_heads} does not divide heads={self.heads}")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation={self.activation!r}; {nearest(self.activation, ACTIVATIONS)}")

    @property
    def max_length(self) -> int:
        """The longest context in tokens."""
        return self.positions


PRESETS: dict[str, DecoderConfig] = {
    "smollm2_135m": DecoderConfig(
        49152, 576, 30, 9, 3, 64, 1536, positions=8192, rotary=Rotary(100_000.0), tied=True, kind="llama"
    ),
    "llama3_1_8b": DecoderConfig(
        128_256, 4096, 32, 32, 8, 128, 14336, positions=131_072, rotary=Rotary(500_000.0), kind="llama"
    ),
}


def preset(name: str, **changes: object) -> DecoderConfig:
    """Looks a preset up and changes some of its fields.

    Args:
      name: a key of `PRESETS`.
      **changes: fields of `DecoderConfig` to replace.

    Returns:
      The configuration.

    Raises:
      InputError: if there is no such preset; the nearest are named.

    Examples:
      >>> preset("smollm2_135m").depth
      30
    """
    if name not in PRESETS:
        raise InputError(f"no model is called {name!r}; {nearest(name, PRESETS)}")
    return dataclasses.replace(PRESETS[name], **changes)


class GatedMLP(nnx.Module):
    """Three linear maps: down(activation(gate(x)) · up(x)).

    Source: Shazeer, "GLU variants improve Transformer", arXiv 2002.05202.
    """

    def __init__(self, config: DecoderConfig, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the maps."""
        init, options = nnx.initializers.normal(0.02), {"use_bias": False, "dtype": dtype, "dot_general": dot_general}
        self.gate = nnx.Linear(config.width, config.mlp_width, kernel_init=init, rngs=rngs, **options)
        self.up = nnx.Linear(config.width, config.mlp_width, kernel_init=init, rngs=rngs, **options)
        self.down = nnx.Linear(config.mlp_width, config.width, kernel_init=init, rngs=rngs, **options)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the maps."""
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """A pre-norm Transformer block: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: DecoderConfig, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the attention, the MLP and the two norms."""
        self.norm1 = RMSNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        self.attention = CausalAttention(config, dtype=dtype, rngs=rngs)
        self.norm2 = RMSNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        self.mlp = GatedMLP(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        positions: Int[Array, "batch tokens"],
        mask: Bool[Array, "batch tokens slots"],
        past: tuple[Array, Array] | None = None,
        first: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "batch tokens width"], tuple[Array, Array]]:
        """Applies the block; arguments and the second result as for `CausalAttention`."""
        attended, kept = self.attention(self.norm1(x), positions, mask, past, first)
        x = x + attended
        return x + self.mlp(self.norm2(x)), kept


class Words(nnx.Module):
    """The table of words."""

    def __init__(self, config: DecoderConfig, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the table."""
        init = nnx.initializers.normal(0.02)
        self.word = nnx.Embed(config.vocabulary, config.width, embedding_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens width"]:
        """Looks tokens up."""
        return self.word(tokens)


class Decoder(nnx.Module):
    """A decoder that gives, at every position, one logit per possible next token.

    Paths that adapters and conversion tables name: `embed.word`, `blocks.I.attention.{query,key,value,output}`,
    `blocks.I.mlp.{gate,up,down}`, `blocks.I.{norm1,norm2}`, `norm`, and `lm_head` unless the output is tied.
    """

    norm_behind_attention = r".*\.norm2"

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: jax.typing.DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Creates a model with random weights.

        Args:
          config: the shape.
          dtype: the dtype to compute in (parameters stay float32); None for float32.
          remat: whether the backward pass recomputes every block; see `surm.models.blocks`.
          rngs: source of the initial weights.
        """
        self.embed = Words(config, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.norm = RMSNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        if not config.tied:
            init = nnx.initializers.normal(0.02)
            self.lm_head = nnx.Linear(
                config.width,
                config.vocabulary,
                use_bias=False,
                kernel_init=init,
                dtype=dtype,
                dot_general=dot_general,
                rngs=rngs,
            )
        self.config = config
        self.remat = remat

    def empty_cache(self, batch: int, slots: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Cache:
        """A cache in which no slot is written yet."""
        config = self.config
        shape = (batch, config.key_value_heads, slots, config.head_size)
        empty = lambda: tuple(jnp.zeros(shape, dtype) for _ in range(config.depth))  # noqa: E731
        return Cache(empty(), empty(), jnp.zeros((batch, slots), jnp.int32), jnp.zeros((), jnp.int32))

    def hidden_states(
        self,
        tokens: Int[Array, "batch tokens"],
        *,
        positions: Int[Array, "batch tokens"] | None = None,
        segments: Int[Array, "batch tokens"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[list[Float[Array, "batch tokens width"]], Cache | None]:
        """The tokens after the embedding and after every block (depth + 1 arrays), and the cache with the tokens in it.

        Arguments as for the model.
        """
        segments = jnp.ones_like(tokens) if segments is None else segments
        positions = positions_of(segments) if positions is None else positions
        first = 0 if cache is None else cache.length
        slots = segments
        if cache is not None:
            slots = jax.lax.dynamic_update_slice(cache.segments, segments.astype(jnp.int32), (0, first))
        mask = visible(segments, slots, first)
        apply = nnx.remat(_apply) if self.remat else _apply
        states, kept = [self.embed(tokens)], []
        for number, block in enumerate(self.blocks):
            past = None if cache is None else (cache.keys[number], cache.values[number])
            x, more = apply(block, states[-1], positions, mask, past, first)
            states.append(x)
            kept.append(more)
        if cache is None:
            return states, None
        keys, values = zip(*kept, strict=True)
        return states, Cache(keys, values, slots, first + tokens.shape[1])

    def logits(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch vocabulary"]:
        """The logits of tokens after the last block."""
        x = self.norm(x)
        return self.embed.word.attend(x) if self.config.tied else self.lm_head(x)

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        *,
        positions: Int[Array, "batch tokens"] | None = None,
        segments: Int[Array, "batch tokens"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Array, "batch tokens vocabulary"] | tuple[Float[Array, "batch tokens vocabulary"], Cache]:
        """Computes the logits of the token that follows every token.

        Args:
          tokens: one row per text, padded with any token at either end.
          positions: the position of every token; None for its place in its segment.
          segments: 0 for padding; tokens with equal numbers see one another; None if a row is one text.
          cache: keys and values of earlier tokens, as `empty_cache` or an earlier call returned them.

        Returns:
          The logits; with a cache, also the cache with these tokens in it.
        """
        states, cache_after = self.hidden_states(tokens, positions=positions, segments=segments, cache=cache)
        logits = self.logits(states[-1])
        return logits if cache is None else (logits, cache_after)


def positions_of(segments: Int[Array, "batch tokens"]) -> Int[Array, "batch tokens"]:
    """The place of every token in its segment, from 0.

    Examples:
      >>> positions_of(jnp.array([[0, 0, 1, 1, 1, 2, 2]]))
      Array([[0, 1, 0, 1, 2, 0, 1]], dtype=int32)
    """
    places = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    begins = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    return places - jax.lax.cummax(jnp.where(begins, places, 0), axis=1)


def _apply(block: nnx.Module, *arguments: Array | None) -> tuple[Array, tuple[Array, Array]]:
    return block(*arguments)
