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

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


# An array of unexpected rank passes a transform unharmed, so that `restore` reports its shape among others.
def keep(array: np.ndarray, shape: Any = None) -> np.ndarray:
    """Returns the array as it is."""
    return array


def _transpose(weight: np.ndarray, shape: Any = None) -> np.ndarray:
    return weight.T


def _unfold(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel)) if kernel.ndim == 4 else kernel


def _fold(kernel: np.ndarray, shape: Any) -> np.ndarray:
    return kernel.reshape(shape.patch_size, shape.patch_size, shape.channels, -1).transpose(3, 2, 0, 1)


def _rows(array: np.ndarray) -> np.ndarray:
    return np.atleast_2d(array[0] if array.ndim == 3 and len(array) == 1 else array)


def _batch_of_one(array: np.ndarray, shape: Any) -> np.ndarray:
    return array.reshape(1, -1, array.shape[-1])


class Rule(NamedTuple):
    """One line of a table: how a key becomes one of our paths, and how its array becomes ours and theirs again.

    Attributes:
      pattern: of the key: its text with dots escaped, and `(\\d+)` in the place of the number of a block.
      path: our path, a template with `\\1` in the place of that number.
      transform: from the array in the file to ours.
      inverse: from our array, with the configuration of the model, to the array in the file.
    """

    pattern: str
    path: str
    transform: Callable[[np.ndarray], np.ndarray] = keep
    inverse: Callable[[np.ndarray, Any], np.ndarray] = keep

    def key(self, path: str) -> str | None:
        """The key that the rule turns into a path of ours; None if it turns none into it."""
        match = re.fullmatch(re.escape(self.path).replace(r"\\1", r"(\d+)"), path)
        if match is None:
            return None
        return self.pattern.replace(r"(\d+)", (match.groups() or ("",))[0]).replace("\\.", ".")


BODY = r"(?:embed|blocks|norm)\..*"
"""Our variables of an encoder."""


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
      apart: takes arrays apart that a file keeps as one, under the keys that its rules know.
      together: the inverse of `apart`.
    """

    name: str
    prefix: str
    marker: str
    ignored: str
    body: str
    rules: tuple[Rule, ...]
    instead: tuple[str, str] | None = None
    apart: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict
    together: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict


def linear(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """The rules of a linear map, a weight (out, in) and a bias there."""
    kernel = Rule(rf"{theirs}\.weight", f"{ours}.kernel", _transpose, _transpose)
    return kernel, Rule(rf"{theirs}\.bias", f"{ours}.bias")


def patch_map(theirs: str) -> Rule:
    """The rule of the weight of the convolution that cuts an image into patches."""
    return Rule(rf"{theirs}\.weight", "embed.patch.kernel", _unfold, _fold)


def rows(theirs: str, ours: str) -> Rule:
    """The rule of a table of tokens, (1, tokens, width) there."""
    return Rule(theirs, ours, _rows, _batch_of_one)


def norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """The rules of a LayerNorm."""
    return Rule(rf"{theirs}\.weight", f"{ours}.scale"), Rule(rf"{theirs}\.bias", f"{ours}.bias")


def _bert_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A LayerNorm under today's names, and under TensorFlow's, still found in the files of the first BERTs."""
    old = Rule(rf"{theirs}\.gamma", f"{ours}.scale"), Rule(rf"{theirs}\.beta", f"{ours}.bias")
    return norm(theirs, ours) + old


# What ViT and BERT call alike in every block.
_ENCODER_LAYER = (
    *linear(r"encoder\.layer\.(\d+)\.attention\.output\.dense", r"blocks.\1.attention.output"),
    *linear(r"encoder\.layer\.(\d+)\.intermediate\.dense", r"blocks.\1.mlp.up"),
    *linear(r"encoder\.layer\.(\d+)\.output\.dense", r"blocks.\1.mlp.down"),
)


OURS = Table(name="surm", prefix="", marker=r"embed\..+", ignored="$.", body=BODY, rules=(Rule("(.+)", r"\1"),))

