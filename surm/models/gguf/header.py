"""Reads the header of a GGUF file: its metadata, and the place of every tensor.

    magic "GGUF"   version   number of tensors   number of entries
    entries        name, type, value; a text is its length in bytes and UTF-8, an array its type, length and values
    tensors        name, dimensions (the fastest first), type of the blocks, offset
    padding to `general.alignment`, then the tensors' bytes

The reader of the gguf package keeps several NumPy arrays for every word of a vocabulary; this one keeps its text.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

import functools
import os
import struct
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from surm.errors import InputError, one_line

VERSIONS = (2, 3)
_NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_FLOAT32, _TEXT, _ARRAY = 6, 8, 9


class Tensor(NamedTuple):
    """The place of a tensor.

    Attributes:
      shape: its shape in NumPy's order, the slowest dimension first: (out, in) for a linear map.
      kind: the number of its type of blocks.
      start: the place of its first byte in the file.
    """

    shape: tuple[int, ...]
    kind: int
    start: int


class Header(NamedTuple):
    """The header of a file.

    Attributes:
      file: the file.
      size: its size in bytes.
      metadata: the entries by name: numbers, texts, lists of texts and arrays of numbers.
      tensors: the places of the tensors by name.
    """

    file: str
    size: int
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read(file: str | os.PathLike) -> Header:
    """Reads the header of a file.

    A float32 is given as the shortest decimal number that rounds to it, so 1e-5 is 1e-5.

    Args:
      file: a local file.

    Returns:
      The header.

    Raises:
      InputError: if the file cannot be read, is no GGUF file of version 2 or 3, or is cut short in its header.
    """
    name = os.fspath(file)
    try:
        about = os.stat(file)
        return _read(name, about.st_mtime_ns, about.st_size)
    except OSError as error:
        raise InputError(f"{name!r} cannot be read ({one_line(error)})") from error
    except (UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise InputError(f"{name!r} is a damaged GGUF file ({one_line(error)})") from error


@functools.lru_cache(maxsize=1)
def _read(name: str, changed: int, size: int) -> Header:
    """The header of a file as it is now: weights, tokenizer and template are read from one file after one another."""
    with open(name, "rb") as opened:
        return _Reader(name, opened).header()


class _Reader:
    """Reads the parts of a header one after the other."""

    def __init__(self, name: str, opened: BinaryIO):
        self.name, self.opened, self.size = name, opened, os.fstat(opened.fileno()).st_size

    def header(self) -> Header:
        if (magic := self.opened.read(4)) != b"GGUF":
            raise InputError(f"{self.name!r} begins with {magic!r}, expected b'GGUF'; a git LFS pointer?")
        version = self.number("<u4")
        if version not in VERSIONS:
            raise InputError(f"{self.name!r} is a GGUF file of version {version}, expected 2 or 3 (little-endian)")
        tensors, entries = self.number("<u8"), self.number("<u8")
        metadata = self.named(entries, lambda: self.value(self.number("<u4")))
        places = self.named(tensors, self.tensor)
        aligned = metadata.get("general.alignment", 32)
        if not isinstance(aligned, int) or aligned < 1:
            raise InputError(f"{self.name!r} says general.alignment={aligned!r}, expected a whole number above 0")
        first = -(-self.opened.tell() // aligned) * aligned
        placed = {name: place._replace(start=first + place.start) for name, place in places.items()}
        return Header(self.name, self.size, metadata, placed)

    def named(self, count: int, value) -> dict[str, Any]:
        found = {}
        for _ in range(count):
            name = self.text()
            if name in found:
                raise InputError(f"{self.name!r} holds {name!r} twice")
            found[name] = value()
        return found

    def bytes(self, count: int) -> bytes:
        found = self.opened.read(count) if count <= self.size else b""
        if len(found) < count:
            raise self.cut_short()
        return found

    def cut_short(self) -> InputError:
        return InputError(f"{self.name!r} ends within its header, at byte {self.size:,}; the GGUF file is cut short")

    def number(self, dtype: str) -> int:
        return struct.unpack({"<u4": "<I", "<u8": "<Q"}[dtype], self.bytes(int(dtype[-1])))[0]

    def text(self) -> str:
        return self.bytes(self.number("<u8")).decode()

    def texts(self, count: int) -> list[str]:
        """Texts one after the other, without a call for each part: a vocabulary has hundreds of thousands."""
        found, read = [], self.opened.read
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            text = read(length) if length <= self.size else b""
            if len(text) < length or 8 * count > self.size:
                raise self.cut_short()
            found.append(text.decode())
        return found

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            of, count = self.number("<u4"), self.number("<u8")
            if of == _TEXT:
                return self.texts(count)
            return self.numbers(of, count) if of in _NUMBERS else [self.value(of) for _ in range(count)]
        (found,) = self.numbers(kind, 1)
        return float(str(found)) if kind == _FLOAT32 else found.item()

    def numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in _NUMBERS:
            raise InputError(f"{self.name!r} has an entry of the unknown type {kind}; the GGUF file is damaged")
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self.bytes(count * dtype.itemsize), dtype)

    def tensor(self) -> Tensor:
        shape = tuple(self.number("<u8") for _ in range(self.number("<u4")))
        return Tensor(shape[::-1], self.number("<u4"), self.number("<u8"))
