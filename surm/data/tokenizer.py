"""Opens a tokenizer as transformers 5 does, and checks that it fits a model's word table.

transformers 5 follows all of tokenizer.json only if `tokenizer_class` is PreTrainedTokenizerFast. It builds the
tokenizers of BERT, RoBERTa, CamemBERT, XLM-RoBERTa, GPT-2, Qwen, Llama 2 and Gemma from the vocabulary and
tokenizer_config.json.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable
from typing import Any

import tokenizers
from etils import epath
from tokenizers import AddedToken

from surm import files
from surm.data import tokenizer_files, tokenizer_gguf
from surm.data.tokenizer_classes import BUILT, Special, flag
from surm.data.tokenizer_files import ITSELF, SAVED_FILE, SETTINGS, SPECIAL, Stated
from surm.errors import InputError, few, one_line
from surm.machine.notes import say
from surm.models import gguf

REMEDY = (
    "config.data.tokenizer may name another file; to make one in Python with transformers: "
    "AutoTokenizer.from_pretrained(NAME).save_pretrained(DIR)"
)
_HUGE = 10**20  # transformers takes a larger limit to mean no limit
_PROBE = " Héllo  WORLD\t中文字 don't\u00a0x1 ﬁn\u200b."
_VOCABULARIES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", SETTINGS)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A tokenizer with the settings for its use.

    Attributes:
      tokenizer: the tokenizer, without truncation or padding.
      limit: the largest number of tokens of a text (model_max_length); None for no limit.
      side: the side on which texts that are too long are cut, `right` or `left`.
      segmented: whether the model is told which tokens belong to the second text of a pair (token_type_ids).
    """

    tokenizer: tokenizers.Tokenizer
    limit: int | None = None
    side: str = "right"
    segmented: bool = True


def open_tokenizer(path: str | os.PathLike | None) -> tokenizers.Tokenizer:
    """Returns only the tokenizer that `opened` opens, with the same arguments and errors."""
    return opened(path).tokenizer


def opened(path: str | os.PathLike | None, *, pairs: bool = True) -> Opened:
    """Reads a tokenizer with the files beside it.

    Args:
      path: a folder with a tokenizer, or a file of weights in such a folder: then all files of the folder are followed
        as in transformers 5. Or a tokenizer.json, which is used unchanged, or a GGUF file, whose own vocabulary is
        used. None if there is no tokenizer.
      pairs: whether the model reads pairs of texts; if it cannot tell them apart, a notice says so.

    Returns:
      The tokenizer and the settings for its use.

    Raises:
      InputError: if there is no tokenizer, or a file cannot be read or has a setting that is not supported.
    """
    if path is None:
        raise InputError(f"the weights have no {SAVED_FILE}; {REMEDY}")
    place = files.path(path)
    if folder := tokenizer_files.folder_of(place):
        return _of_folder(folder, pairs)
    if not place.is_file():
        raise InputError(f"no tokenizer at {str(place)!r}; {REMEDY}")
    if gguf.is_named(place):
        return Opened(tokenizer_gguf.tokenizer_of(files.local(place)), segmented=False)
    if (place.parent / SETTINGS).is_file():
        say(f"{str(place)!r} is used unchanged, without the {SETTINGS} beside it; name the folder to follow both")
    return Opened(_plain(_of_saved(place)))


def _of_folder(folder: epath.Path, pairs: bool) -> Opened:
    saved = folder / SAVED_FILE
    if not saved.is_file() and not any((folder / name).is_file() for name in _VOCABULARIES):
        raise InputError(f"no tokenizer at {str(saved)!r}; {REMEDY}")
    stated = tokenizer_files.read(folder)
    if stated.bare:
        return Opened(_plain(_of_saved(saved)))
    anew = stated.kind in BUILT and _fits(stated)
    tokenizer = _plain(_built(stated) if anew else _as_saved(stated))
    _say_other_numbers(tokenizer, stated)
    return Opened(tokenizer, _limit(stated), _side(stated), pairs and _segmented(tokenizer, stated, anew))


