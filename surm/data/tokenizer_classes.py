"""The tokenizers that transformers 5 builds from a vocabulary and a few settings, without the rest of tokenizer.json.

The functions here make the normaliser, the splitting and the special tokens around texts as `BertTokenizer`,
`RobertaTokenizer`, `CamembertTokenizer` and `XLMRobertaTokenizer` of transformers 5.23 do, and those of decoders,
`GPT2Tokenizer`, `Qwen2Tokenizer`, `LlamaTokenizer` and `GemmaTokenizer`; tests/parity compares them.
"""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from etils import epath
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from surm import files
from surm.data import byte_pairs
from surm.data.tokenizer_files import ITSELF, SAVED_FILE, SETTINGS, Stated
from surm.errors import InputError

Special = Mapping[str, str | AddedToken | None]
CONVERTED = "make one in Python with transformers: AutoTokenizer.from_pretrained(NAME).save_pretrained(DIR)"


class Class(NamedTuple):
    """A tokenizer class of transformers.

    Attributes:
      special: the defaults of its special tokens.
      models: the types of vocabulary that it reads; None stands for a tokenizer.json that names no type.
      segmented: whether the model is told which text of a pair a token belongs to, unless the settings say otherwise.
      front: makes a tokenizer with its vocabulary, normaliser and splitting from the files' settings and special
        tokens.
      ends: makes the post-processor, which puts special tokens around texts, from the tokenizer, the files' settings
        and special tokens.
      extra: further special tokens, if the files name none.
    """

    special: dict[str, str | AddedToken]
    models: tuple[str | None, ...]
    segmented: bool
    front: Callable[[Stated, Special], Tokenizer]
    ends: Callable[[Tokenizer, Stated, Special], Any]
    extra: tuple[str, ...] = ()


def flag(settings: dict, key: str, default: bool | None) -> bool | None:
    """A setting that must be true or false (or null, if that is its default)."""
    value = settings.get(key, default)
    if not isinstance(value, bool) and not (value is default is None):
        raise InputError(f"{SETTINGS} says {key}={value!r}; expected true or false")
    return value


def _bert(stated: Stated, special: Special) -> Tokenizer:
    vocabulary = _saved_vocabulary(stated) if stated.saved else _lines(stated.folder / "vocab.txt")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=str(special["unk_token"])))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=flag(stated.settings, "tokenize_chinese_chars", True),
        strip_accents=flag(stated.settings, "strip_accents", None),
        lowercase=flag(stated.settings, "do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _roberta(stated: Stated, special: Special) -> Tokenizer:
    del special
    vocabulary, merges = _saved_merges(stated) if stated.saved else _merges(stated.folder)
    empty = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False, "dropout": None}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **empty))
    spaced = flag(stated.settings, "add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    return tokenizer


def _sentencepiece(unknown: Callable[[list, Special], int]) -> Callable[[Stated, Special], Tokenizer]:
    def front(stated: Stated, special: Special) -> Tokenizer:
        if not stated.saved:
            raise InputError(
                f"{str(stated.folder)!r} holds no {SAVED_FILE}, and a .model file is not read; {CONVERTED}"
            )
        vocabulary = [tuple(entry) for entry in _saved_vocabulary(stated)]
        model = models.Unigram(vocabulary, unk_id=unknown(vocabulary, special), byte_fallback=False)
        tokenizer = Tokenizer(model)
        if (table := _precompiled(stated.saved)) is not None:
            tokenizer.normalizer = normalizers.Precompiled(table)
        scheme = "always" if flag(stated.settings, "add_prefix_space", True) else "never"
        space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
        return tokenizer

    return front


def _by_name(vocabulary: list, special: Special) -> int:
    return next((index for index, (text, _) in enumerate(vocabulary) if text == str(special["unk_token"])), 0)


def _bert_ends(tokenizer: Tokenizer, stated: Stated, special: Special) -> Any:
    cls, sep = str(special["cls_token"]), str(special["sep_token"])
    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(text, number(tokenizer, text)) for text in (cls, sep)],
    )


def _roberta_ends(tokenizer: Tokenizer, stated: Stated, special: Special) -> Any:
    cls, sep = str(special["cls_token"]), str(special["sep_token"])
    return processors.RobertaProcessing((sep, number(tokenizer, sep)), (cls, number(tokenizer, cls)))


def _sentence_ends(tokenizer: Tokenizer, stated: Stated, special: Special) -> Any:
    begin, end = str(special["bos_token"]), str(special["eos_token"])
    return processors.TemplateProcessing(
        single=[begin, "$A", end],
        pair=[begin, "$A", end, end, "$B", end],
        special_tokens=[(text, number(tokenizer, text)) for text in (begin, end)],
    )


def _decoder(make: Callable[..., Tokenizer]) -> Callable[[Stated, Special], Tokenizer]:
    def front(stated: Stated, special: Special) -> Tokenizer:
        vocabulary, merges = _saved_merges(stated) if stated.saved else _merges(stated.folder)
        return make(vocabulary, merges, stated.settings, special)

    return front


def _gpt2(vocabulary: dict, merges: list, settings: dict, special: Special) -> Tokenizer:
    return byte_pairs.of_bytes(vocabulary, merges, prefix=flag(settings, "add_prefix_space", False))


