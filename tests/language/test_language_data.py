"""Tables for language models: what is read as one, its splits, and rows that are refused with their file and line."""

import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from surm.data import sources
from surm.errors import InputError
from tests.language import small_decoder
from tests.language.small_decoder import write_rows

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
PAIR = {"prompt": "a", "completion": "b"}
FORMS = {"messages": CHAT, "prompt and completion": PAIR, "text": {"text": "a b"}}


def written(folder: pathlib.Path, **splits: list[dict]) -> pathlib.Path:
    return write_rows(folder, {name: [json.dumps(row) for row in rows] for name, rows in splits.items()})


@pytest.mark.parametrize("name", FORMS)
def test_columns_say_what_a_folder_holds(name, tmp_path):
    row = FORMS[name]
    data = sources.load(str(written(tmp_path, train=[row, row], dev=[row], test=[row, row, row])))
    assert (data.kind, len(data.train), len(data.validation), len(data.test)) == ("language", 2, 1, 3)
    assert data.train[1] == {**row, "place": f"{str(tmp_path / 'train.jsonl')!r}, line 2"}
    assert (data.num_classes, data.metrics, data.names) == (1, (), ["0"])


def test_parquet_is_read_as_jsonl_is(tmp_path):
    more = {"messages": [{"role": "system", "content": "s", "name": "n"}, *CHAT["messages"]]}
    written(tmp_path / "lines", train=[CHAT, more], test=[CHAT])
    (tmp_path / "parquet").mkdir()
    for name, rows in {"train": [CHAT, more], "test": [CHAT]}.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "parquet" / f"{name}.parquet")
    lines, parquet = (sources.load(str(tmp_path / name)) for name in ("lines", "parquet"))
    assert [one.examples for one in lines.splits().values()] == [one.examples for one in parquet.splits().values()]
    assert lines.fingerprint() == parquet.fingerprint()  # empty fields, which a table has, do not count


def test_the_only_held_out_split_is_the_test_split(tmp_path):
    data = sources.load(str(written(tmp_path, train=[PAIR], validation=[PAIR, PAIR])))
    assert data.validation is None and len(data.test) == 2 and data.test_is == "validation"
    with pytest.raises(InputError, match="has no test or val split beside the 2 training examples"):
        sources.load(str(written(tmp_path / "alone", train=[PAIR, PAIR])))
    held_out = sources.load(str(tmp_path / "alone"), test_examples=1)
    assert (len(held_out.train), len(held_out.test)) == (1, 1)
    assert len(sources.load(str(tmp_path / "alone" / "train.jsonl"), test_examples=1).test) == 1


def test_a_subset_has_as_many_as_it_says(tmp_path):
    rows = [{"prompt": f"{number}", "completion": "b"} for number in range(20)]
    train = sources.load(str(written(tmp_path, train=rows, test=rows))).train
    few, more = (sources.balanced_subset(train, examples, 1, seed=3) for examples in (5, 9))
    assert len(few) == 5 and {one["prompt"] for one in few} <= {one["prompt"] for one in more}


def test_other_columns_are_reported_and_a_label_makes_a_table_of_classes(tmp_path, caplog):
    row = {**PAIR, "id": 3, "source": "x"}
    assert sources.load(str(written(tmp_path / "more", train=[row], test=[row]))).kind == "language"
    assert "prompt and completion are read, and not its columns 'id', 'source'" in caplog.text
    labelled = {"text": "a", "label": "yes"}
    with pytest.raises(InputError, match="columns 'text', 'label'; set config.data.task to one of classification"):
        sources.load(str(written(tmp_path / "labelled", train=[labelled], test=[labelled])))
    assert sources.load(str(tmp_path / "labelled"), task="language").train[0]["text"] == "a"
    assert sources.load(str(written(tmp_path / "mrpc", train=[PAIR], test=[PAIR])), task="language").kind == "language"


def turns(*turns: dict) -> dict:
    return {"messages": [*turns]}


USER, ASSISTANT = CHAT["messages"]


@pytest.mark.parametrize(
    ("first", "row", "expected"),
    [
        (CHAT, turns(USER), "line 2: none of its 1 messages has the role 'assistant', so there is no answer to learn"),
        (CHAT, {"messages": "a"}, "line 2: messages is a str, expected a list of objects with role and content"),
        (CHAT, {"messages": ["a"]}, "line 2: messages is a list, expected a list of objects"),
        (CHAT, {"other": 1}, "line 2: messages is missing, expected a list of objects"),
        (CHAT, turns(USER, {"role": "assistant"}), "line 2: the content of message 2 is missing, expected a string"),
        (CHAT, turns({"role": 1, "content": "a"}, ASSISTANT), "line 2: the role of message 1 is a int, expected"),
        (
            CHAT,
            turns({"role": "user", "content": [{"type": "text", "text": "a"}]}, ASSISTANT),
            "line 2: the content of message 1 is a list, expected a string",
        ),
        (CHAT, turns(USER, {**ASSISTANT, "content": " \n"}), "line 2: message 2, of the assistant, is empty, expected"),
        (PAIR, {"prompt": "a", "completion": " "}, "line 2: the completion is empty, expected a text"),
        (PAIR, {"prompt": "", "completion": "b"}, "line 2: the prompt is empty, expected a text"),
        (PAIR, {"prompt": "a"}, "line 2: the completion is missing, expected a string"),
        (PAIR, {"prompt": "a", "completion": 3}, "line 2: the completion is a int, expected a string"),
        ({"text": "a"}, {"text": None}, "line 2: the text is missing, expected a string"),
    ],
)
def test_a_row_that_cannot_be_learned_is_one_line_with_its_place(tmp_path, first, row, expected):
    with pytest.raises(InputError) as raised:
        sources.load(str(written(tmp_path, train=[first, row], test=[first])))
    assert str(raised.value).startswith(f"{str(tmp_path / 'train.jsonl')!r}, {expected}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("train", "test", "task", "expected"),
    [
        (CHAT, PAIR, "auto", "test.jsonl' has no column 'messages', which the training table has"),
        ({"a": 1}, {"a": 1}, "language", "has the columns 'a'; expected messages, or prompt and completion, or text"),
        (PAIR, PAIR, "classification", "for a language model set config.data.task=language"),
    ],
)
def test_tables_of_other_columns_are_one_line(tmp_path, train, test, task, expected):
    with pytest.raises(InputError, match=expected):
        sources.load(str(written(tmp_path, train=[train], test=[test])), task=task)


def test_an_empty_file_is_one_line(tmp_path):
    written(tmp_path, train=[PAIR], test=[PAIR])
    (tmp_path / "test.jsonl").write_text("")
    with pytest.raises(InputError, match="test.jsonl' "):
        sources.load(str(tmp_path))


def test_the_questions_of_the_small_decoder_are_read(tmp_path):
    data = sources.load(str(small_decoder.write_chats(tmp_path)))
    assert (len(data.train), len(data.test)) == (12, 5)
