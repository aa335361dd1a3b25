"""BERT, a post-norm Transformer encoder, in Flax NNX with 2-D kernels throughout.

RoBERTa and MiniLM are other configurations of the same class.

    tokens -> word + segment + position -> norm
           -> [attention -> + -> norm1 -> mlp -> + -> norm2] x depth -> pool -> head

Source: Devlin et al., arXiv 1810.04805; Liu et al. (RoBERTa), arXiv 1907.11692; Wang et al. (MiniLM), arXiv 2002.10957.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from surm.errors import InputError, nearest
from surm.models.attention import Attention
from surm.models.blocks import drop, hidden_states
from surm.models.mlp import MLP
from surm.models.normalization import LayerNorm
from surm.models.presets import named
from surm.ops.activations import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT encoder.

    Attributes:
      vocabulary: number of tokens.
      width: size of a token's representation.
      depth: number of blocks.
      heads: attention heads in a block.
      mlp_width: hidden size of a block's MLP.
      positions: rows of the position table.
      first_position: row of a text's first token in that table: 0, but 2 for RoBERTa.
      segments: rows of the segment table: 2 for BERT's sentence pairs, 1 for RoBERTa.
      pooling: the input of the head: the first token after a dense layer with tanh (`class`), or the `mean` of the
        text's tokens.
      activation: one of `surm.ops.activations.ACTIVATIONS`.
      epsilon: added to the variance in every LayerNorm.
      dropout: the dropout rate after the embeddings, after the attention and the MLP of every block, and before the
        head. (The published models also drop attention weights; this one does not.)
      kind: the `model_type` of the config.json that the shape was read from, which decides the names of layers in
        exported files; it does not count in comparisons.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    positions: int = 512
    first_position: int = 0
    segments: int = 2
    pooling: Literal["class", "mean"] = "class"
    activation: str = "gelu"
    epsilon: float = 1e-12
    dropout: float = 0.0
    kind: str = dataclasses.field(default="", compare=False)

    def __post_init__(self):
        for name in ("vocabulary", "width", "depth", "heads", "mlp_width", "positions", "segments"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}, expected at least 1")
        if not self.epsilon > 0:
            raise InputError(f"epsilon={self.epsilon}, expected a number above 0")
        if self.pooling not in ("class", "mean"):
            raise InputError(f"pooling={self.pooling!r}, expected 'class' or 'mean'")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation={self.activation!r}; {nearest(self.activation, ACTIVATIONS)}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout}, expected 0 <= dropout < 1")
        if not 0 <= self.first_position < self.positions:
            raise InputError(f"first_position={self.first_position}, expected one of the {self.positions} positions")

    @property
    def max_length(self) -> int:
        """The number of tokens of the longest text for which there are positions."""
        return self.positions - self.first_position


def _bert(width: int, depth: int) -> BertConfig:
    return BertConfig(30522, width, depth, width // 64, 4 * width)


def _roberta(width: int, depth: int) -> BertConfig:
    return dataclasses.replace(
        _bert(width, depth), vocabulary=50265, positions=514, first_position=2, segments=1, epsilon=1e-5
    )


PRESETS: dict[str, BertConfig] = {
    "bert_tiny": _bert(128, 2),
    "bert_mini": _bert(256, 4),
    "bert_small": _bert(512, 4),
    "bert_medium": _bert(512, 8),
    "bert_base": _bert(768, 12),
    "bert_large": _bert(1024, 24),
    "minilm_l6": BertConfig(30522, 384, 6, 12, 1536, pooling="mean"),
    "roberta_base": _roberta(768, 12),
    "roberta_large": _roberta(1024, 24),
}


def preset(name: str, **changes: object) -> BertConfig:
    """Looks a preset up and changes some of its fields.

    Args:
      name: a key of `PRESETS`; the vocabulary of `bert_*` is that of the uncased English models.
      **changes: fields of `BertConfig` to replace.

    Returns:
      The configuration.

    Raises:
      InputError: if there is no such preset; the nearest are named.

    Examples:
      >>> preset("roberta_base").max_length
      512
    """
    return dataclasses.replace(named(name, PRESETS), **changes)


class Embedding(nnx.Module):
    """Maps tokens to vectors: the sum of word, segment and position embeddings, then a LayerNorm."""

    def __init__(self, config: BertConfig, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the three tables and the norm."""
        init = nnx.initializers.normal(0.02)
        self.word = nnx.Embed(config.vocabulary, config.width, embedding_init=init, dtype=dtype, rngs=rngs)
        self.segment = nnx.Embed(config.segments, config.width, embedding_init=init, dtype=dtype, rngs=rngs)
        self.position = nnx.Embed(config.positions, config.width, embedding_init=init, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs) if config.dropout else None
        self.first_position = config.first_position
        self.max_length = config.max_length

    def __call__(
        self, tokens: Int[Array, "batch tokens"], segments: Int[Array, "batch tokens"] | None = None
    ) -> Float[Array, "batch tokens width"]:
        """Embeds texts; raises InputError if a text is longer than the position table allows."""
        length = tokens.shape[1]
        if length > self.max_length:
            raise InputError(f"a text of {length} tokens, but the model has positions for {self.max_length}")
        if segments is None:
            segments = jnp.zeros_like(tokens)
        rows = self.first_position + jnp.arange(length)
        return drop(self.dropout, self.norm(self.word(tokens) + self.segment(segments) + self.position(rows)))


