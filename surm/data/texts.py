"""Labelled texts from folders of tables: GLUE's own layout, or CSV and TSV files of one's own.

    DIR/train.tsv   DIR/dev.tsv                        a task of GLUE (MNLI has dev_matched.tsv and dev_mismatched.tsv)
    DIR/train.csv   DIR/test.csv   [DIR/dev.csv]       one's own: .csv or .tsv, first line the names of the columns

A .csv may quote; a .tsv does not: a tab ends a column, a line ends a row, and quotation marks are text.
"""

import csv
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from surm.data import glue
from surm.data.splits import Dataset, Split
from surm.errors import InputError, nearest

SUFFIXES = (".tsv", ".csv")
_LONGEST_FIELD = 2**31 - 1  # of a .csv, in characters; Python's own limit is 131,072


@dataclasses.dataclass(frozen=True, eq=False)
class TextSplit:
    """Labelled texts in memory: a tuple of one text or two for every example."""

    texts: list[tuple[str, ...]]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"texts": self.texts[index], "label": self.labels[index]}


def folder_texts(folder: pathlib.Path, task: glue.Task) -> Dataset:
    """Reads the splits of a folder.

    Args:
      folder: holds the files above. A task of GLUE is held out on its dev files, whose labels are public; a table of
        one's own on `test`, or on `dev` (or `validation`) where there is no test file.
      task: says what the columns mean.

    Returns:
      The splits.

    Raises:
      InputError: if a file or column is missing, a row has too few or too many columns, a text is empty, or a label is
        unknown; the message names file and row.
    """
    own = not task.held_out
    train_file = _file(folder, "train")
    train_rows = list(_rows(train_file, task))
    names = _class_names(train_file, task, train_rows)
    train = _split(train_file, train_rows, task, names)
    held_out = {}
    if own and _find(folder, "dev") and _find(folder, "validation"):
        raise InputError(f"{str(folder)!r} holds both a dev and a validation file; expected one of them")
    for stem in ("test", "dev", "validation") if own else task.held_out:
        if not own or _find(folder, stem):
            file = _file(folder, stem)
            held_out[stem] = _split(file, list(_rows(file, task)), task, names)
    if not held_out:
        raise InputError(f"{str(folder)!r} has no test or dev file beside {train_file.name}")
    main, *others = held_out.values()
    return Dataset(
        train=train,
        validation=others[0] if own and others else None,
        test=main,
        num_classes=1 if task.regression else len(names),
        metrics=task.metrics,
        regression=task.regression,
        also={} if own else {stem.removeprefix("dev_"): held_out[stem] for stem in task.held_out[1:]},
        kind="text",
        class_names=names,
    )


def task_of(folder: pathlib.Path) -> str:
    """The task of GLUE that a folder's name says it holds; InputError if it says none."""
    name = plain_name(folder)
    if name not in glue.TASKS:
        raise InputError(
            f"the folder {str(folder)!r} does not say by its name what it holds; set config.data.task to one of "
            f"{', '.join([*glue.TASKS, *glue.OWN_METRICS])}"
        )
    return name


def plain_name(folder: pathlib.Path) -> str:
    """A folder's name as tasks are called: SST-2 is sst2."""
    return pathlib.Path(os.path.abspath(folder)).name.lower().replace("-", "")


def _find(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
    found = [folder / (stem + suffix) for suffix in SUFFIXES if (folder / (stem + suffix)).is_file()]
    if len(found) > 1:
        raise InputError(f"{str(folder)!r} holds both {found[0].name} and {found[1].name}; expected one of them")
    return found[0] if found else None


def _file(folder: pathlib.Path, stem: str) -> pathlib.Path:
    file = _find(folder, stem)
    if file is None:
        raise InputError(f"{str(folder)!r} has no {stem}.tsv and no {stem}.csv")
    return file


def _rows(file: pathlib.Path, task: glue.Task) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows with the number of their line, as column -> value."""
    lines = _lines(file)
    header = list(task.header)
    if not header:
        header = next(lines, (0, []))[1]
    for column in (*task.columns, task.label):
        if header.count(column) != 1:
            given = f"its columns are {', '.join(map(repr, header))}" if any(header) else "the file is empty"
            keys = "" if task.held_out else "; name them in config.data.text_columns and config.data.label_column"
            count = f"{header.count(column)} columns" if column in header else "no column"
            raise InputError(f"{str(file)!r} has {count} {column!r}; {given}{keys}")
    broken = []
    for number, values in lines:
        row = dict(zip(header, values, strict=False))
        wrong = _wrong(task, header, values, row)
        if not wrong:
            yield number, row
        elif task.has_broken_rows:
            broken.append(number)
        else:
            raise InputError(f"{str(file)!r}, line {number}: {wrong}")
    if broken:
        print(f"{file}: left out {len(broken)} broken rows, the first in line {broken[0]}", flush=True)


def _wrong(task: glue.Task, header: list[str], values: list[str], row: dict[str, str]) -> str:
    """What is wrong with a row, if anything."""
    if len(values) != len(header):
        return f"{len(values)} column{'s' * (len(values) != 1)}, expected {len(header)}"
    empty = [column for column in task.columns if not row[column].strip()]
    return f"the text in column {empty[0]!r} is empty" if empty else ""


def _lines(file: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a table, cut into columns, each with its number; a byte-order mark of UTF-8 is passed over."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            if file.suffix == ".csv":
                csv.field_size_limit(_LONGEST_FIELD)
                reader, number = csv.reader(opened, strict=True), 1
                for values in reader:
                    if values:
                        yield number, values
                    number = reader.line_num + 1  # where the next row begins; it may hold line breaks
            else:
                for number, line in enumerate(opened.read().replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
                    if line:
                        yield number, line.split("\t")
    except UnicodeDecodeError as error:
        raise InputError(f"{str(file)!r} is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise InputError(f"{str(file)!r} cannot be read ({error.strerror})") from error
    except csv.Error as error:
        raise InputError(f"{str(file)!r}, in the row that begins in line {number}: {error}") from error


def _class_names(file: pathlib.Path, task: glue.Task, rows: list[tuple[int, dict[str, str]]]) -> tuple[str, ...]:
    if task.labels is not None:
        return task.labels
    names = {row[task.label] for _, row in rows}
    if "" in names or len(names) < 2 or len(names) == len(rows) > 20:
        found = "an empty label" if "" in names else f"{len(names)} labels in {len(rows)} rows"
        raise InputError(
            f"{str(file)!r}: column {task.label!r} holds {found}, expected the names of two or more classes"
        )
    return tuple(sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


def _split(
    file: pathlib.Path, rows: list[tuple[int, dict[str, str]]], task: glue.Task, names: tuple[str, ...]
) -> Split:
    if not rows:
        raise InputError(f"{str(file)!r} holds no row")
    classes = {name: index for index, name in enumerate(names)}
    texts, labels = [], []
    for number, row in rows:
        where = f"{str(file)!r}, line {number}"
        texts.append(tuple(row[column] for column in task.columns))
        labels.append(_label(where, row[task.label], task, classes))
    return TextSplit(texts, np.array(labels, np.float32 if task.regression else np.int32))


def _label(where: str, text: str, task: glue.Task, classes: dict[str, int]) -> float | int:
    if not task.regression:
        if text not in classes:
            raise InputError(f"{where}: label {text!r} in column {task.label!r}; {nearest(text, classes)}")
        return classes[text]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise InputError(f"{where}: {text!r} in column {task.label!r}, expected a number")
    return number