def _fits(stated: Stated) -> bool:
    """Whether the class can read tokenizer.json's vocabulary; if it cannot, transformers loses words silently."""
    model = ((stated.saved or {}).get("model") or {}).get("type")
    if model in BUILT[stated.kind].models:
        return True
    if stated.named:
        raise InputError(f"{SAVED_FILE} holds a {model} vocabulary, which {stated.kind} cannot read; {ITSELF}")
    say(f"{SAVED_FILE} holds a {model} vocabulary and is used unchanged, because {stated.kind} cannot read it")
    return False


def _segmented(tokenizer: tokenizers.Tokenizer, stated: Stated, anew: bool) -> bool:
    names = stated.settings.get("model_input_names")
    if names is not None:
        return "token_type_ids" in names
    told = BUILT[stated.kind].segmented if anew else stated.kind in BUILT
    if not told and any(tokenizer.encode("a", "a").type_ids):
        say(f"{SETTINGS} names no token_type_ids in model_input_names: the model cannot tell the texts of a pair apart")
    return told


def _of_saved(file: epath.Path) -> tokenizers.Tokenizer:
    if not file.is_file():
        raise InputError(f"no tokenizer at {str(file)!r}; {REMEDY}")
    try:
        return tokenizers.Tokenizer.from_str(file.read_text())
    except Exception as error:  # the library raises plain Exceptions
        said = one_line(error)
        raise InputError(f"{str(file)!r} is not a tokenizer of the tokenizers library ({said}); {REMEDY}") from error


def _as_saved(stated: Stated) -> tokenizers.Tokenizer:
    """The tokenizer of tokenizer.json, with the tokens that the other files add."""
    tokenizer = _of_saved(stated.folder / SAVED_FILE)
    special = {key: stated.settings.get(key) for key in SPECIAL}
    if special["pad_token"] is None and tokenizer.padding:
        special["pad_token"] = tokenizer.padding["pad_token"]
    _add(tokenizer, stated, special, ())
    return tokenizer


def _built(stated: Stated) -> tokenizers.Tokenizer:
    """The tokenizer that the class builds from the vocabulary."""
    of = BUILT[stated.kind]
    special = of.special | {key: stated.settings[key] for key in SPECIAL if key in stated.settings}
    if nameless := [key for key in of.special if special[key] is None]:
        raise InputError(f"{SETTINGS} says {nameless[0]}=null, which {stated.kind} needs")
    try:
        tokenizer = of.front(stated, special)
    except InputError:
        raise
    except Exception as error:  # the library raises plain Exceptions
        where = str(stated.folder)
        raise InputError(f"{where!r} holds no vocabulary of a {stated.kind} ({one_line(error)}); {REMEDY}") from error
    _say_other_words(tokenizer, stated)
    # Default tokens of the class that the vocabulary lacks have no row in any word table, so they are left out.
    lacking = [key for key, value in of.special.items() if tokenizer.token_to_id(str(value)) is None]
    named = special | {key: None for key in lacking if key not in stated.settings}
    _add(tokenizer, stated, named, [text for text in of.extra if tokenizer.token_to_id(text) is not None])
    tokenizer.post_processor = of.ends(tokenizer, stated, special)
    return tokenizer


