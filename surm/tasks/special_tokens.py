"""The special tokens that the files of a model name: where a text begins and ends."""

import os
from collections.abc import Mapping
from typing import Any

import tokenizers
from etils import epath

from surm import files
from surm.data import tokenizer_files
from surm.models import gguf


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
    if place is not None and place.suffix.lower() == gguf.SUFFIX:
        return _of_gguf(place)
    if place is None or not (place.is_dir() or place.suffix == ".safetensors"):
        return {}
    own = tokenizer_files.read(place if place.is_dir() else place.parent).settings
    named = {**own, **own.get("model_specific_special_tokens", {})}
    return {name: str(value) for name, value in named.items() if name.endswith("_token") and value is not None}


def end_of_text(
    path: str | os.PathLike | None, tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any] | None = None
) -> int | None:
    """The number of the token that ends a text.

    Args:
      path: as for `texts`.
      tokenizer: the tokenizer.
      config: the config.json of the model, whose `eos_token_id` counts if the tokenizer's files name no `eos_token`.

    Returns:
      The number; None if no file names such a token.
    """
    if (text := texts(path).get("eos_token")) is not None:
        return tokenizer.token_to_id(text)
    stated = (config or {}).get("eos_token_id")
    first = stated[0] if isinstance(stated, list) and stated else stated
    return first if isinstance(first, int) and tokenizer.id_to_token(first) is not None else None


def _of_gguf(file: epath.Path) -> dict[str, str]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    found = gguf.special_tokens(files.local(file))
    return {own: found[name][1] for name, own in names.items() if name in found}
