"""The common form of tables of all formats."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from surm.errors import InputError

Row = tuple[str, dict[str, Any]]
"""The place of a row, as in `'train.csv', line 3`, and its values by column."""


class BrokenRow(InputError):
    """A row with too few or too many columns."""


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of one split.

    Attributes:
      where: the name of its file, for messages.
      columns: the names of the columns, in order; a name may occur twice.
      rows: opens the rows from the first, with at least the given columns; a broken row is a `BrokenRow`.
      class_names: the names of the classes, for columns whose numbers are classes.
      image_columns: the columns that hold encoded images.
    """

    where: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[Row | BrokenRow]]
    class_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    image_columns: tuple[str, ...] = ()


def class_names(found: Mapping[str, Table], column: str) -> tuple[str, ...]:
    """The names that the training table declares for the classes of a column; empty if it declares none.

    Raises:
      InputError: if another split's table has other names, which means that its numbers stand for other classes.
    """
    names = found["train"].class_names.get(column, ())
    for table in found.values():
        other = table.class_names.get(column, names)
        if names and other != names:
            raise InputError(
                f"{table.where} calls the classes of its column {column!r} {', '.join(map(repr, other))}; expected "
                f"{', '.join(map(repr, names))}, as {found['train'].where} does"
            )
    return names
