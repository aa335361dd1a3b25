"""Tables in JSON: one object a line, or one list of objects (.json)."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from surm.data.delimited import read_text
from surm.data.table import Row, Table
from surm.errors import InputError, one_line

SUFFIXES = (".jsonl", ".json", ".ndjson")


def open_table(file: epath.Path) -> Table:
    """Opens a table.

    Args:
      file: a file with one object a line, or with a list of objects.

    Returns:
      The table. Its columns are the keys of the first object, which every other object should have, too; a row lacks
      the keys that its object lacks.

    Raises:
      InputError: if the file cannot be read as a table.
    """
    where = repr(str(file))
    objects = list(_objects(file, where))
    for place, value in objects:
        if not isinstance(value, dict):
            raise InputError(f"{place}: a {type(value).__name__}, expected an object of columns")
    columns = tuple(objects[0][1]) if objects else ()

    def rows(_: Sequence[str]) -> Iterator[Row]:
        yield from objects

    return Table(where, columns, rows)


def _objects(file: epath.Path, where: str) -> Iterator[tuple[str, Any]]:
    text = read_text(file)
    if text.lstrip().startswith("["):
        yield from ((f"{where}, entry {n}", value) for n, value in enumerate(_parsed(text, where)))
        return
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: strings may hold other line ends
        if line.strip():
            yield f"{where}, line {number}", _parsed(line, f"{where}, line {number}")


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{place}: not JSON ({one_line(error)})") from error
