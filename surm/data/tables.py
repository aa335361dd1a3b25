"""Finds the tables of a folder's splits, and opens each with the reader of its format."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from surm.data import arrow, delimited, jsonl, split_names
from surm.data.table import BrokenRow, Row, Table
from surm.errors import InputError

SUFFIXES = (*delimited.SUFFIXES, *jsonl.SUFFIXES, *arrow.PARQUET)


def open_table(
    files: Sequence[epath.Path],
    header: Sequence[str] = (),
    named_by: Sequence[str] = (),
    features: Mapping[str, Any] | None = None,
) -> Table:
    """Opens the table of a split.

    Args:
      files: the shards of the split, in order.
      header: see `surm.data.delimited.open_table`.
      named_by: see `surm.data.delimited.open_table`.
      features: see `surm.data.arrow.open_table`.

    Returns:
      The table.

    Raises:
      InputError: if a file cannot be read, or a package that reads it is missing.
    """
    suffix = files[0].suffix.lower()
    if suffix not in (*delimited.SUFFIXES, *jsonl.SUFFIXES):
        return arrow.open_table(files, features)
    is_json = suffix in jsonl.SUFFIXES
    each = [jsonl.open_table(file) if is_json else delimited.open_table(file, header, named_by) for file in files]
    first = each[0]

    def rows(wanted: Sequence[str]) -> Iterator[Row | BrokenRow]:
        for one in each:
            if lacking := [column for column in wanted if column not in one.columns]:
                raise InputError(f"{one.where} has no column {lacking[0]!r}, which {first.where} has")
            yield from one.rows(wanted)

    return Table(first.where, first.columns, rows)


def find(folder: epath.Path) -> dict[str, list[epath.Path]]:
    """Finds the files of each split: in the folder, in its `data`, or for .parquet in a folder for each split.

    Args:
      folder: the folder to search.

    Returns:
      The files by split; empty if there are none.

    Raises:
      InputError: if one split has two files that are not its shards, or a shard is missing.
    """
    for place in (folder, folder / "data"):
        if place.is_dir() and (found := split_names.by_split(_tables(place))):
            return found
    folders = split_names.by_split(path for path in folder.iterdir() if path.is_dir())
    inside = {name: sorted(_tables(paths[0], arrow.PARQUET)) for name, paths in folders.items()}
    return {name: files for name, files in inside.items() if files}


def _tables(folder: epath.Path, suffixes: Sequence[str] = SUFFIXES) -> list[epath.Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in suffixes and is_table(path)]


def is_table(path: epath.Path) -> bool:
    """Whether a file is a table by its name."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
