"""A tokenizer opened as transformers 5 opens it, and whether it and a word table belong together.

transformers 5 takes most of tokenizer.json only where `tokenizer_class` says so (PreTrainedTokenizerFast): a BERT's, a
RoBERTa's, a CamemBERT's and an XLM-RoBERTa's tokenizer is built anew from the vocabulary and tokenizer_config.json.
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
from surm.data import tokenizer_files
from surm.data.tokenizer_classes import BUILT, Special, flag
from surm.data.tokenizer_files import ITSELF, SAVED_FILE, SETTINGS, SPECIAL, Stated
from surm.errors import InputError, few, one_line
from surm.machine.notes import say

REMEDY = (
    "config.data.tokenizer may name another file; one is made in Python with transformers: "
    "AutoTokenizer.from_pretrained(NAME).save_pretrained(DIR)"
)
_HUGE = 10**20  # from here on transformers takes a limit for none
_PROBE = " Héllo  WORLD\t中文字 don't\u00a0x1 ﬁn\u200b."
_VOCABULARIES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", SETTINGS)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A tokenizer and what its files say of its use.

    Attributes:
      tokenizer: with neither truncation nor filling.
      limit: tokens that a text may have, by model_max_length; None for any number.
      side: where texts that are too long are cut, `right` or `left`.
      segmented: whether the model is told which tokens are a pair's second text.
    """

    tokenizer: tokenizers.Tokenizer
    limit: int | None = None
    side: str = "right"
    segmented: bool = True


def open_tokenizer(path: str | os.PathLike | None) -> tokenizers.Tokenizer:
    """The tokenizer alone that `opened` opens; arguments and errors as there."""
    return opened(path).tokenizer


def opened(path: str | os.PathLike | None) -> Opened:
    """Reads a tokenizer with the files beside it.

    Args:
      path: a folder that holds one, or the weights beside one: all files of the folder are followed as transformers 5
        follows them. Or a tokenizer.json, which is used as it stands. None if there is none.

    Returns:
      The tokenizer and how it is used.

    Raises:
      InputError: if there is none, a file cannot be read, or says what is not known here.
    """
    if path is None:
        raise InputError(f"the weights bring no {SAVED_FILE}; {REMEDY}")
    place = files.path(path)
    if place.is_dir():
        return _of_folder(place)
    if place.suffix == ".safetensors":
        return _of_folder(place.parent)
    if not place.is_file():
        raise InputError(f"no tokenizer at {str(place)!r}; {REMEDY}")
    if (place.parent / SETTINGS).is_file():
        say(f"{str(place)!r} is used as it stands, without {SETTINGS} beside it; name the folder to follow that too")
    return Opened(_plain(_of_saved(place)))


def _of_folder(folder: epath.Path) -> Opened:
    saved = folder / SAVED_FILE
    if not saved.is_file() and not any((folder / name).is_file() for name in _VOCABULARIES):
        raise InputError(f"no tokenizer at {str(saved)!r}; {REMEDY}")
    stated = tokenizer_files.read(folder)
    if stated.bare:
        return Opened(_plain(_of_saved(saved)))
    anew = stated.kind in BUILT and _fits(stated)
    tokenizer = _plain(_built(stated) if anew else _as_saved(stated))
    _say_other_numbers(tokenizer, stated)
    return Opened(tokenizer, _limit(stated), _side(stated), _segmented(tokenizer, stated, anew))


def _fits(stated: Stated) -> bool:
    """Whether the class makes something of tokenizer.json's vocabulary; in transformers words vanish where not."""
    model = ((stated.saved or {}).get("model") or {}).get("type")
    if model in BUILT[stated.kind].models:
        return True
    if stated.named:
        raise InputError(f"{SAVED_FILE} holds a {model} vocabulary, of which {stated.kind} makes nothing; {ITSELF}")
    say(f"{SAVED_FILE} holds a {model} vocabulary and is used as it stands: a {stated.kind} would make nothing of it")
    return False


