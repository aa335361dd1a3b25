"""How publishers name their arrays, and where each belongs in our models: one table of patterns a publisher.

A rule says: a key of the file that matches `pattern` becomes our variable `path`, its array going through
`transform`. Adding a publisher means adding a `Table`. No key matches two rules.

    Hugging Face                                     ours
    linear weight (out, in)                          kernel (in, out)
    convolution of the patches (width, C, P, P)      embed.patch.kernel (P·P·C, width)
    class token (1, 1, width) or (width,)            embed.class_token (1, width)
    positions (1, tokens, width) or without the 1    embed.position (tokens, width), of a ViT
    word, segment, position table (rows, width)      embed.NAME.embedding (rows, width), of a BERT
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


# An array of unexpected rank passes a transform unharmed, so that `restore` reports its shape among others.
def keep(array: np.ndarray) -> np.ndarray:
    """Returns the array as it is."""
    return array


def _transpose(weight: np.ndarray) -> np.ndarray:
    return weight.T


def _unfold(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel)) if kernel.ndim == 4 else kernel


def _rows(array: np.ndarray) -> np.ndarray:
    return np.atleast_2d(array[0] if array.ndim == 3 and len(array) == 1 else array)


class Rule(NamedTuple):
    """One line of a table: what a key looks like, our path (a template), and what happens to the array."""

    pattern: str
    path: str
    transform: Callable[[np.ndarray], np.ndarray] = keep


_BODY = r"(?:embed|blocks|norm)\..*"  # of our variables


class Table(NamedTuple):
    """How one publisher names its arrays.

    Attributes:
      name: for messages.
      prefix: pattern removed from the front of every key where it stands.
      marker: pattern that a key must match for the table to be the right one.
      ignored: pattern of keys that our models have no use for, though they stand where others matter.
      body: pattern of keys and of our variables that make up the encoder: one of them that the model lacks makes it
        another function. All other keys that the model lacks are passed over.
      rules: the rest, by full match; a key that none matches keeps its name, and `restore` will report it.
      instead: two patterns; where a key matches the first, those that match the second are ignored.
    """

    name: str
    prefix: str
    marker: str
    ignored: str
    body: str
    rules: tuple[Rule, ...]
    instead: tuple[str, str] | None = None


def _linear(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return Rule(rf"{theirs}\.weight", f"{ours}.kernel", _transpose), Rule(rf"{theirs}\.bias", f"{ours}.bias")


def _norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return Rule(rf"{theirs}\.weight", f"{ours}.scale"), Rule(rf"{theirs}\.bias", f"{ours}.bias")


def _bert_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A LayerNorm under today's names, and under TensorFlow's, still found in the files of the first BERTs."""
    old = Rule(rf"{theirs}\.gamma", f"{ours}.scale"), Rule(rf"{theirs}\.beta", f"{ours}.bias")
    return _norm(theirs, ours) + old


# What ViT and BERT call alike in every block.
_ENCODER_LAYER = (
    *_linear(r"encoder\.layer\.(\d+)\.attention\.output\.dense", r"blocks.\1.attention.output"),
    *_linear(r"encoder\.layer\.(\d+)\.intermediate\.dense", r"blocks.\1.mlp.up"),
    *_linear(r"encoder\.layer\.(\d+)\.output\.dense", r"blocks.\1.mlp.down"),
)


OURS = Table(name="surm", prefix="", marker=r"embed\..+", ignored="$.", body=_BODY, rules=(Rule("(.+)", r"\1"),))

HF_VIT = Table(
    name="Hugging Face ViT",
    prefix=r"vit\.",
    marker=r"embeddings\.patch_embeddings\.projection\.weight",
    ignored=r"pooler\..*|embeddings\.mask_token",
    body=rf"{_BODY}|(?:embeddings|encoder|layers|layernorm)\b.*",
    rules=(
        Rule(r"embeddings\.cls_token", "embed.class_token", _rows),
        Rule(r"embeddings\.position_embeddings", "embed.position", _rows),
        Rule(r"embeddings\.patch_embeddings\.projection\.weight", "embed.patch.kernel", _unfold),
        Rule(r"embeddings\.patch_embeddings\.projection\.bias", "embed.patch.bias"),
        # as saved by transformers 4, and by 5 for compatibility
        *_linear(r"encoder\.layer\.(\d+)\.attention\.attention\.query", r"blocks.\1.attention.query"),
        *_linear(r"encoder\.layer\.(\d+)\.attention\.attention\.key", r"blocks.\1.attention.key"),
        *_linear(r"encoder\.layer\.(\d+)\.attention\.attention\.value", r"blocks.\1.attention.value"),
        *_ENCODER_LAYER,
        *_norm(r"encoder\.layer\.(\d+)\.layernorm_before", r"blocks.\1.norm1"),
        *_norm(r"encoder\.layer\.(\d+)\.layernorm_after", r"blocks.\1.norm2"),
        # as transformers 5 names its modules
        *_linear(r"layers\.(\d+)\.attention\.q_proj", r"blocks.\1.attention.query"),
        *_linear(r"layers\.(\d+)\.attention\.k_proj", r"blocks.\1.attention.key"),
        *_linear(r"layers\.(\d+)\.attention\.v_proj", r"blocks.\1.attention.value"),
        *_linear(r"layers\.(\d+)\.attention\.o_proj", r"blocks.\1.attention.output"),
        *_linear(r"layers\.(\d+)\.mlp\.fc1", r"blocks.\1.mlp.up"),
        *_linear(r"layers\.(\d+)\.mlp\.fc2", r"blocks.\1.mlp.down"),
        *_norm(r"layers\.(\d+)\.layernorm_before", r"blocks.\1.norm1"),
        *_norm(r"layers\.(\d+)\.layernorm_after", r"blocks.\1.norm2"),
        *_norm("layernorm", "norm"),
        *_linear("classifier", "head"),
    ),
)