HF_VIT = Table(
    name="Hugging Face ViT",
    prefix=r"vit\.",
    marker=r"embeddings\.patch_embeddings\.projection\.weight",
    ignored=r"pooler\..*|embeddings\.mask_token",
    body=rf"{BODY}|(?:embeddings|encoder|layers|layernorm)\b.*",
    rules=(
        rows(r"embeddings\.cls_token", "embed.class_token"),
        rows(r"embeddings\.position_embeddings", "embed.position"),
        patch_map(r"embeddings\.patch_embeddings\.projection"),
        Rule(r"embeddings\.patch_embeddings\.projection\.bias", "embed.patch.bias"),
        # as saved by transformers 4, and by 5 for compatibility
        *linear(r"encoder\.layer\.(\d+)\.attention\.attention\.query", r"blocks.\1.attention.query"),
        *linear(r"encoder\.layer\.(\d+)\.attention\.attention\.key", r"blocks.\1.attention.key"),
        *linear(r"encoder\.layer\.(\d+)\.attention\.attention\.value", r"blocks.\1.attention.value"),
        *_ENCODER_LAYER,
        *norm(r"encoder\.layer\.(\d+)\.layernorm_before", r"blocks.\1.norm1"),
        *norm(r"encoder\.layer\.(\d+)\.layernorm_after", r"blocks.\1.norm2"),
        # as transformers 5 names its modules
        *linear(r"layers\.(\d+)\.attention\.q_proj", r"blocks.\1.attention.query"),
        *linear(r"layers\.(\d+)\.attention\.k_proj", r"blocks.\1.attention.key"),
        *linear(r"layers\.(\d+)\.attention\.v_proj", r"blocks.\1.attention.value"),
        *linear(r"layers\.(\d+)\.attention\.o_proj", r"blocks.\1.attention.output"),
        *linear(r"layers\.(\d+)\.mlp\.fc1", r"blocks.\1.mlp.up"),
        *linear(r"layers\.(\d+)\.mlp\.fc2", r"blocks.\1.mlp.down"),
        *norm(r"layers\.(\d+)\.layernorm_before", r"blocks.\1.norm1"),
        *norm(r"layers\.(\d+)\.layernorm_after", r"blocks.\1.norm2"),
        *norm("layernorm", "norm"),
        *linear("classifier", "head"),
    ),
)

HF_CLIP = Table(
    name="Hugging Face CLIP (vision tower)",
    prefix=r"vision_model\.",
    marker=r"embeddings\.class_embedding",
    # A CLIP classifier sees the mean of the tokens before the last norm, so it cannot be our head.
    ignored=r"text_model\..*|(text|visual)_projection\..*|logit_scale|embeddings\.position_ids|classifier\..*",
    body=rf"{BODY}|(?:embeddings|encoder|pre_layrnorm|post_layernorm)\b.*",
    rules=(
        rows(r"embeddings\.class_embedding", "embed.class_token"),
        rows(r"embeddings\.position_embedding\.weight", "embed.position"),
        patch_map(r"embeddings\.patch_embedding"),
        *norm("pre_layrnorm", "embed.norm"),  # spelt so in the files
        *linear(r"encoder\.layers\.(\d+)\.self_attn\.q_proj", r"blocks.\1.attention.query"),
        *linear(r"encoder\.layers\.(\d+)\.self_attn\.k_proj", r"blocks.\1.attention.key"),
        *linear(r"encoder\.layers\.(\d+)\.self_attn\.v_proj", r"blocks.\1.attention.value"),
        *linear(r"encoder\.layers\.(\d+)\.self_attn\.out_proj", r"blocks.\1.attention.output"),
        *linear(r"encoder\.layers\.(\d+)\.mlp\.fc1", r"blocks.\1.mlp.up"),
        *linear(r"encoder\.layers\.(\d+)\.mlp\.fc2", r"blocks.\1.mlp.down"),
        *norm(r"encoder\.layers\.(\d+)\.layer_norm1", r"blocks.\1.norm1"),
        *norm(r"encoder\.layers\.(\d+)\.layer_norm2", r"blocks.\1.norm2"),
        *norm("post_layernorm", "norm"),
    ),
)

_BERT_ENCODER = (
    Rule(r"embeddings\.word_embeddings\.weight", "embed.word.embedding"),
    Rule(r"embeddings\.token_type_embeddings\.weight", "embed.segment.embedding"),
    Rule(r"embeddings\.position_embeddings\.weight", "embed.position.embedding"),
    *_bert_norm(r"embeddings\.LayerNorm", "embed.norm"),
    *linear(r"encoder\.layer\.(\d+)\.attention\.self\.query", r"blocks.\1.attention.query"),
    *linear(r"encoder\.layer\.(\d+)\.attention\.self\.key", r"blocks.\1.attention.key"),
    *linear(r"encoder\.layer\.(\d+)\.attention\.self\.value", r"blocks.\1.attention.value"),
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
    body=rf"{BODY}|(?:embeddings|encoder).*",
    rules=(
        *_BERT_ENCODER,
        *linear(r"pooler\.dense", "pooler"),
        *linear("classifier", "head"),
        # RoBERTa's classifier is a pooler and a head under other names.
        *linear(r"classifier\.dense", "pooler"),
        *linear(r"classifier\.out_proj", "head"),
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