def _segmented(tokenizer: tokenizers.Tokenizer, stated: Stated, anew: bool) -> bool:
    names = stated.settings.get("model_input_names")
    if names is not None:
        return "token_type_ids" in names
    told = BUILT[stated.kind].segmented if anew else stated.kind in BUILT
    if not told and any(tokenizer.encode("a", "a").type_ids):
        say(f"{SETTINGS} names no token_type_ids in model_input_names: a pair's second text is not told apart")
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
    """tokenizer.json, with the tokens that the other files add."""
    tokenizer = _of_saved(stated.folder / SAVED_FILE)
    special = {key: stated.settings.get(key) for key in SPECIAL}
    if special["pad_token"] is None and tokenizer.padding:
        special["pad_token"] = tokenizer.padding["pad_token"]
    _add(tokenizer, stated, special, ())
    return tokenizer


def _built(stated: Stated) -> tokenizers.Tokenizer:
    """What the class makes of the vocabulary."""
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
    # What the class alone implies and the vocabulary lacks has no row in any word table: it is left out.
    lacking = [key for key, value in of.special.items() if tokenizer.token_to_id(str(value)) is None]
    named = special | {key: None for key in lacking if key not in stated.settings}
    _add(tokenizer, stated, named, [text for text in of.extra if tokenizer.token_to_id(text) is not None])
    tokenizer.post_processor = of.ends(tokenizer, special)
    return tokenizer


def _add(tokenizer: tokenizers.Tokenizer, stated: Stated, special: Special, extra: tuple[str, ...] | list[str]) -> None:
    """Adds the tokens that the files name: those of other places behind the last, in the order of their numbers."""
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
        raise InputError(f"{SETTINGS} says model_max_length={limit!r}; expected a whole number from 1")
    return int(limit) if limit <= _HUGE else None


def _side(stated: Stated) -> str:
    cut = (stated.saved or {}).get("truncation") or {}
    side = stated.settings.get("truncation_side", str(cut.get("direction", "right")).lower())
    if side not in ("right", "left"):
        raise InputError(f"{SETTINGS} says truncation_side={side!r}; expected 'right' or 'left'")
    return side


def _say_other_words(tokenizer: tokenizers.Tokenizer, stated: Stated) -> None:
    """Says it where tokenizer.json would have cut texts up in another way."""
    if stated.saved is None:
        return
    pairs = itertools.zip_longest(_words(_of_saved(stated.folder / SAVED_FILE)), _words(tokenizer), fillvalue="")
    if different := [(theirs, ours) for theirs, ours in pairs if theirs != ours]:
        theirs, ours = different[0]
        say(
            f"{SAVED_FILE} alone would make {theirs!r} of what is {ours!r} to a {stated.kind} with this {SETTINGS}; "
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
        say(f"added tokens are numbered behind the vocabulary, as in transformers 5, where a file says {few(moved)}")


def check_vocabulary(tokenizer: tokenizers.Tokenizer, rows: int, *, pretrained: bool = True) -> None:
    """Checks that a tokenizer and a word table belong together, as far as their sizes tell.

    Args:
      tokenizer: from `open_tokenizer`.
      rows: of the word table; more than there are tokens are said where it is more than filling up.
      pretrained: whether the table's rows have a meaning already.

    Raises:
      InputError: if the tokenizer knows tokens that have no row.
    """
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    token = max(numbers, key=numbers.__getitem__, default="")
    highest = numbers.get(token, -1)
    if highest >= rows:
        raise InputError(
            f"the tokenizer's tokens go up to {highest}, {token!r}, but the model's word table has {rows} rows; "
            "tokenizer and weights do not belong together, or tokens were added to the first alone"
        )
    if pretrained and rows - highest > 1024:
        say(f"the model's word table has {rows:,} rows, of which the tokenizer has use for {highest + 1:,}")
