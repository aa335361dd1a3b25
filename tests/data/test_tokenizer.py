"""A tokenizer and the files beside it: right values from transformers 5.23, on a few words."""

import json
import pathlib

import pytest

from surm.data import tokenizer
from surm.errors import InputError

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "Hello",
    "hello",
    "World",
    "world",
    "cafe",
    "café",
    "中",
    "文",
    "中文",
]
TEXT = "Hello World café 中文"
WORD_TOKENS = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
               "max_input_chars_per_word": 100, "vocab": {word: index for index, word in enumerate(WORDS)}}  # fmt: skip
CASED = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "decoder": None,
    "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                   "lowercase": False},
    "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None, "model": WORD_TOKENS,
}  # fmt: skip


def write(folder: pathlib.Path, saved: dict | None = CASED, **files: dict) -> pathlib.Path:
    """Writes a folder with these files, tokenizer.json among them."""
    for name, content in {"tokenizer": saved, **files}.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def words(folder: pathlib.Path, text: str = TEXT) -> str:
    """The tokens of a text, with spaces between."""
    return " ".join(tokenizer.open_tokenizer(folder).encode(text).tokens)


BERT = {"tokenizer_class": "BertTokenizer"}


@pytest.mark.parametrize(
    ("settings", "right"),
    [
        (BERT, "[CLS] hello world cafe 中 文 [SEP]"),
        (BERT | {"do_lower_case": False}, "[CLS] Hello World café 中 文 [SEP]"),
        (BERT | {"do_lower_case": False, "strip_accents": True}, "[CLS] Hello World cafe 中 文 [SEP]"),
        (BERT | {"strip_accents": False, "tokenize_chinese_chars": False}, "[CLS] hello world café 中文 [SEP]"),
        (BERT | {"cls_token": "World", "do_lower_case": False}, "World Hello World café 中 文 [SEP]"),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}, "Hello World café 中 文"),
        (
            BERT | {"additional_special_tokens": ["lo W"], "do_lower_case": False},
            "[CLS] [UNK] lo W [UNK] café 中 文 [SEP]",
        ),
    ],
)
def test_the_settings_are_followed(settings, right, tmp_path):
    assert words(write(tmp_path, tokenizer_config=settings)) == right


def test_config_json_names_the_class_where_no_other_file_does(tmp_path):
    assert words(write(tmp_path, config={"model_type": "bert"})) == "[CLS] hello world cafe 中 文 [SEP]"
    saved_alone = words(tmp_path / "tokenizer.json")
    assert saved_alone == "Hello World café 中 文"


def test_a_vocabulary_alone_is_enough_for_a_bert(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    folder = write(tmp_path, None, tokenizer_config=BERT | {"do_lower_case": False})
    assert words(folder) == "[CLS] Hello World café 中 文 [SEP]"


def test_added_tokens_come_behind_the_vocabulary_and_other_numbers_are_said(tmp_path, capsys):
    token = {
        "content": "<e1>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    write(tmp_path, tokenizer_config=BERT | {"added_tokens_decoder": {"20": token}})
    assert tokenizer.open_tokenizer(tmp_path).encode("hello<e1>").ids == [2, 6, 14, 3]
    assert "'<e1>' 20 (here 14)" in capsys.readouterr().out
    write(tmp_path, tokenizer_config=BERT, added_tokens={"<e1>": 14})
    assert tokenizer.open_tokenizer(tmp_path).encode("hello<e1>").ids == [2, 6, 14, 3]
    assert "numbered" not in capsys.readouterr().out


def test_special_tokens_map_beats_tokenizer_config(tmp_path):
    write(tmp_path, tokenizer_config=BERT | {"cls_token": "café"}, special_tokens_map={"cls_token": "[CLS]"})
    assert words(tmp_path, "hello") == "[CLS] hello [SEP]"


@pytest.mark.parametrize(
    ("settings", "right"),
    [
        (BERT, (None, "right", True)),
        (BERT | {"model_max_length": 8, "truncation_side": "left"}, (8, "left", True)),
        (BERT | {"model_max_length": 1000000000000000019884624838656}, (None, "right", True)),
        (BERT | {"max_len": 77, "model_input_names": ["input_ids"]}, (77, "right", False)),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, (None, "right", False)),
        ({"tokenizer_class": "DistilBertTokenizer"}, (None, "right", False)),
    ],
)
def test_where_texts_are_cut_and_whether_a_second_is_told_apart(settings, right, tmp_path):
    opened = tokenizer.opened(write(tmp_path, tokenizer_config=settings))
    assert (opened.limit, opened.side, opened.segmented) == right


def test_what_is_odd_but_usable_is_said(tmp_path, capsys):
    settings = BERT | {"padding_side": "left", "do_basic_tokenize": False, "own_field": 1}
    tokenizer.opened(write(tmp_path, tokenizer_config=settings))
    said = capsys.readouterr().out.splitlines()
    assert [
        next(part for part in ("padding_side", "do_basic", "own_field", "'Héllo'") if part in line) for line in said
    ] == [
        "padding_side",
        "do_basic",
        "own_field",
        "'Héllo'",
    ]


def test_files_that_agree_say_nothing(tmp_path, capsys):
    tokenizer.opened(write(tmp_path, tokenizer_config=BERT | {"do_lower_case": False, "model_max_length": 512}))
    assert capsys.readouterr().out == ""


def test_a_table_may_have_more_rows_than_there_are_tokens(tmp_path, capsys):
    opened = tokenizer.open_tokenizer(write(tmp_path))
    tokenizer.check_vocabulary(opened, 64)
    assert capsys.readouterr().out == ""
    tokenizer.check_vocabulary(opened, 50_000)
    assert "50,000 rows, of which the tokenizer uses 14" in capsys.readouterr().out
    with pytest.raises(InputError, match="go up to 13, '中文', but the model's word table has 13 rows"):
        tokenizer.check_vocabulary(opened, 13)
