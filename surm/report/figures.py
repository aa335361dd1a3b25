"""A figure that says what it was drawn from, so that a test can tell an old one."""

import hashlib
import io
import os
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from surm import files
from surm.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KEY = "Source"
"""Of the PNG's own text fields, by the name that its specification gives to where a picture comes from."""


def save(figure: "Figure", file: str | os.PathLike, sources: Iterable[str | os.PathLike], *, dpi: int = 110) -> None:
    """Writes a PNG that carries the digest of the files it was drawn from.

    Args:
      figure: drawn.
      file: the PNG to write.
      sources: what its data came from.
      dpi: dots an inch.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi, metadata={_KEY: digest(sources)})
    files.replace(file, picture.getvalue())


def drawn_from(file: str | os.PathLike) -> str:
    """The digest that a PNG carries.

    Args:
      file: written by `save`.

    Returns:
      The digest of its sources as they were.

    Raises:
      InputError: if it carries none.
    """
    from PIL import Image

    with Image.open(file) as picture:
        told = picture.info.get(_KEY)
    if told is None:
        raise InputError(f"{str(file)!r} does not say what it was drawn from")
    return told


def digest(sources: Iterable[str | os.PathLike]) -> str:
    """A hash of files' names and contents, whatever their order."""
    found = hashlib.sha256()
    for path in sorted(map(pathlib.Path, sources), key=lambda path: (path.parent.parent.name, path.name)):
        found.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()