def _qwen2(vocabulary: dict, merges: list, settings: dict, special: Special) -> Tokenizer:
    prefix = bool(flag(settings, "add_prefix_space", None))
    return byte_pairs.of_bytes(vocabulary, merges, split=byte_pairs.QWEN2, composed=True, prefix=prefix)


def _llama(vocabulary: dict, merges: list, settings: dict, special: Special) -> Tokenizer:
    prefix, legacy = flag(settings, "add_prefix_space", None), flag(settings, "legacy", None)
    scheme = "never" if prefix is False else "always" if legacy else "first"
    return byte_pairs.of_characters(vocabulary, merges, scheme)


def _gemma(vocabulary: dict, merges: list, settings: dict, special: Special) -> Tokenizer:
    return byte_pairs.of_gemma(vocabulary, merges, str(special["unk_token"]))


def _decoder_ends(tokenizer: Tokenizer, stated: Stated, special: Special) -> Any:
    """The post-processor of tokenizer.json; without that file, what add_bos_token and add_eos_token ask for."""
    if stated.saved:
        empty = {**stated.saved["model"], "vocab": {}, "merges": []}
        return Tokenizer.from_str(json.dumps({**stated.saved, "model": empty, "added_tokens": []})).post_processor
    wanted = [special.get(f"{name}_token") if flag(stated.settings, f"add_{name}_token", False) else None
              for name in ("bos", "eos")]  # fmt: skip
    texts = [None if token is None else str(token) for token in wanted]
    for text in filter(None, texts):
        number(tokenizer, text)
    return byte_pairs.ends(tokenizer, *texts)


def number(tokenizer: Tokenizer, text: str) -> int:
    """The number of a token; InputError if the vocabulary lacks it."""
    found = tokenizer.token_to_id(text)
    if found is None:
        raise InputError(f"the vocabulary has no {text!r}, a special token that is put around texts; {ITSELF}")
    return found


def _saved_vocabulary(stated: Stated) -> Any:
    return stated.saved["model"]["vocab"]


def _saved_merges(stated: Stated) -> tuple[dict, list]:
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in stated.saved["model"]["merges"]]
    return _saved_vocabulary(stated), merges


def _lines(file: epath.Path) -> dict[str, int]:
    if not file.is_file():
        raise InputError(f"{str(file.parent)!r} holds neither {SAVED_FILE} nor {file.name}; {CONVERTED}")
    return {line.rstrip(): index for index, line in enumerate(file.read_text().removesuffix("\n").split("\n"))}


def _merges(folder: epath.Path) -> tuple[dict, list]:
    vocabulary = files.json_object(folder / "vocab.json")
    if vocabulary is None or not (folder / "merges.txt").is_file():
        raise InputError(f"{str(folder)!r} holds neither {SAVED_FILE} nor vocab.json and merges.txt; {CONVERTED}")
    lines = (folder / "merges.txt").read_text().splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if wrong := [pair for pair in merges if len(pair) != 2]:
        raise InputError(f"{str(folder / 'merges.txt')!r} holds the line {' '.join(wrong[0])!r}; expected pairs")
    return vocabulary, merges


def _precompiled(saved: dict) -> bytes | None:
    """The character table of sentencepiece's normaliser, from any place in the list of normalisers."""
    stated = saved.get("normalizer") or {}
    for part in stated.get("normalizers", [stated]) if isinstance(stated, dict) else []:
        if part.get("type") == "Precompiled" and part.get("precompiled_charsmap"):
            return base64.b64decode(part["precompiled_charsmap"])
    return None


_WORDS = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
_ENDS = {
    "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
    "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip
_CAMEMBERT = _ENDS | {"mask_token": AddedToken("<mask>", lstrip=True, special=True)}
_OF_TEXT = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
_QWEN = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_GEMMA = {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")}
_WORD_KINDS = ("WordPiece", "WordLevel", None)

BUILT: dict[str, Class] = {
    "BertTokenizer": Class(_WORDS, _WORD_KINDS, True, _bert, _bert_ends),
    "DistilBertTokenizer": Class(_WORDS, _WORD_KINDS, False, _bert, _bert_ends),
    "RobertaTokenizer": Class(_ENDS, ("BPE", None), False, _roberta, _roberta_ends),
    "CamembertTokenizer": Class(
        _CAMEMBERT, ("Unigram", None), False, _sentencepiece(_by_name), _sentence_ends,
        extra=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
    ),
    "XLMRobertaTokenizer": Class(
        _ENDS, ("Unigram", None), False, _sentencepiece(lambda vocabulary, special: 3), _sentence_ends
    ),
    "GPT2Tokenizer": Class(_OF_TEXT, ("BPE", None), False, _decoder(_gpt2), _decoder_ends),
    "Qwen2Tokenizer": Class(_QWEN, ("BPE", None), False, _decoder(_qwen2), _decoder_ends),
    "LlamaTokenizer": Class(_LLAMA, ("BPE", None), False, _decoder(_llama), _decoder_ends),
    "GemmaTokenizer": Class(_GEMMA, ("BPE", None), False, _decoder(_gemma), _decoder_ends),
}  # fmt: skip
