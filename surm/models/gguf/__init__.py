"""GGUF files, the format of llama.cpp: weights, config, chat template and special tokens in one file.

`opened` gives the weights under Hugging Face's names and in its layout, and a config.json made of the metadata, so that
a model is filled from a GGUF file as from safetensors. The vocabulary is read by `surm.data.tokenizer`.
"""

import os
import pathlib
from typing import Any

from etils import epath

from surm.errors import InputError
from surm.models.gguf import blocks, config, kinds
from surm.models.gguf.header import read
from surm.models.lazy import Arrays

SUFFIX = ".gguf"


def is_named(path: pathlib.PurePath | epath.Path) -> bool:
    """Whether a path has the ending of GGUF files."""
    return path.suffix.lower() == SUFFIX


def opened(file: str | os.PathLike) -> tuple[Arrays, dict[str, Any]]:
    """Opens the weights of a GGUF file.

    Args:
      file: a local file.

    Returns:
      The arrays by Hugging Face's names, each read and dequantised when it is asked for; and the fields of config.json.

    Raises:
      InputError: if the file is no GGUF file or is cut short; if its architecture, or the type of a tensor, is not
        read; if metadata are missing; or if the gguf package is not installed.
    """
    header = read(file)
    metadata = config.Metadata(header)
    stored = blocks.stored(header)
    fields = config.config_of(metadata, stored)
    heads = fields.get("num_attention_heads", 1)
    renamed = kinds.renamed(header.file, metadata.kind, stored, heads, fields.get("num_key_value_heads", heads))
    return Arrays(renamed), fields


def chat_template(file: str | os.PathLike) -> str | None:
    """The chat template of a GGUF file, the text of a Jinja template; None if the file has none.

    Raises:
      InputError: if the file cannot be read as a GGUF file.
    """
    return _text(read(file).metadata.get("tokenizer.chat_template"))


def special_tokens(file: str | os.PathLike) -> dict[str, tuple[int, str]]:
    """The number and text of each special token of a GGUF file.

    Args:
      file: a local file.

    Returns:
      Numbers and texts under those of `bos`, `eos`, `eot` (the end of a turn), `eom` (the end of a message), `unknown`
      and `padding` that the file names.

    Raises:
      InputError: if the file cannot be read as a GGUF file, or a number is not in its vocabulary.
    """
    metadata = read(file).metadata
    tokens, found = metadata.get("tokenizer.ggml.tokens", []), {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if number is None:
            continue
        if not isinstance(number, int) or not 0 <= number < len(tokens):
            given = f"tokenizer.ggml.{name}_token_id={number!r}"
            raise InputError(f"{os.fspath(file)!r} says {given}, but its vocabulary has {len(tokens):,} tokens")
        found[name] = (number, tokens[number])
    return found


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
