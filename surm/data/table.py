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
