"""The meaning of labels, in one place for arrays, folders, tables, GLUE and TFDS.

A data set's classes are those that its source declares, or else the distinct labels of its training examples, which
are then their names. Whole numbers come first, in order of value; all other names follow, sorted.
"""

import collections
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32, Shaped

from surm.errors import InputError, nearest

SHOWN = 5  # the largest number of classes that a message names
MANY = 10  # the largest number of classes whose counts a heading shows
_MOST_EXAMPLES_ALL_DIFFERENT = 20  # a longer column without two equal entries holds no labels


class Column(NamedTuple):
    """The labels of some examples.

    Attributes:
      names: the distinct labels, in any order.
      index: int N, the index of each example's label in `names`.
    """

    names: tuple[str, ...]
    index: Int[np.ndarray, " n"]

    def counts(self) -> dict[str, int]:
        """The number of examples for each label."""
        return dict(zip(self.names, np.bincount(self.index, minlength=len(self.names)).tolist(), strict=True))


def of_array(labels: Shaped[np.ndarray, "..."], examples: int, where: str) -> Column:
    """Reads the labels of an array.

    Args:
      labels: N or N×1 integers from 0, whole floating-point numbers, booleans, strings or UTF-8 bytes.
      examples: the expected number N.
      where: the name of the array in messages.

    Returns:
      The labels.

    Raises:
      InputError: if the array has another form, or a label is negative or not a whole number.
    """
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or len(flat) != examples or flat.dtype.kind not in "biufUS":
        hint = "; labels.argmax(axis=1) converts one-hot rows" if _one_hot(labels, examples) else ""
        raise InputError(
            f"{where} is {labels.dtype} of shape {labels.shape}, expected {examples} integers or strings{hint}"
        )
    if flat.dtype.kind == "f":
        flat = _whole(flat, where)
    values, index = np.unique(flat, return_inverse=True)
    if values.dtype.kind == "i" and len(values) and values[0] < 0:
        raise InputError(
            f"{where} holds labels {values[0]} to {values[-1]}, expected labels from 0 (-1 often marks an example "
            "without a label: leave those out; otherwise strings may name the classes)"
        )
    return Column(tuple(_text(value, where) for value in values), index.astype(np.int32))


def of_values(labels: Iterable[str]) -> Column:
    """Reads the labels of a column of strings."""
    position: dict[str, int] = {}
    index = [position.setdefault(label, len(position)) for label in labels]
    return Column(tuple(position), np.array(index, np.int32))


def name_of(value: Any) -> str:
    """The name of the class with this label: 1 and 1.0 are '1', True is 'True'.

    Examples:
      >>> name_of(3), name_of(3.0), name_of(True), name_of("a")
      ('3', '3', 'True', 'a')
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in the order of their numbers: whole numbers by value, then the others, sorted.

    Examples:
      >>> in_order(["b", "10", "9", "a"])
      ('9', '10', 'a', 'b')
    """
    return tuple(sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


def of_training(labels: Column, where: str) -> tuple[str, ...]:
    """The classes of a data set that does not declare them: the distinct labels of its training examples, in order.

    Args:
      labels: the labels of the training examples.
      where: their name in messages.

    Returns:
      The names of the classes.

    Raises:
      InputError: if a label is empty, if there are fewer than two labels, or if more than 20 examples all have
        different labels.
    """
    names, examples = labels.names, len(labels.index)
    empty = sum(count for name, count in labels.counts().items() if not name.strip())
    distinct = len(names) == examples > _MOST_EXAMPLES_ALL_DIFFERENT
    if empty or len(names) < 2 or distinct:
        found = f"an empty label ({_times(empty)})" if empty else f"{len(names)} labels in {examples} rows"
        raise InputError(f"{where} holds {found}, expected the names of two or more classes")
    return in_order(names)


def numbered(labels: Column, names: Sequence[str], where: Callable[[int], str]) -> Int32[np.ndarray, " n"]:
    """Labels as numbers of classes.

    Args:
      labels: the labels of some examples.
      names: the classes, in order.
      where: a function from an example's index to a description of its label's place, for messages.

    Returns:
      int32 N, from 0 to the number of classes − 1.

    Raises:
      InputError: if a label is not one of the classes; the message names these labels with their counts.
    """
    position = {name: number for number, name in enumerate(names)}
    if unknown := [name for name in labels.names if name not in position]:
        counts, first = labels.counts(), labels.names.index(unknown[0])
        more = "; nor are " + listed(counts, unknown[1:]) if unknown[1:] else ""
        raise InputError(
            f"{where(int(np.argmax(labels.index == first)))} ({_times(counts[unknown[0]])}), which is none of the "
            f"{len(names)} classes that are trained{more}; {nearest(unknown[0], names)}; leave these examples out, or "
            "train with some of them"
        )
    return np.array([position[name] for name in labels.names], np.int32)[labels.index]


def listed(counts: dict[str, int], names: Iterable[str]) -> str:
    """Lists classes with their counts; of many classes only the first few.

    Examples:
      >>> listed({"cat": 3, "dog": 1}, ["cat", "dog"])
      "'cat' (3), 'dog' (1)"
    """
    names = list(names)
    more = [f"and {len(names) - SHOWN:,} more"] if len(names) > SHOWN else []
    return ", ".join([*(f"{name!r} ({counts[name]:,})" for name in names[:SHOWN]), *more])


def counted(labels: Int[np.ndarray, " n"], names: Sequence[str]) -> dict[str, int]:
    """The number of examples in each class.

    Args:
      labels: int N, counted from 0.
      names: the names of the classes.

    Returns:
      The counts by name, in the order of the names.
    """
    return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))


def alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in case or spaces."""
    groups = collections.defaultdict(list)
    for name in names:
        groups["".join(name.casefold().split())].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _whole(labels: np.ndarray, where: str) -> np.ndarray:
    """Converts floating-point labels to integers; the InputError names the first one that is not a whole number."""
    labels = labels.astype(np.float64)
    wrong = ~np.isfinite(labels) | (labels != np.round(labels)) | (np.abs(labels) > 2**53)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise InputError(
            f"{where} holds {labels[first]} for example {first} (of {np.sum(wrong):,} such), expected whole numbers or "
            "strings, each of which is a class"
        )
    return labels.astype(np.int64)


def _text(value: np.generic, where: str) -> str:
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where} holds the label {bytes(value)!r}, expected UTF-8") from error


def _one_hot(labels: np.ndarray, examples: int) -> bool:
    if labels.ndim != 2 or len(labels) != examples or labels.dtype.kind not in "biuf":
        return False
    return bool(((labels == 1).sum(axis=1) == 1).all() and (labels != 0).sum() == len(labels))


def _times(count: int) -> str:
    return f"{count:,} example{'s' * (count != 1)}"


def number(text: object) -> float:
    """A label of regression; NaN if it is not a finite number in the range of float32.

    Examples:
      >>> number("2.5"), number(3), number("high")
      (2.5, 3.0, nan)
    """
    if isinstance(text, bool):
        return math.nan
    try:
        value = float(text)
    except (TypeError, ValueError):
        return math.nan
    return value if abs(value) <= float(np.finfo(np.float32).max) else math.nan
