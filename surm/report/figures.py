"""Figures that record what they were drawn from, so that a test can find outdated ones."""

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
"""The text field of the PNG that its specification reserves for the source of a picture."""


def save(figure: "Figure", file: str | os.PathLike, sources: Iterable[str | os.PathLike], *, dpi: int = 110) -> None:
    """Writes a PNG that carries the digest of the files it was drawn from.

    Args:
      figure: the finished figure.
      file: the PNG to write.
      sources: the files that its data came from.
      dpi: dots per inch.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi, metadata={_KEY: digest(sources)})
    files.replace(file, picture.getvalue())


def drawn_from(file: str | os.PathLike) -> str:
    """The digest that a PNG carries.

    Args:
      file: a PNG written by `save`.

    Returns:
      The digest of its sources at the time.

    Raises:
      InputError: if the file carries no digest or is not an image.
    """
    from PIL import Image

    try:
        with Image.open(file) as picture:
            told = picture.info.get(_KEY)
    except OSError as error:  # also raised for a file that is not an image
        raise InputError(f"{str(file)!r} cannot be read: {error}") from error
    if told is None:
        raise InputError(f"{str(file)!r} holds no record of the files it was drawn from")
    return told


def digest(sources: Iterable[str | os.PathLike]) -> str:
    """A hash of files' contents and of their names with the two folders above, independent of their order."""
    lines = []
    for path in map(pathlib.Path, sources):
        name = "/".join(path.absolute().parts[-3:])
        lines.append(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
