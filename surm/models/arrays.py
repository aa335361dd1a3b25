"""Reads the arrays of safetensors files, of all dtypes that hold plain numbers, and checks the index of shards.

The NumPy reader of safetensors lacks the eight-bit floating-point types. This module reads them itself, from the
offsets in the file's header (a length in eight bytes, then JSON).
"""

import json
import os
from collections.abc import Iterable

import ml_dtypes  # also registers bfloat16 with NumPy, without which such files cannot be read
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from surm.errors import InputError, few, one_line
from surm.machine.notes import say

EIGHT_BITS: dict[str, type] = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}
READ = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", *EIGHT_BITS}
_SCALES = (".weight_scale", ".weight_scale_inv", ".scale_weight", ".scale", ".weight_scales")


def read(files: Iterable[os.PathLike]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads all arrays of some files.

    Args:
      files: paths of safetensors files.

    Returns:
      The arrays of all files by key, as stored, and the metadata of the last file.

    Raises:
      InputError: if a file cannot be read, is truncated, holds a dtype that is no plain number, or holds a key that
        another file holds too; or if eight-bit weights come with scales, so that they are quantised.
    """
    arrays: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    for file in map(epath.Path, files):
        more, metadata = _of_file(file)
        if twice := sorted(arrays.keys() & more.keys()):
            raise InputError(f"{str(file)!r} holds {few(twice)}, which another file of the same weights holds too")
        arrays |= more
    _check_unscaled(arrays)
    return arrays, metadata


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


def _of_file(file: epath.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with _opened(file) as opened:
            types = {key: opened.get_slice(key).get_dtype() for key in sorted(opened.keys())}
            _check_types(file, types)
            plain = {key: opened.get_tensor(key) for key, of in types.items() if of not in EIGHT_BITS}
            eight = {key: EIGHT_BITS[of] for key, of in types.items() if of in EIGHT_BITS}
            return plain | _eight_bits(file, eight), opened.metadata() or {}
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


def _eight_bits(file: epath.Path, types: dict[str, type]) -> dict[str, np.ndarray]:
    if not types:
        return {}
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        head = json.loads(opened.read(length))
        return {key: _at(opened, 8 + length, head[key], of) for key, of in types.items()}


def _at(opened, start: int, about: dict, of: type) -> np.ndarray:
    first, last = about["data_offsets"]
    opened.seek(start + first)
    return np.frombuffer(opened.read(last - first), of).reshape(about["shape"])


def _check_unscaled(arrays: dict[str, np.ndarray]) -> None:
    """Refuses eight-bit weights with a scale beside them: they are quantised, and mean nothing without the scale."""
    for key, array in arrays.items():
        eight = array.dtype.name.startswith("float8") and key.endswith(".weight")
        scales = [name for end in _SCALES if (name := key.removesuffix(".weight") + end) in arrays] if eight else []
        if scales:
            raise InputError(
                f"{key} holds eight-bit numbers beside {scales[0]}: the weights are quantised; expected unquantised "
                "ones: dequantize() in transformers, then save_pretrained"
            )
