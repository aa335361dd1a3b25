"""Images in a folder of class folders, decoded on access.

    DIR/train/CLASS/*.jpg    DIR/test/CLASS/*.jpg    [DIR/val/CLASS/*.jpg]

The class folders of `train` are the classes; images in folders inside them belong to the class, too. If there are no
folders for splits, as in DIR/CLASS/*.jpg, `config.data.test_examples` images are held out at random.
"""

import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from surm.data import classes, decode, split_names
from surm.data.options import Options
from surm.data.splits import Dataset
from surm.errors import InputError
from surm.machine import buckets
from surm.machine.notes import say

_CHUNK = 2**20  # bytes read at a time


@dataclasses.dataclass(frozen=True, eq=False)
class FileSplit:
    """A split of image files."""

    files: list[epath.Path]
    labels: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.files[index]
        return {"image": decode.decoded(_opener(file), repr(str(file))), "label": self.labels[index]}

    def content(self, index: Int[np.ndarray, " chosen"]) -> Iterator[bytes]:
        """A hash of every file, read by several threads."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            yield from pool.map(_digest, [self.files[place] for place in index], chunksize=16)


@dataclasses.dataclass
class _Found:
    """The images below a folder, by class, and the numbers of other files, by suffix."""

    images: dict[str, list[epath.Path]]
    others: collections.Counter[str]


def holds_classes(folder: epath.Path) -> bool:
    """Whether a folder holds class folders, or splits that do: some folder in it has an image below it."""
    return any(_has_image(path, depth=3) for path in _shown(folder) if path.is_dir())


def open_folder(folder: epath.Path, options: Options) -> Dataset:
    """Opens a folder of class folders.

    Args:
      folder: a folder that holds a folder for each split, or the class folders themselves.
      options: the options of the source.

    Returns:
      The splits; their labels are known without decoding any image.

    Raises:
      InputError: if a split is missing, there are fewer than two classes, a held-out class is unknown, or files cannot
        be read; the message names them.
    """
    roots = split_names.by_split(path for path in _shown(folder) if path.is_dir())
    roots = {name: paths for name, paths in roots.items() if name in split_names.NAMES}
    if not roots:
        _check_meant(folder)
    found = {name: _scan(paths[0]) for name, paths in roots.items()} or {"train": _scan(folder)}
    _say_passed_over(folder, sum((one.others for one in found.values()), collections.Counter()))
    where = repr(str(folder))
    if "train" not in found:
        raise InputError(f"{where} has no folder train beside {', '.join(path[0].name for path in roots.values())}")
    _check_classes(where, found["train"])
    columns = {name: _column(one) for name, one in found.items()}
    names = classes.of_training(columns["train"], f"{where}: train")
    splits = {}
    for name, column in columns.items():
        files = [file for of_class in found[name].images.values() for file in of_class]
        place = lambda example, files=files, column=column: (  # noqa: E731
            f"{str(files[example])!r}: class {column.names[column.index[example]]!r}"
        )
        splits[name] = FileSplit(files, classes.numbered(column, names, place))
    splits = {name: split for name, split in splits.items() if len(split)}
    every = [file for split in splits.values() for file in split.files]
    decode.check_all(((str(file.relative_to(folder)), _opener(file)) for file in every), where)
    parts = options.parts(splits, where)
    return Dataset(**parts, num_classes=len(names), class_names=names)


def _check_meant(folder: epath.Path) -> None:
    """Refuses a folder whose only folder holds the splits."""
    inner = [path for path in _shown(folder) if path.is_dir()]
    if len(inner) == 1 and split_names.by_split(path for path in _shown(inner[0]) if path.is_dir()):
        raise InputError(f"{str(folder)!r} holds the folder {inner[0].name}; is {str(inner[0])!r} meant?")


def _scan(root: epath.Path) -> _Found:
    """The images of each class folder of a split."""
    found = _Found({}, collections.Counter())
    for path in sorted(_shown(root), key=lambda path: path.name):
        if _is_image(path) or not path.is_dir():
            found.others[_suffix(path)] += 1
            continue
        found.images[path.name] = list(_images_below(path, found.others, set()))
    return found


def _images_below(folder: epath.Path, others: collections.Counter[str], above: set[str]) -> Iterator[epath.Path]:
    """All images in a folder and the folders below it, in order; a link to a folder above is not followed."""
    real = str(folder) if buckets.holds(folder) else os.path.realpath(folder)
    if real in above:
        return
    for path in sorted(_shown(folder), key=lambda path: path.name):
        if _is_image(path):
            yield path
        elif path.is_dir():
            yield from _images_below(path, others, above | {real})
        else:
            others[_suffix(path)] += 1


def _shown(folder: epath.Path) -> Iterable[epath.Path]:
    """The entries of a folder without hidden files and the files that macOS and zip programs leave."""
    return (path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))


def _is_image(path: epath.Path) -> bool:
    return _suffix(path) in decode.SUFFIXES


def _suffix(path: epath.Path) -> str:
    return path.suffix.lower() or path.name


def _has_image(folder: epath.Path, depth: int) -> bool:
    below = list(_shown(folder))
    return any(map(_is_image, below)) or (depth > 1 and any(_has_image(p, depth - 1) for p in below if p.is_dir()))


def _check_classes(where: str, train: _Found) -> None:
    """Refuses common mistakes in folders of class folders, and reports empty class folders."""
    if empty := [name for name, files in train.images.items() if not files]:
        say(f"{where}: class folders without an image are ignored: {', '.join(map(repr, empty))}")
    full = [name for name, files in train.images.items() if files]
    flat = sum(train.others[suffix] for suffix in decode.SUFFIXES)
    if not full and flat:
        raise InputError(f"{where}: the {flat:,} training images are not in class folders; expected train/CLASS/*.jpg")
    if len(full) == 1:
        raise InputError(
            f"{where}: all {len(train.images[full[0]]):,} training images are in one class folder, {full[0]!r}; "
            "expected two or more, as in train/CLASS/*.jpg"
        )


def _column(found: _Found) -> classes.Column:
    present = {name: files for name, files in found.images.items() if files}
    index = np.repeat(np.arange(len(present)), [len(files) for files in present.values()])
    return classes.Column(tuple(present), index.astype(np.int32))


def _say_passed_over(folder: epath.Path, others: Mapping[str, int]) -> None:
    if others:
        told = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(others.items())[: classes.SHOWN])
        more = ", ..." if len(others) > classes.SHOWN else ""
        say(f"{folder}: files that are not images in a class folder are ignored: {told}{more}")


def _opener(file: epath.Path) -> decode.Opener:
    return functools.partial(file.open, "rb")


def _digest(file: epath.Path) -> bytes:
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        while chunk := opened.read(_CHUNK):  # hashlib.file_digest needs methods that files of object stores lack
            digest.update(chunk)
    return digest.digest()
