"""Images in tables of Apache Arrow, as `datasets` and the hub keep them, decoded on access.

The encoded images of .arrow files stay on the disk. Those of Parquet, whose rows cannot be read singly, are held in
memory in encoded form.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from surm import files as places
from surm.data import arrow, classes, decode
from surm.data.options import Options
from surm.data.splits import Dataset
from surm.data.table import Table, class_names
from surm.errors import InputError, nearest
from surm.machine.notes import say


@dataclasses.dataclass(frozen=True, eq=False)
class ColumnSplit:
    """A split of images in a column of bytes, or of `{"bytes", "path"}`.

    Attributes:
      column: the column, a `pyarrow.ChunkedArray`.
      labels: the labels of the images.
      where: the name of the file in messages.
    """

    column: Any
    labels: Int[np.ndarray, " n"]
    where: str

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": decode.decoded(self.opener(index), self.name(index)), "label": self.labels[index]}

    def name(self, index: int) -> str:
        """The name of an image in messages."""
        return f"{self.where}, row {index}"

    def opener(self, index: int) -> decode.Opener:
        """Returns a function that opens an encoded image."""
        value = self.column[int(index)].as_py()
        encoded, path = (value, None) if not isinstance(value, Mapping) else (value.get("bytes"), value.get("path"))
        if encoded is None and path:  # `datasets` may leave the bytes in the file they came from
            return lambda: places.path(path).open("rb")
        return decode.from_bytes(encoded or b"")

    def content(self, index: Int[np.ndarray, " chosen"]) -> Iterator[bytes]:
        """The bytes of the encoded images, each preceded by its size."""
        for place in index:
            with self.opener(place)() as opened:
                encoded = opened.read()
            yield f"{len(encoded)} ".encode()
            yield encoded


def image_column(table: Table, wanted: str) -> str:
    """The column of a table that holds its images; InputError if it is not clear which one."""
    if wanted == "auto" and len(table.image_columns) == 1:
        return table.image_columns[0]
    found = ", ".join(map(repr, table.image_columns))
    if wanted == "auto":
        raise InputError(f"{table.where} has several columns of images, {found}; set config.data.image_column to one")
    if wanted not in table.image_columns:
        raise InputError(f"{table.where} has no column of images {wanted!r}; its columns of images are {found}")
    return wanted


def open_tables(
    found: Mapping[str, Table], files: Mapping[str, Sequence[epath.Path]], options: Options, where: str
) -> Dataset:
    """Opens the splits of a set of tables with a column of images.

    Args:
      found: the tables by split.
      files: the files of each split.
      options: the options of the source.
      where: the name of the source in messages.

    Returns:
      The splits.

    Raises:
      InputError: if a split or a column is missing, a label is unknown, or images cannot be read.
    """
    if "train" not in found:
        raise InputError(f"{where} has no training split; it has {', '.join(found)}")
    image, label = image_column(found["train"], options.image_column), options.label_column
    raw = {name: _columns(found[name], files[name], image, label) for name in found}
    declared = class_names(found, label)
    columns = {name: _labels(labels, declared) for name, (_, labels) in raw.items()}
    names = declared or classes.of_training(columns["train"], f"{found['train'].where}: column {label!r}")
    splits = {}
    for name, column in columns.items():
        if name != "train" and {*column.names} <= {"-1", ""}:
            say(f"{found[name].where} is left out: none of its {len(column.index):,} rows has a label")
            continue
        told = lambda row, name=name, column=column: (  # noqa: E731
            f"{found[name].where}, row {row}: label {column.names[column.index[row]]!r} in column {label!r}"
        )
        splits[name] = ColumnSplit(raw[name][0], classes.numbered(column, names, told), found[name].where)
    for split in splits.values():
        decode.check_all(((f"row {i}", lambda i=i, s=split: s.opener(i)()) for i in range(len(split))), split.where)
    parts = options.parts(splits, where)
    keys = frozenset({"image_column", "label_column"})
    return Dataset(**parts, num_classes=len(names), class_names=names, keys=keys)


def _columns(table: Table, files: Sequence[epath.Path], image: str, label: str) -> tuple[Any, list[Any]]:
    """The column of images, and the labels."""
    for column in (image, label):
        if column not in table.columns:
            told = ", ".join(map(repr, table.columns))
            key = "label" if column == label else "image"
            raise InputError(
                f"{table.where} has no column {column!r}; its columns are {told}; name it in config.data.{key}_column; "
                f"{nearest(column, table.columns)}"
            )
    read = arrow.columns_of(files, (image, label))
    if not len(read):
        raise InputError(f"{table.where} holds no row")
    labels = read.column(label).to_pylist()
    if None in labels and {*labels} != {None}:
        raise InputError(f"{table.where}, row {labels.index(None)}: no label in column {label!r}")
    return read.column(image), labels


def _labels(values: Sequence[Any], declared: Sequence[str]) -> classes.Column:
    """Labels as names of classes; numbers of declared classes are replaced by their names."""

    def text(value: Any) -> str:
        known = isinstance(value, int) and 0 <= value < len(declared)
        return "" if value is None else declared[value] if known else classes.name_of(value)

    return classes.of_values(map(text, values))
