"""Labelled texts from tables: in GLUE's own layout, in the hub's, or from the user's own table.

    DIR/train.tsv   DIR/dev.tsv                  a task of GLUE (MNLI has dev_matched.tsv and dev_mismatched.tsv)
    DIR/train.csv   DIR/validation.csv           the same with the hub's names of files, columns and classes
    DIR/train.csv   DIR/test.csv   [DIR/dev.csv] the user's own tables, whose first line names the columns

Each file may be .tsv, .csv, .jsonl or .parquet (`surm.data.tables`).
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, Real

from surm.data import classes, glue, language, split_names
from surm.data.options import Options
from surm.data.splits import Dataset, Split
from surm.data.table import BrokenRow, Row, Table, class_names
from surm.errors import InputError, nearest
from surm.machine import buckets
from surm.machine.notes import say

_UNLABELLED = {"-1", "-1.0", ""}  # labels that mean: not public
_TEXTS_AT_A_TIME = 4096  # the number of texts that are hashed at once


@dataclasses.dataclass(frozen=True, eq=False)
class TextSplit:
    """Labelled texts in memory, a tuple of one or two texts for every example."""

    texts: list[tuple[str, ...]]
    labels: Real[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"texts": self.texts[index], "label": self.labels[index]}

    def content(self, index: Int[np.ndarray, " chosen"]) -> Iterator[bytes]:
        """The texts, quoted."""
        for start in range(0, len(index), _TEXTS_AT_A_TIME):
            yield repr([self.texts[place] for place in index[start : start + _TEXTS_AT_A_TIME]]).encode()


@dataclasses.dataclass(frozen=True)
class _Read:
    """The texts of a split with their labels, as they are written in the table.

    Attributes:
      places: the place of each row.
      texts: the texts of each row.
      labels: the label of each row.
      task: the task, with the columns of the table.
    """

    places: list[str]
    texts: list[tuple[str, ...]]
    labels: list[Any]
    task: glue.Task


def table_texts(found: Mapping[str, Table], task: glue.Task, options: Options, where: str) -> Dataset:
    """Reads the splits of a set of tables.

    Args:
      found: the tables of the splits in `wanted`. The held-out split of a GLUE task is its dev table, because the
        labels of the test table are not public; for the user's own tables it is `test`, or `validation` if there is no
        labelled test table.
      task: the task, which gives the columns their meaning.
      options: the options of the source.
      where: the name of the source in messages.

    Returns:
      The splits.

    Raises:
      InputError: if a table or column is missing, a row has too few or too many columns, a text is empty, or a label is
        unknown; the message names file and row.
    """
    read = {name: _read(table, task) for name, table in found.items()}
    declared = _declared(found, read["train"].task)
    names = declared if declared is not None else _distinct(found["train"], read["train"])
    kept = {name: one for name, one in read.items() if name == "train" or not _left_out(one, found[name])}
    splits = {name: _split(one, names, declared or ()) for name, one in kept.items()}
    also = {} if task.own else _others(splits, task)
    return Dataset(
        **options.parts(_main(splits, task), where),
        num_classes=1 if task.regression else len(names),
        metrics=task.metrics,
        regression=task.regression,
        also=also,
        kind="text",
        class_names=names,
        keys=frozenset({"task", "text_columns", "label_column"} if task.own else {"task"}),
    )


def task_of(place: epath.Path, train: Table) -> str:
    """The GLUE task in the name of a folder of tables; InputError if there is none."""
    name = plain_name(place)
    if name not in glue.TASKS:
        raise InputError(
            f"{str(place)!r} has no task in its name; it holds a table of the columns {_quoted(train.columns)}; set "
            "config.data.task to one of "
            f"{', '.join([*glue.OWN_METRICS, *glue.TASKS])}, and for the first two config.data.text_columns and "
            "config.data.label_column to columns"
        )
    return name


def plain_name(folder: epath.Path) -> str:
    """A folder's name in the spelling of tasks: SST-2 becomes sst2."""
    whole = folder if buckets.holds(folder) else epath.Path(os.path.abspath(folder))
    return whole.name.lower().replace("-", "")


def held_out_names(task: glue.Task) -> list[str]:
    """The held-out splits of a GLUE task, under the names of `surm.data.split_names`."""
    return [split_names.split_of(stem) for stem in task.held_out]


def wanted(found: Mapping[str, object], task: glue.Task, options: Options, where: str) -> list[str]:
    """The splits that a task is read from, after a check that they exist.

    Args:
      found: the existing splits.
      task: the task of the tables.
      options: the options of the source.
      where: the name of the source in messages.

    Returns:
      Their names.

    Raises:
      InputError: if a split of a task of GLUE is missing.
    """
    if task.own:
        return [name for name in ("train", "validation", "test") if name in found]
    needed = ["train", *held_out_names(task)]
    for name, stem in zip(needed, ["train", *task.held_out], strict=True):
        if name not in found and (stem == "train" or not options.test_examples):
            other = "" if stem == "train" else f", {name}.csv"
            raise InputError(
                f"{where} has no {stem}.tsv (nor {stem}.csv{other}, .jsonl or .parquet), which the task of GLUE needs"
            )
    return [name for name in needed if name in found]


def _main(splits: Mapping[str, Split], task: glue.Task) -> dict[str, Split]:
    """The splits of a run, without the additional held-out splits of a GLUE task."""
    if task.own:
        return dict(splits)
    first = held_out_names(task)[0]
    return {"train": splits["train"]} | ({"validation": splits[first]} if first in splits else {})


