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
      InputError: if it carries none, or is no picture.
    """
    from PIL import Image

    try:
        with Image.open(file) as picture:
            told = picture.info.get(_KEY)
    except OSError as error:  # also of what is no picture
        raise InputError(f"{str(file)!r} cannot be read: {error}") from error
    if told is None:
        raise InputError(f"{str(file)!r} does not say what it was drawn from")
    return told


def digest(sources: Iterable[str | os.PathLike]) -> str:
    """A hash of files' contents and names, with the two folders that they lie in, whatever their order."""
    lines = []
    for path in map(pathlib.Path, sources):
        name = "/".join(path.absolute().parts[-3:])
        lines.append(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
