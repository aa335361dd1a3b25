"""What transformers calls the layers and variables of our models, both ways, read off the tables of `surm.models`.

    ours                       transformers 5                        transformers 4, and in every file of weights
    blocks.0.attention.query   vit.layers.0.attention.q_proj         vit.encoder.layer.0.attention.attention.query
    blocks.0.mlp.up            vit.layers.0.mlp.fc1                  vit.encoder.layer.0.intermediate.dense
    head                       classifier                            classifier

BERT and RoBERTa kept their names; their like by other names have those but for the first word.
"""

import re
from typing import NamedTuple

import numpy as np
from flax import nnx

from surm.errors import InputError, nearest
from surm.models.bert import Bert
from surm.models.tables import HF_BERT, HF_VIT, Rule, Table
from surm.models.vit import ViT

NEW, OLD = "transformers5", "transformers4"
CLASSIFIER = "classifier"

CLASSES = {
    "vit": "ViTForImageClassification",
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "camembert": "CamembertForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
    "data2vec-text": "Data2VecTextForSequenceClassification",
    "ernie": "ErnieForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
}
"""`model_type` in a config.json -> the class of transformers that our model with its head corresponds to."""


OURS = (
    "transformers has no such classifier: surm.save_model, or surm merge RUN --out NAME.safetensors, writes the whole "
    "model where it has a preset's shape; surm.save_adapter writes the adapter, as RUN/adapter holds it"
)
"""What is left where `obstacle` stands in the way."""


class Naming(NamedTuple):
    """How one version of transformers names the variables of one kind of model.

    Attributes:
      table: the names, as patterns of keys.
      prefix: stands before every key but the classifier's.
      foreign: pattern of keys that the table knows, but this naming does not have.
    """

    table: Table
    prefix: str
    foreign: str

    def theirs(self, path: str) -> str:
        """The key of a variable of ours, the other way through the table; InputError if it has none."""
        for rule in self.table.rules:
            key = _inverted(rule, path)
            if key is not None and not re.fullmatch(self.foreign, key):
                return key if key.startswith(f"{CLASSIFIER}.") else self.prefix + key
        raise InputError(f"{path} has no counterpart in a model of {self.table.name}")

    def ours(self, key: str) -> tuple[str, Rule] | None:
        """The path of a key, and the rule whose `transform` its array goes through; None for a key it does not have."""
        short = key.removeprefix(self.prefix)
        if re.fullmatch(self.foreign, short):
            return None
        found = ((re.fullmatch(rule.pattern, short), rule) for rule in self.table.rules)
        return next(((match.expand(rule.path), rule) for match, rule in found if match), None)


_BERT_FOREIGN, _ROBERTA_FOREIGN = r"classifier\.(dense|out_proj)\..*", r"pooler\..*|classifier\.(weight|bias)"

NAMINGS: dict[str, dict[str, Naming]] = {
    "vit": {NEW: Naming(HF_VIT, "vit.", r"encoder\..*"), OLD: Naming(HF_VIT, "vit.", r"layers\..*")},
    "bert": dict.fromkeys((NEW, OLD), Naming(HF_BERT, "bert.", _BERT_FOREIGN)),
    "ernie": dict.fromkeys((NEW, OLD), Naming(HF_BERT, "ernie.", _BERT_FOREIGN)),
    "electra": dict.fromkeys((NEW, OLD), Naming(HF_BERT, "electra.", _ROBERTA_FOREIGN)),
    "data2vec-text": dict.fromkeys((NEW, OLD), Naming(HF_BERT, "data2vec_text.", _ROBERTA_FOREIGN)),
    **dict.fromkeys(
        ("roberta", "camembert", "xlm-roberta"),
        dict.fromkeys((NEW, OLD), Naming(HF_BERT, "roberta.", _ROBERTA_FOREIGN)),
    ),
}
"""`model_type` -> version of transformers -> names."""


def kind_of(model: nnx.Module) -> str:
    """The `model_type` that a model of ours has in transformers.

    Args:
      model: a `ViT` or a `Bert`.

    Returns:
      A key of `CLASSES`.

    Raises:
      InputError: for any other model, and for CLIP's tower.
    """
    if isinstance(model, Bert):
        return model.config.kind or ("roberta" if model.config.first_position else "bert")
    if isinstance(model, ViT) and model.config.patch_bias and not model.config.embedding_norm:
        return "vit"
    given = "CLIP's vision tower" if isinstance(model, ViT) else f"a {type(model).__name__}"
    raise InputError(
        f"given {given}; Hugging Face's files are read and written for ViT, BERT and RoBERTa; surm.save_adapter writes "
        "the adapter of any model"
    )


def naming_of(model: nnx.Module, names: str) -> Naming:
    """The names that a version of transformers has for a model; InputError for an unknown version or model."""
    if names not in (NEW, OLD):
        raise InputError(f"names={names!r}; {nearest(names, (NEW, OLD))}")
    return NAMINGS[kind_of(model)][names]


def read_name(kind: str, key: str) -> tuple[str, Rule] | None:
    """The path and the rule of a key in any version's names; None for a key that this kind of model does not have."""
    return NAMINGS[kind][NEW].ours(key) or NAMINGS[kind][OLD].ours(key)


def obstacle(model: nnx.Module) -> str | None:
    """Why the head of a model cannot stand as the classifier of transformers; None if it can."""
    pooling, theirs = model.config.pooling, CLASSES[kind_of(model)]
    if kind_of(model) == "electra":
        return f"the model's head sees the first token through tanh, {theirs}'s through a GELU"
    if pooling == "class":
        return None
    return f"the model's head sees the {pooling} of the tokens (pooling={pooling!r}), {theirs}'s the first token alone"


def their_array(model: nnx.Module, path: str, array: np.ndarray) -> np.ndarray:
    """A variable of ours in their shape: what the table's transforms undo.

    Args:
      model: a `ViT` or a `Bert`.
      path: of the variable.
      array: its value.

    Returns:
      The array that a file of transformers holds.
    """
    if path == "embed.patch.kernel":  # a convolution there
        size, channels = model.config.patch_size, model.config.channels
        return array.reshape(size, size, channels, -1).transpose(3, 2, 0, 1)
    if path in ("embed.class_token", "embed.position"):
        return array.reshape(1, -1, array.shape[-1])
    return array.T if path.endswith(".kernel") else array


def parameters(model: nnx.Module) -> dict[str, np.ndarray]:
    """Every parameter of a model by dotted path."""
    return {".".join(map(str, path)): np.asarray(variable[...])
            for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))}  # fmt: skip


def _inverted(rule: Rule, path: str) -> str | None:
    """The key that a rule turns into a path; None if it leads elsewhere."""
    template = re.escape(rule.path).replace(r"\\1", r"(\d+)")
    match = re.fullmatch(template, path)
    if match is None:
        return None
    pattern = rule.pattern.replace(r"(\d+)", match[1]) if match.groups() else rule.pattern
    return pattern.replace(r"\.", ".")
