"""Folders of tokenizers as people have them: half copied, edited by hand, of other models, of other systems."""

import json
import pathlib
from typing import Any

from surm.data import tokenizer
from tests.data.test_tokenizer import BERT, CASED, WORD_TOKENS, WORDS, words, write
from tests.odd_inputs.row import Line, Odd

TOKEN = {"content": "<e1>", "normalized": False, "special": True}


def _with(settings: dict, saved: dict | None = CASED, **files: Any):
    """The tokens of "Hello <e1>", from a folder with this tokenizer_config.json."""
    return lambda folder: words(write(folder, saved, tokenizer_config=settings, **files), "Hello <e1>")


def _text(name: str, text: str, act=lambda folder: words(folder, "Hello world"), **files: Any):
    """What `act` makes of a folder with one more file."""

    def run(folder: pathlib.Path):
        write(folder, None, **files)
        (folder / name).write_bytes(text.encode())
        return act(folder)

    return run


def _kept(settings: dict):
    opened = lambda folder: tokenizer.opened(write(folder, tokenizer_config=BERT | settings))  # noqa: E731
    return lambda folder: (opened(folder).limit, opened(folder).side)


UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
OTHER_WORDS = WORD_TOKENS | {"vocab": {"[UNK]": 0, "hello": 1}}
NUMBERED = {"added_tokens_decoder": [TOKEN]}
MISSPELT = {"added_tokens_decoder": {"14": TOKEN | {"strip": 1}}}

ROWS = [
    Odd(
        "code of its own",
        _with(BERT | {"auto_map": {"AutoTokenizer": ["t.T", None]}}),
        Line("names its own code (auto_map)"),
    ),
    Odd(
        "another model's class",
        _with({"tokenizer_class": "T5TokenizerFast"}),
        Line("tokenizer_class='T5TokenizerFast'"),
    ),
    Odd(
        "another model's config.json",
        _with({}, config={"model_type": "t5"}),
        Line("config.json says model_type='t5'"),
    ),
    Odd("a class that is not a name", _with({"tokenizer_class": 3}), Line("tokenizer_class=3 is not supported")),
    Odd(
        "a class that the vocabulary is not of",
        _with(BERT, CASED | {"model": UNIGRAM}),
        Line("holds a Unigram vocabulary"),
    ),
    Odd(
        "a flag that is a text", _with(BERT | {"do_lower_case": "true"}), Line("do_lower_case='true'; expected true or")
    ),
    Odd("a flag that is null", _with(BERT | {"tokenize_chinese_chars": None}), Line("tokenize_chinese_chars=None")),
    Odd("a limit that is a text", _kept({"model_max_length": "512"}), Line("model_max_length='512'; expected a whole")),
    Odd(
        "a limit of nothing",
        _kept({"model_max_length": 0}),
        Line("model_max_length=0; expected a whole number of at least"),
    ),
    Odd("a limit that is null", _kept({"model_max_length": None}), (None, "right")),
    Odd("a limit without end", _kept({"model_max_length": 1e30, "truncation_side": "left"}), (None, "left")),
    Odd(
        "a side that is none", _kept({"truncation_side": "middle"}), Line("truncation_side='middle'; expected 'right'")
    ),
    Odd(
        "a special token that is null",
        _with(BERT | {"sep_token": None}),
        Line("sep_token=null, which BertTokenizer needs"),
    ),
    Odd("a special token that is a number", _with(BERT | {"pad_token": 0}), Line("pad_token=0; expected a text")),
    Odd(
        "a vocabulary without [CLS]", _with(BERT, CASED | {"model": OTHER_WORDS}), Line("the vocabulary has no '[CLS]'")
    ),
    Odd(
        "added tokens in a list", _with(BERT | NUMBERED), Line("has added tokens that are not objects by their number")
    ),
    Odd(
        "an added token of unknown fields", _with(BERT | MISSPELT), Line("tokenizer_config.json describes a token as {")
    ),
    Odd("added_tokens.json with texts", _with(BERT, added_tokens={"<e1>": "14"}), Line("gives '<e1>' the number '14'")),
    Odd(
        "named special tokens",
        _with(BERT | {"extra_special_tokens": {"entity_token": "<e1>"}}),
        "[CLS] hello <e1> [SEP]",
    ),
    Odd("settings that are a list", _with([]), Line("tokenizer_config.json' holds a JSON list, expected an object")),
    Odd("settings cut short", _text("tokenizer_config.json", '{"do_lower'), Line("cannot be read as JSON")),
    Odd(
        "tokenizer.json as a pointer of git LFS",
        _text("tokenizer.json", "version https://git-lfs", tokenizer_config=BERT),
        Line("tokenizer.json' cannot be read as JSON"),
    ),
    Odd(
        "settings alone", _text("tokenizer_config.json", json.dumps(BERT)), Line("neither tokenizer.json nor vocab.txt")
    ),
    Odd(
        "merges without words",
        _text("merges.txt", "#version: 0.2\n", tokenizer_config={"tokenizer_class": "RobertaTokenizer"}),
        Line("holds neither tokenizer.json nor vocab.json and merges.txt"),
    ),
    Odd(
        "sentencepiece's model alone",
        _text("sentencepiece.bpe.model", "\n", config={"model_type": "xlm-roberta"}),
        Line("holds no tokenizer.json, and a .model file is not read; make one"),
    ),
    Odd(
        "a vocabulary saved on Windows",
        _text("vocab.txt", "\r\n".join(WORDS) + "\r\n", config={"model_type": "bert"}),
        "[CLS] hello world [SEP]",
    ),
]
