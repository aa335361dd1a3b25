"""Reads the arrays of safetensors files, of all dtypes that hold plain numbers, and checks the index of shards.

The library checks a file's header. The arrays are read here, each when it is asked for, from the offsets in that header
(a length in eight bytes, then JSON): the library's own reader lacks the eight-bit floating-point types, and it maps the
file into memory, where the pages that were read count as the process's until the file is closed.
"""

import functools
import json
import math
import os
from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from surm.errors import InputError, few, one_line
from surm.machine.notes import say
from surm.models.lazy import Arrays, Stored

READ: dict[str, np.dtype] = {
    name: np.dtype(of)
    for name, of in {
        "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
        "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
        "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    }.items()
}  # fmt: skip
"""The dtypes that are read, by their names in the files."""
_SCALES = (".weight_scale", ".weight_scale_inv", ".scale_weight", ".scale", ".weight_scales")


def read(files: Iterable[os.PathLike]) -> tuple[Arrays, dict[str, str]]:
    """Opens the arrays of some files.

    Args:
      files: paths of safetensors files.

    Returns:
      The arrays of all files by key, as stored, each read when it is asked for; and the metadata of the last file.

    Raises:
      InputError: if a file cannot be read, is truncated, holds a dtype that is no plain number, or holds a key that
        another file holds too; or if eight-bit weights come with scales, so that they are quantised. Reading an array
        raises it if the file has been removed or cut short since.
    """
    stored: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for file in map(epath.Path, files):
        more, metadata = _of_file(file)
        if twice := sorted(stored.keys() & more.keys()):
            raise InputError(f"{str(file)!r} holds {few(twice)}, which another file of the same weights holds too")
        stored |= more
    _check_unscaled(stored)
    return Arrays(stored), metadata


def check_index(folder: os.PathLike, index: dict[str, str], name: str) -> None:
    """Checks that files hold the arrays that their index assigns to them; reports arrays that the index lacks.

    Args:
      folder: the folder of the files.
      index: the name of the file of each key.
      name: the name of the index file, for messages.

    Raises:
      InputError: if a key is not in the file that the index names.
    """
    held = {file: _keys(epath.Path(folder) / file) for file in sorted(set(index.values()))}
    for key, file in sorted(index.items()):
        if key not in held[file]:
            others = [other for other, keys in held.items() if key in keys]
            raise InputError(f"{name} in {str(folder)!r} says that {file} holds {key!r}, but {few(others)} does")
    if unlisted := sorted(set().union(*held.values()) - index.keys()):
        say(f"{name} in {str(folder)!r} leaves out {few(unlisted)}, which its files hold")


def _keys(file: epath.Path) -> set[str]:
    with _opened(file) as opened:
        return set(opened.keys())


def _of_file(file: epath.Path) -> tuple[dict[str, Stored], dict[str, str]]:
    try:
        with _opened(file) as opened:
            _check_types(file, {key: opened.get_slice(key).get_dtype() for key in sorted(opened.keys())})
            metadata = opened.metadata() or {}
        return _stored(file), metadata
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _broken(file, error) from error


def _opened(file: epath.Path) -> safe_open:
    if not os.access(file, os.R_OK):
        raise InputError(f"{str(file)!r} cannot be read: permission denied")
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise _broken(file, error) from error


def _broken(file: epath.Path, error: Exception) -> InputError:
    said = one_line(f"{type(error).__name__}: {error}")
    return InputError(f"{str(file)!r} is not a whole safetensors file; cut short, or a git LFS pointer? ({said})")


def _check_types(file: epath.Path, types: dict[str, str]) -> None:
    if other := [f"{key} of {of}" for key, of in types.items() if of not in READ]:
        raise InputError(f"{str(file)!r} holds {few(other, 3)}; expected numbers of {', '.join(sorted(READ))}")


def _stored(file: epath.Path) -> dict[str, Stored]:
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        head = json.loads(opened.read(length))
    head.pop("__metadata__", None)
    return {key: _at(file, 8 + length, head[key]) for key in sorted(head)}


def _at(file: epath.Path, start: int, about: dict) -> Stored:
    shape, dtype = tuple(about["shape"]), READ[about["dtype"]]
    return Stored(shape, dtype, functools.partial(slice_of, file, start + about["data_offsets"][0], dtype, shape))


def slice_of(file: str | os.PathLike, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Reads an array from a place in a file.

    Args:
      file: a local file.
      start: the place of the array's first byte.
      dtype: its dtype.
      shape: its shape.

    Returns:
      The array.

    Raises:
      InputError: if the file has been removed, or ends before the array does.
    """
    wanted = math.prod(shape) * dtype.itemsize
    try:
        found = np.fromfile(os.fspath(file), np.uint8, wanted, offset=start)
    except OSError as error:
        raise InputError(f"{str(file)!r} cannot be read any more ({one_line(error)})") from error
    if found.nbytes != wanted:
        raise InputError(f"{str(file)!r} ends at byte {start + found.nbytes:,}, expected {wanted:,} from {start:,} on")
    return found.view(dtype).reshape(shape)


def _check_unscaled(arrays: Mapping[str, Stored]) -> None:
    """Refuses eight-bit weights with a scale beside them: they are quantised, and mean nothing without the scale."""
    for key, array in arrays.items():
        eight = array.dtype.name.startswith("float8") and key.endswith(".weight")
        scales = [name for end in _SCALES if (name := key.removesuffix(".weight") + end) in arrays] if eight else []
        if scales:
            raise InputError(
                f"{key} holds eight-bit numbers beside {scales[0]}: the weights are quantised; expected unquantised "
                "ones: dequantize() in transformers, then save_pretrained"
            )
