"""The config keys that each kind of example uses; a key that is set in vain is refused."""

from typing import NamedTuple

import ml_collections

from surm import config as configs
from surm.data import glue
from surm.data.splits import Dataset
from surm.errors import InputError
from surm.models.architecture import LANGUAGE


class Kind(NamedTuple):
    """A kind of example.

    Attributes:
      many: its name in messages, in the plural.
      keys: config keys that this kind uses and some other kind does not.
      config: a config file for it.
    """

    many: str
    keys: tuple[str, ...]
    config: str


_OF_LABELS = ("data.sampling", "eval.metrics", "model.pooling", "optim.class_weights", "optim.label_smoothing")
_OF_TOKENS = ("data.tokenizer", "data.lengths")
_OF_ANSWERS = ("data.packing", "data.train_on", "data.template_arguments", "data.generate", "data.generate_tokens")

KINDS: dict[str, Kind] = {
    "image": Kind("images", (*_OF_LABELS, "data.augment", "model.image_size"), "configs/vit_cifar.py"),
    "text": Kind("texts", (*_OF_LABELS, *_OF_TOKENS, "model.dropout"), "configs/bert_glue.py"),
    LANGUAGE: Kind("texts for language models", (*_OF_TOKENS, *_OF_ANSWERS), "configs/lm_text.py"),
}

SOURCE_KEYS = ("task", "text_columns", "label_column", "image_column")
"""Keys of `config.data` that only some sources use; `surm.data.splits.Dataset.keys` tells which."""


def check(config: ml_collections.ConfigDict, data: Dataset) -> None:
    """Raises InputError if a key is set that a run on this data would ignore."""
    given, default = dict(configs.leaves(config)), {name: key.default for name, key in configs.KEYS.items()}
    unread = [key for kind in KINDS.values() for key in kind.keys if key not in KINDS[data.kind].keys]
    unread += [f"data.{key}" for key in SOURCE_KEYS if key not in data.keys]
    set_in_vain = sorted(key for key in unread if given[key] != default[key])
    if set_in_vain and data.kind == "text" and set_in_vain[0] in ("data.text_columns", "data.label_column"):
        raise InputError(
            f"config.{set_in_vain[0]} is set, but the columns of GLUE's tasks are known; for a table of your own, set "
            f"config.data.task to {' or '.join(glue.OWN_METRICS)}"
        )
    if set_in_vain:
        raise InputError(
            f"config.{set_in_vain[0]} is set, but data.source={config.data.source!r} holds {KINDS[data.kind].many}"
            f"{_for_others(set_in_vain[0], data.kind)}"
        )
    for key in ("optim.label_smoothing", "optim.class_weights", "data.sampling"):
        if data.regression and given[key] != default[key]:
            raise InputError(f"config.{key} is set, but the labels are numbers, not classes")


def _for_others(key: str, kind: str) -> str:
    """The end of a message: the kind of example that a key is for, and a config for the kind at hand."""
    others = [other.many for other in KINDS.values() if key in other.keys]
    if not others:
        return ""
    own, many = KINDS[kind], " and ".join(others)
    return f"; it is for {many}, as is a --config=FILE that sets it; one for {own.many} is {own.config}"