def _others(splits: Mapping[str, Split], task: glue.Task) -> dict[str, Split]:
    return {name.partition("_")[2]: splits[name] for name in held_out_names(task)[1:] if name in splits}


def _read(table: Table, task: glue.Task) -> _Read:
    task = glue.layout(task, table.columns)
    _check_columns(table, task)
    read, broken = _Read([], [], [], task), []
    for row in table.rows((*task.columns, task.label)):
        wrong = str(row) if isinstance(row, BrokenRow) else _wrong(row, task.columns)
        if not wrong:
            place, values = row
            read.places.append(place)
            read.texts.append(tuple(values[column] for column in task.columns))
            read.labels.append("" if values.get(task.label) is None else values[task.label])
        elif task.has_broken_rows:
            broken.append(wrong)
        else:
            raise InputError(wrong)
    if broken:
        say(f"{table.where}: left out {len(broken)} broken rows, the first is {broken[0]}")
    if not read.labels:
        raise InputError(f"{table.where} holds no row")
    return read


def _check_columns(table: Table, task: glue.Task) -> None:
    header = table.columns
    if not any(header):
        raise InputError(f"{table.where} is empty; expected columns {_quoted((*task.columns, task.label))}, and rows")
    for column in (*task.columns, task.label):
        if header.count(column) == 1:
            continue
        count = f"{header.count(column)} columns" if column in header else "no column"
        close = f"; {nearest(column, header)}" if column not in header else ""
        given = f"its columns are {_quoted(header)}"
        raise InputError(f"{table.where} has {count} {column!r}; {given}{_way_on(header, task)}{close}")


def _way_on(header: Sequence[str], task: glue.Task) -> str:
    """A remedy for a missing column."""
    if language.meant_by(header):
        return f"; for a language model set config.data.task={language.TASK} in a config such as configs/lm_text.py"
    if len(header) == 1 and (marks := [mark for mark in ";\t|" if mark in header[0]]):
        return f", which look separated by {marks[0]!r}; expected ',' in a .csv and a tab in a .tsv"
    if task.own:
        return "; name them in config.data.text_columns and config.data.label_column"
    return (
        "; for a table of your own use a config for texts, such as configs/bert_glue.py, and set "
        "config.data.task=classification (or regression), config.data.text_columns and config.data.label_column"
    )


def _wrong(row: Row, columns: Sequence[str]) -> str:
    """The fault in the texts of a row; empty if there is none."""
    place, values = row
    for column in columns:
        if column not in values:
            return f"{place}: the row has no {column!r}; its columns are {_quoted(values)}"
        text = values[column]
        if text is None:
            return f"{place}: the text in column {column!r} is missing (null)"
        if not isinstance(text, str):
            return f"{place}: the text in column {column!r} is a {type(text).__name__}, expected a string"
        if not text.strip():
            return f"{place}: the text in column {column!r} is empty"
    return ""


def _declared(found: Mapping[str, Table], task: glue.Task) -> tuple[str, ...] | None:
    """The classes that the task or its tables declare, in order, empty for regression; None if neither does."""
    declared = class_names(found, task.label)
    if task.labels and declared and declared not in (task.labels, task.hub_labels):
        raise InputError(
            f"{found['train'].where} calls the classes of its column {task.label!r} {_quoted(declared)}; expected "
            f"{_quoted(task.hub_labels or task.labels)} of this task of GLUE"
        )
    return (declared or None) if task.labels is None else task.labels


def _distinct(table: Table, train: _Read) -> tuple[str, ...]:
    """The classes of a table that declares none."""
    column = classes.of_values(_label_texts(train, ()))
    return classes.of_training(column, f"{table.where}: column {train.task.label!r}")


def _left_out(read: _Read, table: Table) -> bool:
    """Whether a held-out table has no labels, which is reported."""
    absent = {classes.name_of(label) for label in read.labels} <= _UNLABELLED and not read.task.regression
    if absent:
        say(f"{table.where} is left out: none of its {len(read.labels):,} rows has a label")
    return absent


def _split(read: _Read, names: tuple[str, ...], declared: tuple[str, ...]) -> TextSplit:
    column = read.task.label
    if read.task.regression:
        labels = np.array([classes.number(label) for label in read.labels], np.float32)
        if len(wrong := np.flatnonzero(np.isnan(labels))):
            first = wrong[0]
            raise InputError(f"{read.places[first]}: {read.labels[first]!r} in column {column!r}, expected a number")
        return TextSplit(read.texts, labels)
    texts = _label_texts(read, declared)
    where = lambda example: f"{read.places[example]}: label {texts[example]!r} in column {column!r}"  # noqa: E731
    return TextSplit(read.texts, classes.numbered(classes.of_values(texts), names, where))


def _label_texts(read: _Read, declared: Sequence[str]) -> list[str]:
    """Labels as names of classes; numbers and the hub's names of declared classes are replaced by their names.

    The number 1 is the second class, even if another class is called "1"; the text "1" is the class called "1".
    """
    alias = dict(zip(read.task.hub_labels, declared, strict=False))

    def text(label: Any) -> str:
        name = classes.name_of(label)
        number = re.fullmatch(r"(\d+)(\.0+)?", name)
        if number and int(number[1]) < len(declared) and not (isinstance(label, str) and name in declared):
            return declared[int(number[1])]
        return name if name in declared else alias.get(name, name)

    return [text(label) for label in read.labels]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
