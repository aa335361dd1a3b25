"""Texts for language models, from tables of chats, of prompts with completions, or of plain texts.

    DIR/train.jsonl   DIR/test.jsonl   [DIR/validation.jsonl]     also .json or .parquet (`surm.data.tables`)

A row holds one of these; the parts that a model learns to write are its answers:

    messages              a list of objects with `role` and `content`; the assistant's messages are the answers
    prompt, completion    two texts; the completion is the answer
    text                  one text, all of which counts as the answer
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from surm.data.options import Options
from surm.data.splits import Dataset
from surm.data.table import BrokenRow, Row, Table
from surm.errors import InputError
from surm.machine.notes import say

TASK = "language"
"""The value of `config.data.task` that asks for this form, and the kind of the data set."""

ASSISTANT = "assistant"
FORMS: tuple[tuple[str, ...], ...] = (("messages",), ("prompt", "completion"), ("text",))
"""The columns of each form; of several that fit, the first one is read."""

_AT_A_TIME = 4096  # the number of examples that are hashed at once


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageSplit:
    """Examples for a language model, in memory.

    Attributes:
      examples: `{"messages": [...]}`, `{"prompt": str, "completion": str}` or `{"text": str}`, one for each row.
      places: the place of each row, as in `'train.jsonl', line 3`.
    """

    examples: list[dict[str, Any]]
    places: list[str]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.examples[index], "place": self.places[index]}

    @property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """Zeros, because these examples have no labels."""
        return np.zeros(len(self), np.int32)

    def content(self, index: Int[np.ndarray, " chosen"]) -> Iterator[bytes]:
        """The examples without their places, quoted."""
        for start in range(0, len(index), _AT_A_TIME):
            yield repr([self.examples[place] for place in index[start : start + _AT_A_TIME]]).encode()


def meant_by(columns: Sequence[str]) -> bool:
    """Whether a table of these columns is for language models, if the config does not say what it is for.

    A column `text` may also hold labelled texts, so it counts only if it is the only one.

    Examples:
      >>> meant_by(["prompt", "completion", "id"]), meant_by(["text"]), meant_by(["text", "label"])
      (True, True, False)
    """
    return {*columns} == {"text"} or any({*columns} >= {*form} for form in FORMS if form != ("text",))


def open_tables(found: Mapping[str, Table], options: Options, where: str) -> Dataset:
    """Reads the splits of a set of tables.

    Args:
      found: the tables by split.
      options: the options of the source.
      where: the name of the source in messages.

    Returns:
      The splits, which hold no labels.

    Raises:
      InputError: if a table lacks the columns of every form, or a row holds anything else than its form asks for, such
        as a chat without a message of the assistant; the message names file and row.
    """
    form = _form(found["train"])
    splits = {name: _split(table, form) for name, table in found.items()}
    return Dataset(**options.parts(splits, where), num_classes=1, metrics=(), kind=TASK, keys=frozenset({"task"}))


def _form(train: Table) -> tuple[str, ...]:
    for form in FORMS:
        if {*form} <= {*train.columns}:
            if others := [column for column in train.columns if column not in form]:
                say(f"{train.where}: {' and '.join(form)} are read, and not its columns {', '.join(map(repr, others))}")
            return form
    raise InputError(
        f"{train.where} has the columns {', '.join(map(repr, train.columns))}; expected messages, or prompt and "
        "completion, or text, for a language model"
    )


def _split(table: Table, form: tuple[str, ...]) -> LanguageSplit:
    if lacking := [column for column in form if column not in table.columns]:
        raise InputError(f"{table.where} has no column {lacking[0]!r}, which the training table has")
    found = LanguageSplit([], [])
    for row in table.rows(form):
        if isinstance(row, BrokenRow):
            raise InputError(str(row))
        found.examples.append(_example(row, form))
        found.places.append(row[0])
    if not len(found):
        raise InputError(f"{table.where} holds no row")
    return found


def _example(row: Row, form: tuple[str, ...]) -> dict[str, Any]:
    place, values = row
    if form == ("messages",):
        return {"messages": _messages(place, values.get("messages"))}
    for column in form:
        text = values.get(column)
        if not isinstance(text, str):
            raise InputError(f"{place}: the {column} is {_told(text)}, expected a string")
        if not text.strip():
            raise InputError(f"{place}: the {column} is empty, expected a text")
    return {column: values[column] for column in form}


def _messages(place: str, given: Any) -> list[dict[str, Any]]:
    """The messages of a row without empty fields, which tables have where other messages have more of them."""
    if not isinstance(given, list | tuple) or not all(isinstance(one, Mapping) for one in given):
        raise InputError(f"{place}: messages is {_told(given)}, expected a list of objects with role and content")
    messages = [{key: value for key, value in one.items() if value is not None} for one in given]
    for number, message in enumerate(messages, 1):
        for field in ("role", "content"):
            if not isinstance(message.get(field), str):
                was = _told(message.get(field))
                raise InputError(f"{place}: the {field} of message {number} is {was}, expected a string")
        if message["role"] == ASSISTANT and not message["content"].strip():
            raise InputError(f"{place}: message {number}, of the {ASSISTANT}, is empty, expected a text")
    if not any(message["role"] == ASSISTANT for message in messages):
        raise InputError(
            f"{place}: none of its {len(messages)} messages has the role {ASSISTANT!r}, so there is no answer to learn"
        )
    return messages


def _told(value: Any) -> str:
    """What a value is, for a message."""
    return "missing" if value is None else f"a {type(value).__name__}"
