"""Decodes image files, and checks many files without decoding those that look complete.

Every image becomes uint8 H×W×1 (grey), H×W×3 or, with transparency, H×W×4. It is turned upright by its EXIF
orientation. Pillow converts palettes, CMYK and other colour spaces; 16 bits of grey become round(v/257); of several
frames the first is used.
"""

import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from PIL import Image, ImageOps

from surm.data import pictures
from surm.errors import InputError, one_line
from surm.machine.notes import say

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
NAMED = 5  # the largest number of unreadable files that a message names
_TAIL = 4096  # bytes at the end of a file that are checked
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
_LONG = 20_000  # from this number of files on, a notice says that they are checked

File = BinaryIO | io.IOBase  # io's own files are no BinaryIO to a checker of types
Opener = Callable[[], File]


def pixels(file: File) -> pictures.Picture:
    """Decodes an image.

    Args:
      file: the file, opened for reading.

    Returns:
      uint8 H×W×C, C = 1, 3 or 4.

    Raises:
      Exception: Pillow raises many types; pixels of more than 16 bits raise InputError.
    """
    with Image.open(file) as image:
        image.load()
        _check_depth(image)
        upright = ImageOps.exif_transpose(image)
        return pictures.of_pillow(upright)


def _check_depth(image: Image.Image) -> None:
    """Refuses pixels of unknown range: 32-bit integers and floating point."""
    if image.mode in ("F", "I"):
        raise InputError(f"pixels of mode {image.mode} have no known range, expected 8 or 16 bits")


def complaint(file: File) -> str:
    """The reason why a file is not a readable image, from its header and its end; empty if it looks complete.

    If a file does not end as its format demands, it is decoded to be sure.
    """
    try:
        with Image.open(file) as image:
            _check_depth(image)
            whole = _ends_well(file, image.format or "")
            if not whole:
                image.load()
    except Exception as error:  # Pillow's readers raise many types of exceptions
        return _reason(error)
    return ""


def _ends_well(file: File, kind: str) -> bool:
    """Whether the file ends as its format demands, if that is known; the position is restored."""
    here, size = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(max(size - _TAIL, 0))
    tail = file.read()
    file.seek(0)
    head = file.read(8)
    file.seek(here)
    if kind == "WEBP":
        return size >= int.from_bytes(head[4:8], "little") + 8
    if kind == "BMP":
        return size >= int.from_bytes(head[2:6], "little")
    return kind not in _ENDS or tail.rstrip(b"\0\r\n").endswith(_ENDS[kind])


def _reason(error: Exception) -> str:
    if "cannot identify image file" in str(error):  # Pillow's message would contain an object's address
        return "not an image of a known format"
    return getattr(error, "strerror", None) or one_line(error)


def check_all(named: Iterable[tuple[str, Opener]], where: str, threads: int = 0) -> None:
    """Refuses images that cannot be read, all at once.

    Args:
      named: the name and the opener of every file.
      where: the name of the folder or file that holds them, for the message.
      threads: the number of threads; 0 for one per processor.

    Raises:
      InputError: if images are unreadable; the message names the first ones, their number, and a remedy.
    """
    every = list(named)
    if len(every) > _LONG:
        say(f"{where}: looking at the headers of {len(every):,} images")
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        found = list(pool.map(_looked_at, every, chunksize=64))
    bad = [f"{name} ({why})" for (name, _), why in zip(every, found, strict=True) if why]
    if bad:
        more = f" and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
        raise InputError(
            f"{where}: {len(bad):,} of {len(every):,} images cannot be read: {', '.join(bad[:NAMED])}{more}; remove "
            "or replace them"
        )


def _looked_at(named: tuple[str, Opener]) -> str:
    try:
        with named[1]() as file:
            return complaint(file)
    except OSError as error:
        return _reason(error)


def decoded(opened: Opener, name: str) -> pictures.Picture:
    """The pixels of a named image; the InputError names it if it cannot be decoded."""
    try:
        with opened() as file:
            return pixels(file)
    except Exception as error:  # as in `complaint`
        raise InputError(f"the image {name} cannot be decoded: {_reason(error)}; remove or replace it") from error


def from_bytes(encoded: bytes) -> Opener:
    """An opener of an image in memory."""
    return lambda: io.BytesIO(encoded)
