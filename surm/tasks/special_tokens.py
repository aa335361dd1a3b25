"""The special tokens that the files of a model name: where a text begins and ends."""

import os
from collections.abc import Mapping
from typing import Any

import tokenizers
from etils import epath

from surm import files
from surm.data import tokenizer_files
from surm.errors import InputError
from surm.models import gguf
from surm.models.weights import Weights

_CONFIGS = ("config.json", "generation_config.json")
_ENDS = ("eos", "eot", "eom")


def texts(path: str | os.PathLike | None) -> dict[str, str]:
    """The texts of the special tokens that files name, such as `eos_token`.

    Args:
      path: the folder of a model or tokenizer, or a file of weights in it; or a .gguf file. Any other file, such as a
        tokenizer.json that is used as it stands, names none.

    Returns:
      The texts by name; empty if there are none.

    Raises:
      InputError: if a file cannot be read.
    """
    place = None if path is None else files.path(path)
    if place is not None and gguf.is_named(place):
        return _of_gguf(place)
    folder = tokenizer_files.folder_of(place)
    if folder is None:
        return {}
    own = tokenizer_files.read(folder).settings
    named = {**own, **own.get("model_specific_special_tokens", {})}
    return {name: str(value) for name, value in named.items() if name.endswith("_token") and value is not None}


def ends(
    path: str | os.PathLike | None, tokenizer: tokenizers.Tokenizer, weights: Weights | None = None
) -> tuple[int, ...]:
    """The numbers of all tokens that end a text; a text without a template is trained to end with the first.

    These are `eos_token` of the tokenizer's files; `eos_token_id` in config.json and then in generation_config.json,
    of the weights and beside the tokenizer; and the ends of a text, a turn and a message that a .gguf file names. If
    the tokenizer does not come with the weights, the numbers of their files count only for tokens that it matches as a
    whole, as it does special tokens: others may be those of another vocabulary.

    Args:
      path: as for `texts`.
      tokenizer: the tokenizer.
      weights: the weights; None if there are none.

    Returns:
      The numbers, each once; empty if no file names such a token.

    Raises:
      InputError: if a file cannot be read, or names an `eos_token` that the tokenizer lacks and no other end.
    """
    named = texts(path).get("eos_token")
    first = None if named is None else tokenizer.token_to_id(named)
    own, stated = None if path is None else files.path(path), []
    if weights is not None:
        beside = weights.path is not None and own == files.path(weights.path)
        found = [*_numbers(weights.config), *_beside(weights.path)]
        stated += [one for one in found if beside or one in tokenizer.get_added_tokens_decoder()]
    stated += _beside(own)
    known = [one for one in stated if tokenizer.id_to_token(one) is not None]
    if named is not None and first is None and not known:
        raise InputError(
            f"the tokenizer {str(path)!r} names eos_token={named!r}, which is none of its tokens; expected one of "
            "them, or eos_token_id in config.json"
        )
    return tuple(dict.fromkeys([*([] if first is None else [first]), *known]))


def _numbers(config: Mapping[str, Any]) -> list[int]:
    stated = config.get("eos_token_id")
    return [one for one in (stated if isinstance(stated, list) else [stated]) if type(one) is int]


def _beside(path: str | os.PathLike | None) -> list[int]:
    """The numbers of the ends that a .gguf file, or the configurations of a folder, name."""
    place = None if path is None else files.path(path)
    if place is not None and gguf.is_named(place):
        found = gguf.special_tokens(files.local(place))
        return [found[name][0] for name in _ENDS if name in found]
    folder = tokenizer_files.folder_of(place)
    if folder is None:
        return []
    return [number for name in _CONFIGS for number in _numbers(files.json_object(folder / name) or {})]


def _of_gguf(file: epath.Path) -> dict[str, str]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    found = gguf.special_tokens(files.local(file))
    return {own: found[name][1] for name, own in names.items() if name in found}
