"""Tables from the names of publishers' arrays to surm's variables, one table per publisher.

A rule means: the array of a key that matches `pattern`, converted by `transform`, is surm's variable `path`. No key
matches two rules. To add a publisher, add a `Table`.

    Hugging Face                                     surm
    linear weight (out, in)                          kernel (in, out)
    convolution of the patches (width, C, P, P)      embed.patch.kernel (P·P·C, width)
    class token (1, 1, width) or (width,)            embed.class_token (1, width)
    positions (1, tokens, width) or (tokens, width)  embed.position (tokens, width), in a ViT
    word, segment, position table (rows, width)      embed.NAME.embedding (rows, width), in a BERT
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


# A transform leaves an array of unexpected rank unchanged, so that `restore` can report its shape.
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
    """One line of a table: the conversion of a key and its array to surm's variable, and back.

    Attributes:
      pattern: the pattern of the key: its text with escaped dots, and `(\\d+)` for the number of a block.
      path: the path of surm's variable, with `\\1` for that number.
      transform: a function from the array in the file to surm's.
      inverse: a function from surm's array and the configuration of the model to the array in the file.
    """

    pattern: str
    path: str
    transform: Callable[[np.ndarray], np.ndarray] = keep
    inverse: Callable[[np.ndarray, Any], np.ndarray] = keep

    def key(self, path: str) -> str | None:
        """The key that the rule converts to a path; None if there is none."""
        match = re.fullmatch(re.escape(self.path).replace(r"\\1", r"(\d+)"), path)
        if match is None:
            return None
        return self.pattern.replace(r"(\d+)", (match.groups() or ("",))[0]).replace("\\.", ".")


BODY = r"(?:embed|blocks|norm)\..*"
"""A pattern for the paths of an encoder's variables."""


class Table(NamedTuple):
    """The names that one publisher gives to arrays.

    Attributes:
      name: its name in messages.
      prefix: pattern that is removed from the front of keys.
      marker: pattern that at least one key of a file must match for the table to fit.
      ignored: pattern of keys that surm's models do not use, although they may match `body`.
      body: pattern of the keys, and of the paths, that belong to the encoder. A model that lacks one of them computes
        another function, which is an error; other keys that the model lacks are ignored.
      rules: the conversions, by full match; a key that no rule matches keeps its name, and `restore` reports it.
      instead: two patterns; if a key matches the first, the keys that match the second are ignored.
      apart: splits arrays that a file stores as one into those that the rules know, by their keys and shapes; the
        others may have no values when one is split.
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


class Joint(NamedTuple):
    """A map in a file that is several maps of a model.

    Attributes:
      whole: the last words of the module's name in the file.
      parts: the names that stand in their place before they are joined, in the order of the outputs.
      axis: the axis of the outputs in a weight.
    """

    whole: str
    parts: tuple[str, ...]
    axis: int = 0

    def join(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Joins the parts of every such map; other arrays stay as they are."""
        found = {}
        for key, array in arrays.items():
            match = re.fullmatch(rf"(.*\.)({'|'.join(map(re.escape, self.parts))})\.(weight|bias)", key)
            if match is None:
                found[key] = array
            elif match[2] == self.parts[0]:
                pieces = [arrays[f"{match[1]}{part}.{match[3]}"] for part in self.parts]
                found[f"{match[1]}{self.whole}.{match[3]}"] = np.concatenate(pieces, self.axis if array.ndim > 1 else 0)
        return found


def linear(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """The rules of a linear map, which has a weight (out, in) and a bias in the file."""
    kernel = Rule(rf"{theirs}\.weight", f"{ours}.kernel", _transpose, _transpose)
    return kernel, Rule(rf"{theirs}\.bias", f"{ours}.bias")


def patch_map(theirs: str) -> Rule:
    """The rule of the weight of the convolution that embeds patches."""
    return Rule(rf"{theirs}\.weight", "embed.patch.kernel", _unfold, _fold)


def rows(theirs: str, ours: str) -> Rule:
    """The rule of a table of tokens, which has the shape (1, tokens, width) in the file."""
    return Rule(theirs, ours, _rows, _batch_of_one)


def norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """The rules of a LayerNorm."""
    return Rule(rf"{theirs}\.weight", f"{ours}.scale"), Rule(rf"{theirs}\.bias", f"{ours}.bias")


def _bert_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The rules of a LayerNorm, under today's names and under TensorFlow's, which the first BERTs' files still have."""
    old = Rule(rf"{theirs}\.gamma", f"{ours}.scale"), Rule(rf"{theirs}\.beta", f"{ours}.bias")
    return norm(theirs, ours) + old


# The rules of a block that ViT and BERT share.
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
    # A CLIP classifier reads the mean of the tokens before the last norm, unlike the head of a ViT.
    ignored=r"text_model\..*|(text|visual)_projection\..*|logit_scale|embeddings\.position_ids|classifier\..*",
    body=rf"{BODY}|(?:embeddings|encoder|pre_layrnorm|post_layernorm)\b.*",
    rules=(
        rows(r"embeddings\.class_embedding", "embed.class_token"),
        rows(r"embeddings\.position_embedding\.weight", "embed.position"),
        patch_map(r"embeddings\.patch_embedding"),
        *norm("pre_layrnorm", "embed.norm"),  # the files have this spelling
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

# The encoder is a BERT, but the classifier has a GELU instead of tanh after its hidden layer, and is ignored.
HF_ELECTRA = Table(
    name="Hugging Face ELECTRA",
    prefix=r"electra\.",
    marker=r"electra\.embeddings\.word_embeddings\.weight",
    ignored=r"(?:classifier|discriminator_predictions|generator_predictions|generator_lm_head|qa_outputs)\..*"
    r"|embeddings\.(position_ids|token_type_ids)",
    body=HF_BERT.body,
    rules=_BERT_ENCODER,
)