@runtime_checkable
class BlockShape(Protocol):
    """The fields of a configuration that a `Block` reads; see `BertConfig`."""

    width: int
    heads: int
    mlp_width: int
    activation: str
    epsilon: float
    dropout: float


class Block(nnx.Module):
    """A post-norm Transformer block: norm1(x + attention(x)), then norm2(x + mlp(x))."""

    def __init__(self, config: BlockShape, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the attention, the MLP and the two norms."""
        self.attention = Attention(config.width, config.heads, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        self.mlp = MLP(config.width, config.mlp_width, config.activation, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs) if config.dropout else None

    def __call__(
        self, x: Float[Array, "batch tokens width"], mask: Bool[Array, "batch tokens"] | None = None
    ) -> Float[Array, "batch tokens width"]:
        """Applies the block; no token attends to tokens whose mask is False."""
        x = self.norm1(x + drop(self.dropout, self.attention(x, mask)))
        return self.norm2(x + drop(self.dropout, self.mlp(x)))


@runtime_checkable
class EncoderShape(BlockShape, Protocol):
    """The fields of a configuration that a `TextEncoder` reads; see `BertConfig`."""

    depth: int
    pooling: str


class TextEncoder(nnx.Module):
    """The base class of text encoders with a head: an embedding, post-norm blocks, pooling, a head.

    A subclass sets `embedding`, the class of a module that is called with tokens and segments, and `squash`, the
    activation after the pooler.
    """

    embedding: type[nnx.Module]
    squash: Callable[[jax.Array], jax.Array]
    norm_behind_attention = r".*\.norm1"
    """A pattern for the paths of the norms that follow the residual connection around attention."""

    def __init__(
        self,
        config: EncoderShape,
        num_outputs: int,
        *,
        dtype: jax.typing.DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Creates a model with random weights.

        Args:
          config: the shape.
          num_outputs: number of classes, or 1 for regression.
          dtype: the dtype to compute in (parameters stay float32); None for float32.
          remat: whether the backward pass recomputes every block; see `surm.models.blocks`.
          rngs: source of the initial weights and the dropout masks.
        """
        self.embed = self.embedding(config, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        init = nnx.initializers.truncated_normal(0.02)
        if config.pooling == "class":
            self.pooler = nnx.Linear(config.width, config.width, kernel_init=init, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs) if config.dropout else None
        # A zero head would leave the adapters without a gradient in the first step.
        self.head = nnx.Linear(config.width, num_outputs, kernel_init=init, dtype=dtype, rngs=rngs)
        self.config = config
        self.remat = remat

    def hidden_states(
        self,
        tokens: Int[Array, "batch tokens"],
        segments: Int[Array, "batch tokens"] | None = None,
        mask: Bool[Array, "batch tokens"] | None = None,
    ) -> list[Float[Array, "batch tokens size"]]:
        """The tokens after the embedding and after every block: depth + 1 arrays; arguments as for the model."""
        return hidden_states(self.blocks, self.embed(tokens, segments), mask, remat=self.remat)

    def features(
        self,
        tokens: Int[Array, "batch tokens"],
        segments: Int[Array, "batch tokens"] | None = None,
        mask: Bool[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch size"]:
        """The pooled representation that the head reads; arguments as for the model."""
        last = self.hidden_states(tokens, segments, mask)[-1]
        if self.config.pooling == "class":
            return self.squash(self.pooler(last[:, 0]))
        return mean_of_tokens(last, mask)

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        segments: Int[Array, "batch tokens"] | None = None,
        mask: Bool[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch num_outputs"]:
        """Computes the logits of texts.

        Args:
          tokens: one text per row, padded with any token.
          segments: 1 for the tokens of a pair's second text, else 0; None for 0 throughout.
          mask: False for padding; None if there is none.

        Returns:
          One row of outputs per text.

        Raises:
          InputError: if the rows are longer than the position table allows.
        """
        return self.head(drop(self.dropout, self.features(tokens, segments, mask)))


class Bert(TextEncoder):
    """A BERT encoder with a head that returns one logit per class or, for regression, one number.

    Paths that adapters and conversion tables name: `embed.{word,segment,position,norm}`,
    `blocks.I.attention.{query,key,value,output}`, `blocks.I.mlp.{up,down}`, `blocks.I.{norm1,norm2}`, `pooler` (with
    pooling `class` only), `head`.
    """

    embedding = Embedding
    squash = staticmethod(jnp.tanh)


def mean_of_tokens(
    x: Float[Array, "batch tokens width"], mask: Bool[Array, "batch tokens"] | None
) -> Float[Array, "batch width"]:
    """The mean over the tokens whose mask is True; 0 for rows without any."""
    if mask is None:
        return x.mean(axis=1)
    number = jnp.maximum(mask.sum(axis=1, keepdims=True), 1).astype(x.dtype)
    return jnp.sum(x, axis=1, where=mask[..., None]) / number
