"""DistilBERT, which has half of BERT's blocks, no segments and another pooler; and its files on Hugging Face.

    tokens -> word + position -> norm -> [attention -> + -> norm1 -> mlp -> + -> norm2] x depth -> pool -> head

Source: Sanh et al., arXiv 1910.01108.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from surm.errors import InputError, nearest
from surm.models import hf_fields
from surm.models.architecture import LABELS, Architecture, reads_another_pooling
from surm.models.bert import TextEncoder
from surm.models.blocks import drop
from surm.models.naming import Naming, named
from surm.models.normalization import LayerNorm
from surm.models.tables import BODY, Rule, Table, linear, norm
from surm.ops.activations import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class DistilBertConfig:
    """The shape of a DistilBERT encoder.

    Attributes:
      vocabulary: number of tokens.
      width: size of a token's representation.
      depth: number of blocks.
      heads: attention heads in a block.
      mlp_width: hidden size of a block's MLP.
      positions: rows of the position table, which is also the number of tokens of the longest text.
      pooling: the input of the head: the first token after a dense layer with a ReLU (`class`), or the `mean` of the
        text's tokens.
      activation: one of `surm.ops.activations.ACTIVATIONS`.
      dropout: the dropout rate after the embeddings, after the attention and the MLP of every block, and before the
        head.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    positions: int = 512
    pooling: Literal["class", "mean"] = "class"
    activation: str = "gelu"
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("vocabulary", "width", "depth", "heads", "mlp_width", "positions"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.pooling not in ("class", "mean"):
            raise InputError(f"pooling must be 'class' or 'mean', got {self.pooling!r}")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation={self.activation!r}; {nearest(self.activation, ACTIVATIONS)}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    @property
    def epsilon(self) -> float:
        """The number added to the variance in every LayerNorm; config.json has no field for it."""
        return 1e-12

    @property
    def segments(self) -> int:
        """The number of segments, 1, because only the separator token distinguishes the texts of a pair."""
        return 1

    @property
    def max_length(self) -> int:
        """The number of tokens of the longest text for which there are positions."""
        return self.positions


PRESETS: dict[str, DistilBertConfig] = {
    "distilbert_base": DistilBertConfig(30522, 768, 6, 12, 3072),
    "distilbert_base_cased": DistilBertConfig(28996, 768, 6, 12, 3072),
    "distilbert_base_multilingual": DistilBertConfig(119547, 768, 6, 12, 3072),
}


class Embedding(nnx.Module):
    """Maps tokens to vectors: the sum of word and position embeddings, then a LayerNorm."""

    def __init__(self, config: DistilBertConfig, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the two tables and the norm."""
        init = nnx.initializers.normal(0.02)
        self.word = nnx.Embed(config.vocabulary, config.width, embedding_init=init, dtype=dtype, rngs=rngs)
        self.position = nnx.Embed(config.positions, config.width, embedding_init=init, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs) if config.dropout else None
        self.max_length = config.max_length

    def __call__(
        self, tokens: Int[Array, "batch tokens"], segments: Int[Array, "batch tokens"] | None = None
    ) -> Float[Array, "batch tokens width"]:
        """Embeds texts and ignores `segments`; raises InputError if a text is longer than the position table."""
        length = tokens.shape[1]
        if length > self.max_length:
            raise InputError(f"a text must have at most {self.max_length} tokens, one per position, got {length}")
        return drop(self.dropout, self.norm(self.word(tokens) + self.position(jnp.arange(length))))


class DistilBert(TextEncoder):
    """A DistilBERT encoder with a head that returns one logit per class or, for regression, one number.

    Paths that adapters and conversion tables name: `embed.{word,position,norm}`,
    `blocks.I.attention.{query,key,value,output}`, `blocks.I.mlp.{up,down}`, `blocks.I.{norm1,norm2}`, `pooler` (with
    pooling `class` only), `head`.
    """

    embedding = Embedding
    squash = staticmethod(jax.nn.relu)


_FIELDS = {
    "vocab_size": 30522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072, "max_position_embeddings": 512,
    "activation": "gelu", "sinusoidal_pos_embds": False,
}  # fmt: skip

TABLE = Table(
    name="Hugging Face DistilBERT",
    prefix=r"distilbert\.",
    marker=r"transformer\.layer\.\d+\.attention\.q_lin\.weight",
    ignored=r"vocab_(?:transform|layer_norm|projector)\..*|qa_outputs\..*|embeddings\.position_ids",
    body=rf"{BODY}|(?:embeddings|transformer)\..*",
    rules=(
        Rule(r"embeddings\.word_embeddings\.weight", "embed.word.embedding"),
        Rule(r"embeddings\.position_embeddings\.weight", "embed.position.embedding"),
        *norm(r"embeddings\.LayerNorm", "embed.norm"),
        *linear(r"transformer\.layer\.(\d+)\.attention\.q_lin", r"blocks.\1.attention.query"),
        *linear(r"transformer\.layer\.(\d+)\.attention\.k_lin", r"blocks.\1.attention.key"),
        *linear(r"transformer\.layer\.(\d+)\.attention\.v_lin", r"blocks.\1.attention.value"),
        *linear(r"transformer\.layer\.(\d+)\.attention\.out_lin", r"blocks.\1.attention.output"),
        *linear(r"transformer\.layer\.(\d+)\.ffn\.lin1", r"blocks.\1.mlp.up"),
        *linear(r"transformer\.layer\.(\d+)\.ffn\.lin2", r"blocks.\1.mlp.down"),
        *norm(r"transformer\.layer\.(\d+)\.sa_layer_norm", r"blocks.\1.norm1"),
        *norm(r"transformer\.layer\.(\d+)\.output_layer_norm", r"blocks.\1.norm2"),
        *linear("pre_classifier", "pooler"),
        *linear("classifier", "head"),
    ),
)


def _from_hf(kind: str, fields: dict[str, Any]) -> DistilBertConfig:
    return DistilBertConfig(
        vocabulary=hf_fields.whole(fields, "vocab_size"),
        width=hf_fields.whole(fields, "dim"),
        depth=hf_fields.whole(fields, "n_layers"),
        heads=hf_fields.whole(fields, "n_heads"),
        mlp_width=hf_fields.whole(fields, "hidden_dim"),
        positions=hf_fields.whole(fields, "max_position_embeddings"),
        activation=hf_fields.activation(fields, "activation"),
    )


def _to_hf(config: DistilBertConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocabulary,
        "dim": config.width,
        "n_layers": config.depth,
        "n_heads": config.heads,
        "hidden_dim": config.mlp_width,
        "max_position_embeddings": config.positions,
        "activation": hf_fields.their_activation(config.activation),
        "sinusoidal_pos_embds": False,  # the file holds the position table in any case
        "dropout": config.dropout,
        "seq_classif_dropout": config.dropout,
        "attention_dropout": 0.0,
    }


def _obstacle(config: DistilBertConfig, theirs: str) -> str | None:
    return reads_another_pooling(config, theirs, "class", "the first token alone")


ARCHITECTURE = Architecture(
    name="DistilBERT",
    reads="text",
    model=DistilBert,
    shape=DistilBertConfig,
    presets=PRESETS,
    kinds={"distilbert": _FIELDS},
    passed_over=("qa_dropout", "seq_classif_dropout", "tie_weights_", "output_past"),
    from_hf=_from_hf,
    to_hf=_to_hf,
    kind_of=lambda config: "distilbert",
    tables=(TABLE,),
    namings={"distilbert": named(Naming(TABLE, "distilbert.", "$.", head=("classifier", "pre_classifier")))},
    classes={"distilbert": {LABELS: "DistilBertForSequenceClassification"}},
    obstacle=_obstacle,
    fresh=("pooler.",),
    in_training=("dropout",),
)