HF_CLIP = Table(
    name="Hugging Face CLIP (vision tower)",
    prefix=r"vision_model\.",
    marker=r"embeddings\.class_embedding",
    # A CLIP classifier sees the mean of the tokens before the last norm, so it cannot be our head.
    ignored=r"text_model\..*|(text|visual)_projection\..*|logit_scale|embeddings\.position_ids|classifier\..*",
    body=rf"{_BODY}|(?:embeddings|encoder|pre_layrnorm|post_layernorm)\b.*",
    rules=(
        Rule(r"embeddings\.class_embedding", "embed.class_token", _rows),
        Rule(r"embeddings\.position_embedding\.weight", "embed.position", _rows),
        Rule(r"embeddings\.patch_embedding\.weight", "embed.patch.kernel", _unfold),
        *_norm("pre_layrnorm", "embed.norm"),  # spelt so in the files
        *_linear(r"encoder\.layers\.(\d+)\.self_attn\.q_proj", r"blocks.\1.attention.query"),
        *_linear(r"encoder\.layers\.(\d+)\.self_attn\.k_proj", r"blocks.\1.attention.key"),
        *_linear(r"encoder\.layers\.(\d+)\.self_attn\.v_proj", r"blocks.\1.attention.value"),
        *_linear(r"encoder\.layers\.(\d+)\.self_attn\.out_proj", r"blocks.\1.attention.output"),
        *_linear(r"encoder\.layers\.(\d+)\.mlp\.fc1", r"blocks.\1.mlp.up"),
        *_linear(r"encoder\.layers\.(\d+)\.mlp\.fc2", r"blocks.\1.mlp.down"),
        *_norm(r"encoder\.layers\.(\d+)\.layer_norm1", r"blocks.\1.norm1"),
        *_norm(r"encoder\.layers\.(\d+)\.layer_norm2", r"blocks.\1.norm2"),
        *_norm("post_layernorm", "norm"),
    ),
)

_BERT_ENCODER = (
    Rule(r"embeddings\.word_embeddings\.weight", "embed.word.embedding"),
    Rule(r"embeddings\.token_type_embeddings\.weight", "embed.segment.embedding"),
    Rule(r"embeddings\.position_embeddings\.weight", "embed.position.embedding"),
    *_bert_norm(r"embeddings\.LayerNorm", "embed.norm"),
    *_linear(r"encoder\.layer\.(\d+)\.attention\.self\.query", r"blocks.\1.attention.query"),
    *_linear(r"encoder\.layer\.(\d+)\.attention\.self\.key", r"blocks.\1.attention.key"),
    *_linear(r"encoder\.layer\.(\d+)\.attention\.self\.value", r"blocks.\1.attention.value"),
    *_ENCODER_LAYER,
    *_bert_norm(r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm", r"blocks.\1.norm1"),
    *_bert_norm(r"encoder\.layer\.(\d+)\.output\.LayerNorm", r"blocks.\1.norm2"),
)

HF_BERT = Table(
    name="Hugging Face BERT or RoBERTa",
    prefix=r"(?:bert|roberta|camembert|data2vec_text|ernie)\.",
    marker=r"embeddings\.word_embeddings\.weight",
    # Heads of pretraining, and buffers that hold 0, 1, 2, ...
    ignored=r"cls\..*|lm_head\..*|qa_outputs\..*|embeddings\.(position_ids|token_type_ids)",
    body=rf"{_BODY}|(?:embeddings|encoder).*",
    rules=(
        *_BERT_ENCODER,
        *_linear(r"pooler\.dense", "pooler"),
        *_linear("classifier", "head"),
        # RoBERTa's classifier is a pooler and a head under other names.
        *_linear(r"classifier\.dense", "pooler"),
        *_linear(r"classifier\.out_proj", "head"),
    ),
    instead=(r"classifier\.dense\..*", r"pooler\..*"),  # RoBERTa's classifier does not use the encoder's pooler
)

# A BERT but for its classifier, whose hidden layer goes through a GELU, not through tanh: it cannot be ours.
HF_ELECTRA = Table(
    name="Hugging Face ELECTRA",
    prefix=r"electra\.",
    marker=r"electra\.embeddings\.word_embeddings\.weight",
    ignored=r"(?:classifier|discriminator_predictions|generator_predictions|generator_lm_head|qa_outputs)\..*"
    r"|embeddings\.(position_ids|token_type_ids)",
    body=HF_BERT.body,
    rules=_BERT_ENCODER,
)

TABLES: tuple[Table, ...] = (OURS, HF_VIT, HF_CLIP, HF_BERT, HF_ELECTRA)
