"""What a table is to those that read one, whatever its format."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from surm.errors import InputError

Row = tuple[str, dict[str, Any]]
"""Where a row stands, as in `'train.csv', line 3`, and its values by column."""


class BrokenRow(InputError):
    """A row that is cut short or has a column too many."""


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of one split.

    Attributes:
      where: its file, for messages.
      columns: their names, in order; a name may occur twice.
      rows: opens the rows from the first, with at least the given columns; a `BrokenRow` for a broken one.
      class_names: of columns whose numbers are classes, what they are called.
      image_columns: those that hold encoded images.
    """

    where: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[Row | BrokenRow]]
    class_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    image_columns: tuple[str, ...] = ()


def class_names(found: Mapping[str, Table], column: str) -> tuple[str, ...]:
    """What the classes of a column are called by the training table, nothing where it does not say.

    Raises:
      InputError: if another split's table calls them otherwise, so that its numbers mean other classes.
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
