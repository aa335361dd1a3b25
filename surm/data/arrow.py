"""Tables of Apache Arrow: Parquet files, and the .arrow files of folders that `datasets` saved. Needs pyarrow.

Both describe their columns as `datasets` does, in JSON under the key `huggingface` of their schema: the names of
classes, and which columns are images, each `{"bytes": binary, "path": string}`.
"""

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from surm.data.table import Row, Table
from surm.errors import InputError, one_line
from surm.machine import buckets

PARQUET = (".parquet", ".pq")
INSTALL = "pip install 'surm[parquet]'"
_ROWS = 4096  # rows that are converted to Python values at a time


def open_table(files: Sequence[epath.Path], features: Mapping[str, Any] | None = None) -> Table:
    """Opens a table whose rows are in one file, or in several in order.

    Args:
      files: the files, all of them Parquet or all .arrow.
      features: the columns as `datasets` describes them; None to use the schema.

    Returns:
      The table.

    Raises:
      InputError: if pyarrow is missing, a file cannot be read, or one names its classes differently from the first.
    """
    schema, where = _schema(files[0]), repr(str(files[0]))
    known = features if features is not None else _features(schema, where)
    names = _class_names(known)
    for file in files[1:] if features is None else ():
        _check_alike(where, names, repr(str(file)), _class_names(_features(_schema(file), repr(str(file)))))

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        for file in files:
            yield from _rows(file, wanted)

    images = tuple(field.name for field in schema if _is_image(field, known.get(field.name)))
    return Table(where, tuple(schema.names), rows, names, images)


def columns_of(files: Sequence[epath.Path], names: Sequence[str]) -> Any:
    """Some columns of all files as a `pyarrow.Table`; those of .arrow files stay on the disk, Parquet is read."""
    import pyarrow

    read = [_read(file, names) for file in files]
    try:
        return pyarrow.concat_tables(read)
    except pyarrow.ArrowException as error:
        raise InputError(
            f"{str(files[0])!r} and the files after it have different columns: {one_line(error)}"
        ) from error


def _class_names(known: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {column: tuple(said["names"]) for column, said in known.items() if _is(said, "ClassLabel", "names")}


def _check_alike(
    first: str, names: Mapping[str, tuple[str, ...]], where: str, others: Mapping[str, tuple[str, ...]]
) -> None:
    """Refuses files in which the same number means different classes."""
    for column in {**names, **others}:
        if names.get(column) != others.get(column):
            called = [
                f"calls the classes of its column {column!r} {', '.join(map(repr, said[column]))}"
                if column in said
                else f"names no classes of its column {column!r}"
                for said in (others, names)
            ]
            raise InputError(f"{where} {called[0]}, but {first} {called[1]}; expected the same in all files of a split")


def _is(said: Any, kind: str, key: str = "_type") -> bool:
    return isinstance(said, Mapping) and said.get("_type") == kind and said.get(key) is not None


def _is_image(field: Any, said: Any) -> bool:
    import pyarrow.types as types

    if isinstance(said, Mapping) and said.get("_type"):
        return said["_type"] == "Image"
    struct = types.is_struct(field.type) and {part.name for part in field.type} >= {"bytes"}
    return struct or types.is_binary(field.type) or types.is_large_binary(field.type)


def _features(schema: Any, where: str) -> Mapping[str, Any]:
    """The columns as `datasets` described them in a schema."""
    said = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(said)["info"]["features"] if said else {}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where} holds metadata of `datasets` that cannot be read ({one_line(error)})") from error
    return features if isinstance(features, Mapping) else {}


def _schema(file: epath.Path) -> Any:
    _check_installed(file)
    import pyarrow
    import pyarrow.parquet

    try:
        if file.suffix.lower() in PARQUET:
            with file.open("rb") as opened:
                return pyarrow.parquet.read_schema(opened)
        return _stream(file).schema
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _read(file: epath.Path, names: Sequence[str] | None = None) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        if file.suffix.lower() in PARQUET:
            with file.open("rb") as opened:
                return pyarrow.parquet.read_table(opened, columns=names and list(names))
        table = _stream(file).read_all()
        return table.select(names) if names else table
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise _damaged(file, error) from error


def _stream(file: epath.Path) -> Any:
    """Reads a stream of record batches; a local file is not loaded into memory."""
    import pyarrow

    stored = buckets.holds(file)
    source = pyarrow.py_buffer(file.read_bytes()) if stored else pyarrow.memory_map(os.fspath(file))
    try:
        return pyarrow.ipc.open_stream(source)
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(source)  # the other of Arrow's two formats, which Polars writes


def _rows(file: epath.Path, wanted: Sequence[str]) -> Iterator[Row]:
    number = 0
    for batch in _read(file, wanted).to_batches(max_chunksize=_ROWS):
        for row in batch.to_pylist():
            yield f"{str(file)!r}, row {number}", row
            number += 1


def _check_installed(file: epath.Path) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{str(file)!r} is read by pyarrow, which is not installed: {INSTALL}")


def _damaged(file: epath.Path, error: Exception) -> InputError:
    import pyarrow

    whole = "; is it whole? fetch or write it again" if isinstance(error, pyarrow.ArrowInvalid | OSError) else ""
    return InputError(f"{str(file)!r} cannot be read: {one_line(error)}{whole}")