def _add(tokenizer: tokenizers.Tokenizer, stated: Stated, special: Special, extra: tuple[str, ...] | list[str]) -> None:
    """Adds the tokens that the files name, after the vocabulary and in the order of their numbers."""
    tokenizer.encode_special_tokens = flag(stated.settings, "split_special_tokens", False)
    named = list((special | stated.settings.get("model_specific_special_tokens", {})).values())
    further = next((stated.settings[key] for key in ("extra_special_tokens", "additional_special_tokens")
                    if stated.settings.get(key) is not None), extra)  # fmt: skip
    if not isinstance(further, list | tuple) or not all(isinstance(text, str | AddedToken) for text in [*further]):
        raise InputError(f"{SETTINGS} says extra_special_tokens={further!r}; expected a list of texts")
    adding: list[str | AddedToken] = [token for _, token in sorted(stated.added.items())]
    there = {*map(str, tokenizer.get_added_tokens_decoder().values()), *map(str, adding)}
    adding += _absent(named, there)
    adding += _absent(further, there)
    tokenizer.add_tokens([_special(token, {str(text) for text in named if text}) for token in adding])


def _absent(tokens: Iterable[Any], there: set[str]) -> list:
    found = []
    for token in tokens:
        if token is not None and str(token) not in there and token not in found:
            found.append(token)
    return found


def _special(token: str | AddedToken, named: set[str]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    if str(token) in named:
        token.special = True
    return token


def _plain(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _limit(stated: Stated) -> int | None:
    limit = stated.settings.get("model_max_length", stated.settings.get("max_len"))
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 1:
        raise InputError(f"{SETTINGS} says model_max_length={limit!r}; expected a whole number of at least 1")
    return int(limit) if limit <= _HUGE else None


def _side(stated: Stated) -> str:
    cut = (stated.saved or {}).get("truncation") or {}
    side = stated.settings.get("truncation_side", str(cut.get("direction", "right")).lower())
    if side not in ("right", "left"):
        raise InputError(f"{SETTINGS} says truncation_side={side!r}; expected 'right' or 'left'")
    return side


def _say_other_words(tokenizer: tokenizers.Tokenizer, stated: Stated) -> None:
    """Gives a notice if tokenizer.json alone would have split texts differently."""
    if stated.saved is None:
        return
    pairs = itertools.zip_longest(_words(_of_saved(stated.folder / SAVED_FILE)), _words(tokenizer), fillvalue="")
    if different := [(theirs, ours) for theirs, ours in pairs if theirs != ours]:
        theirs, ours = different[0]
        say(
            f"{SAVED_FILE} alone would have the word {theirs!r} where {stated.kind} with this {SETTINGS} has {ours!r}; "
            "the latter is followed, as in transformers 5"
        )


def _words(tokenizer: tokenizers.Tokenizer) -> list[str]:
    text = tokenizer.normalizer.normalize_str(_PROBE) if tokenizer.normalizer else _PROBE
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] if tokenizer.pre_tokenizer else [text]


def _say_other_numbers(tokenizer: tokenizers.Tokenizer, stated: Stated) -> None:
    moved = [
        f"{str(token)!r} {index} (here {tokenizer.token_to_id(str(token))})"
        for index, token in sorted(stated.added.items())
        if tokenizer.token_to_id(str(token)) != index
    ]
    if moved:
        say(f"added tokens are numbered after the vocabulary, as in transformers 5, although a file says {few(moved)}")


def check_vocabulary(tokenizer: tokenizers.Tokenizer, rows: int, *, pretrained: bool = True) -> None:
    """Checks that a tokenizer and a word table fit together, as far as their sizes show.

    Args:
      tokenizer: the result of `open_tokenizer`.
      rows: the number of rows of the word table. If there are many more rows than tokens, a notice says so.
      pretrained: whether the rows have been trained already.

    Raises:
      InputError: if tokens of the tokenizer have no row.
    """
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    token = max(numbers, key=numbers.__getitem__, default="")
    highest = numbers.get(token, -1)
    if highest >= rows:
        raise InputError(
            f"the tokenizer's tokens go up to {highest}, {token!r}, but the model's word table has {rows} rows; "
            "tokenizer and weights do not belong together, or tokens were added only to the tokenizer"
        )
    if pretrained and rows - highest > 1024:
        say(f"the model's word table has {rows:,} rows, of which the tokenizer uses {highest + 1:,}")
