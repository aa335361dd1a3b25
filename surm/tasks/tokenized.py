"""What the tasks of texts have in common: where their tokenizer is, and how long their texts may be."""

import pathlib

import ml_collections

from surm import files
from surm.data.tokenizer import Opened
from surm.data.tokens import lengths_of
from surm.errors import InputError
from surm.models.architecture import LanguageShape, TextShape
from surm.models.weights import Weights


def place_of(config: ml_collections.ConfigDict, weights: Weights | None) -> pathlib.Path | None:
    """The folder or file of the tokenizer: that of `config.data.tokenizer`, else that of the weights; or None."""
    own = files.local(files.path(config.data.tokenizer)) if config.data.tokenizer else None
    return own or (weights.path if weights else None)


def lengths_for(config: ml_collections.ConfigDict, shape: TextShape | LanguageShape) -> tuple[int, ...]:
    """The lengths in tokens of `config.data.lengths`; raises InputError if the model has not so many positions."""
    lengths = lengths_of(config.data.lengths)
    if lengths[-1] > shape.max_length:
        raise InputError(
            f"config.data.lengths={config.data.lengths!r} goes up to {lengths[-1]} tokens, but the model has positions "
            f"for {shape.max_length}"
        )
    return lengths


def longest(lengths: tuple[int, ...], opened: Opened) -> tuple[int, str]:
    """The largest number of tokens of a text, and what sets it, for a notice."""
    if opened.limit and opened.limit < lengths[-1]:
        return opened.limit, "model_max_length of the tokenizer"
    return lengths[-1], "the last of config.data.lengths"
