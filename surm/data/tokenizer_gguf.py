"""Makes the tokenizer of a GGUF file from its vocabulary, its merges and the name of its pre-tokenizer.

A file states `tokenizer.ggml.model`: `gpt2` merges bytes, and `tokenizer.ggml.pre` names the pattern of words; `llama`
is a sentencepiece vocabulary with scores. Tokens have types: control tokens and those of a user are matched as a whole.

Source: llama-vocab.cpp of llama.cpp for the patterns, and the tokenizers that the models were published with.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from surm.data import byte_pairs
from surm.errors import InputError, nearest, one_line
from surm.models.gguf.header import read

_CONTROL, _OF_A_USER = 3, 4


class Words(NamedTuple):
    """The splitting of a text into words; the fields are arguments of `surm.data.byte_pairs.of_bytes`."""

    split: str | None = None
    single_digits: bool = False
    whole_words: bool = False
    composed: bool = False


_PATTERNS: dict[Words, tuple[str, ...]] = {
    Words(): ("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "roberta-bpe", "modern-bert"),
    Words(single_digits=True): (
        "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
    ),
    Words(byte_pairs.LLAMA3, whole_words=True): (
        "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    ),
    Words(byte_pairs.LLAMA3): ("dbrx", "smaug-bpe"),
    Words(byte_pairs.QWEN2, composed=True): ("qwen2", "deepseek-r1-qwen"),
    Words(byte_pairs.TEKKEN, whole_words=True): ("tekken",),
    Words(byte_pairs.GPT4O): ("gpt-4o", "llama4"),
}  # fmt: skip
PRE_TOKENIZERS: dict[str, Words] = {name: words for words, names in _PATTERNS.items() for name in names}
"""The splitting into words by `tokenizer.ggml.pre`."""
_BEGINNING = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
"""Pre-tokenizers of models whose texts begin with a token, if the file says nothing of it (llama.cpp)."""
_GEMMA = ("gemma", "gemma2", "gemma3")


def tokenizer_of(file: str | os.PathLike) -> Tokenizer:
    """Makes the tokenizer of a GGUF file.

    Args:
      file: a local file.

    Returns:
      The tokenizer. It puts a token at the beginning or end of a text if the file says so.

    Raises:
      InputError: if the file cannot be read, has no vocabulary, or one of a kind or with a pre-tokenizer that is not
        supported; or if its parts do not fit together.
    """
    name, metadata = os.fspath(file), read(file).metadata
    entries = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokens, model = entries.get("tokens"), entries.get("model")
    if not isinstance(tokens, list) or not tokens:
        raise InputError(f"{name!r} has no tokenizer.ggml.tokens, so no vocabulary; config.data.tokenizer may name one")
    if model not in _MODELS:
        known = " or ".join(map(repr, _MODELS))
        raise InputError(f"{name!r} says tokenizer.ggml.model={model!r}; expected {known}")
    try:
        tokenizer = _MODELS[model](name, entries, metadata.get("general.architecture"))
    except InputError:
        raise
    except Exception as error:  # the library raises plain Exceptions
        raise InputError(f"{name!r} holds a vocabulary and merges that do not fit ({one_line(error)})") from error
    _add(tokenizer, tokens, entries.get("token_type", []))
    _check_numbers(name, tokenizer, tokens)
    tokenizer.post_processor = _ends(name, tokenizer, entries)
    return tokenizer


def _of_bytes(name: str, entries: Mapping[str, Any], architecture: str) -> Tokenizer:
    pre = entries.get("pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise InputError(f"{name!r} says tokenizer.ggml.pre={pre!r}; {nearest(str(pre), PRE_TOKENIZERS)}")
    vocabulary = {token: number for number, token in enumerate(entries["tokens"])}
    return byte_pairs.of_bytes(vocabulary, _merges(name, entries), **PRE_TOKENIZERS[pre]._asdict())


def _of_characters(name: str, entries: Mapping[str, Any], architecture: str) -> Tokenizer:
    gemma = architecture in _GEMMA
    tokens = [_filled(token) if gemma else token for token in entries["tokens"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if "merges" in entries:
        merges = _merges(name, entries)
    else:  # Gemma's scores do not follow its merges, but its numbers do
        scores = range(0, -len(tokens), -1) if gemma else [*map(float, entries.get("scores", []))]
        if len(scores) != len(tokens):
            raise InputError(f"{name!r} has {len(scores):,} scores for {len(tokens):,} tokens; expected one each")
        merges = byte_pairs.merges_of(vocabulary, dict(zip(tokens, scores, strict=True)))
    if gemma:
        return byte_pairs.of_gemma(vocabulary, merges, tokens[entries.get("unknown_token_id", 3)])
    if architecture == "phi3":
        return byte_pairs.of_phi3(vocabulary, merges)
    return byte_pairs.of_characters(vocabulary, merges, "first" if entries.get("add_space_prefix", True) else "never")


_MODELS = {"gpt2": _of_bytes, "llama": _of_characters}


def _filled(token: str) -> str:
    """Gemma's tokens of several spaces, which are plain in the file."""
    return byte_pairs.SPACE * len(token) if " " in token and not token.strip() else token


def _merges(name: str, entries: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    if "merges" not in entries:
        raise InputError(f"{name!r} has no tokenizer.ggml.merges, which a vocabulary of bytes needs")
    for line in entries["merges"]:
        left, _, right = str(line)[1:].partition(" ")
        if not right:
            raise InputError(f"{name!r} has the merge {line!r}; expected two tokens with a space between")
        found.append((str(line)[0] + left, right))
    return found


def _add(tokenizer: Tokenizer, tokens: list[str], types: Any) -> None:
    """Makes the control tokens special, and lets those of a user be matched as a whole."""
    kinds = [*zip(tokens, types, strict=False)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, of in kinds if of == _CONTROL])
    own = [token for token, of in kinds if of == _OF_A_USER and tokenizer.token_to_id(token) is not None]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in own])


def _check_numbers(name: str, tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Raises InputError if tokens occur twice, so that the numbers of others would move."""
    if (size := tokenizer.get_vocab_size()) != len(tokens):
        raise InputError(f"{name!r} lists {len(tokens):,} tokens, of which {size:,} are different; expected no repeats")


def _ends(name: str, tokenizer: Tokenizer, entries: Mapping[str, Any]) -> Any:
    begins = entries["model"] == "llama" or entries.get("pre") in _BEGINNING
    wanted = {"bos": entries.get("add_bos_token", begins), "eos": entries.get("add_eos_token", False)}
    return byte_pairs.ends(tokenizer, *(_end(name, entries, which) if wanted[which] else None for which in wanted))


def _end(name: str, entries: Mapping[str, Any], which: str) -> str:
    number, tokens = entries.get(f"{which}_token_id"), entries["tokens"]
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        given = f"tokenizer.ggml.{which}_token_id={number!r}"
        raise InputError(f"{name!r} says {given}, which is put around texts; expected a number below {len(tokens):,}")
    return tokens[number]
