"""The parts of a decoder: its embedding, and a block with its MLP."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from surm.models.causal_attention import CausalAttention, linear
from surm.models.decoder_shape import DecoderConfig
from surm.models.normalization import LayerNorm, RMSNorm
from surm.models.rotary import Turn
from surm.ops.gating import activated, gated
from surm.ops.matmul import matmul


def norm(config: DecoderConfig, dtype: jax.typing.DTypeLike | None) -> nnx.Module:
    """Creates a norm of tokens."""
    if config.centred:
        return LayerNorm(config.width, epsilon=config.epsilon, dtype=dtype)
    return RMSNorm(config.width, epsilon=config.epsilon, offset=config.norm_offset, dtype=dtype)


class DecoderMLP(nnx.Module):
    """The MLP of a block: down(activation(gate(x)) · up(x)), or down(activation(up(x))) without a gate.

    Source: Shazeer, "GLU variants improve Transformer", arXiv 2002.05202.
    """

    def __init__(self, config: DecoderConfig, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the maps."""
        if config.gated:
            self.gate = linear(config, "gate", config.width, config.mlp_width, dtype, rngs)
        self.up = linear(config, "up", config.width, config.mlp_width, dtype, rngs)
        self.down = linear(config, "down", config.mlp_width, config.width, dtype, rngs)
        self.activation, self.gated = config.activation, config.gated

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the maps."""
        if not self.gated:
            return self.down(activated(self.activation, self.up(x)))
        return self.down(gated(self.activation, self.gate(x), self.up(x)))


class Block(nnx.Module):
    """A pre-norm Transformer block: x + attention(norm1(x)), then x + mlp(norm2(x)).

    With `branch_norms` the outputs of attention and MLP pass `attention_norm` and `mlp_norm` before they are added.
    """

    def __init__(self, config: DecoderConfig, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates attention, MLP and norms."""
        self.norm1 = norm(config, dtype)
        self.attention = CausalAttention(config, dtype=dtype, rngs=rngs)
        self.norm2 = norm(config, dtype)
        self.mlp = DecoderMLP(config, dtype=dtype, rngs=rngs)
        if config.branch_norms:
            self.attention_norm, self.mlp_norm = norm(config, dtype), norm(config, dtype)
        self.branch_norms = config.branch_norms

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        turn: Turn | None,
        mask: Bool[Array, "batch tokens slots"],
        past: tuple[Array, Array] | None = None,
        first: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "batch tokens width"], tuple[Array, Array]]:
        """Applies the block; arguments and the second result as for `CausalAttention`."""
        attended, kept = self.attention(self.norm1(x), turn, mask, past, first)
        x = x + (self.attention_norm(attended) if self.branch_norms else attended)
        hidden = self.mlp(self.norm2(x))
        return x + (self.mlp_norm(hidden) if self.branch_norms else hidden), kept


def attend(word: nnx.Module, x: Float[Array, "*batch width"]) -> Float[Array, "*batch vocabulary"]:
    """The logits x·tableᵀ of an output that is tied to the table of words."""
    if type(word) is not nnx.Embed:  # one that an adapter wraps or that is packed
        return word.attend(x)
    x, table = word.promote_dtype((x, word.embedding[...]), dtype=word.dtype)
    return matmul(x, table.T)


class Words(nnx.Module):
    """The table of words, and that of positions if there is one."""

    def __init__(self, config: DecoderConfig, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the tables."""
        options = {"embedding_init": nnx.initializers.normal(0.02), "dtype": dtype, "rngs": rngs}
        self.word = nnx.Embed(config.vocabulary, config.width, **options)
        if config.learned_positions:
            self.position = nnx.Embed(config.positions, config.width, **options)
        self.scale = config.width**0.5 if config.scaled_words else None
        self.learned_positions = config.learned_positions

    def __call__(
        self, tokens: Int[Array, "batch tokens"], positions: Int[Array, "batch tokens"]
    ) -> Float[Array, "batch tokens width"]:
        """Looks tokens up, scales them, and adds their positions."""
        x = self.word(tokens)
        if self.scale is not None:
            x = x * jnp.asarray(self.scale, x.dtype)
        return x + self.position(positions) if self.learned_positions else x
