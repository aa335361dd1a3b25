"""Reads the tensors of a GGUF file: plain numbers as they are stored, blocks of quantised ones as float32.

The blocks are unpacked by the gguf package, some rows at a time, so that no more than the result is in memory.
"""

import functools
import importlib.util
import math

import ml_dtypes
import numpy as np

from surm.errors import InputError, few
from surm.models.arrays import slice_of
from surm.models.gguf.header import Header, Tensor
from surm.models.lazy import Stored

PLAIN = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
READ = (*PLAIN, *BLOCKS)
"""The types that are read."""
_AT_ONCE = 1 << 18  # numbers


def stored(header: Header) -> dict[str, Stored]:
    """The tensors of a file, each of which is read when it is asked for.

    Args:
      header: from `surm.models.gguf.header.read`.

    Returns:
      The tensors by name: in float32, float16 or bfloat16 as in the file, and in float32 if they are quantised.

    Raises:
      InputError: if the gguf package is missing, a tensor has a type that is not read, or the file is cut short.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{header.file!r} needs the package gguf: pip install 'surm[gguf]'")
    names = {name: _type(tensor) for name, tensor in header.tensors.items()}
    if other := [f"{name} of type {of}" for name, of in names.items() if of not in READ]:
        raise InputError(f"{header.file!r} holds {few(other, 3)}; the types that are read: {', '.join(READ)}")
    return {name: _stored(header, name, tensor, names[name]) for name, tensor in header.tensors.items()}


def _type(tensor: Tensor) -> str:
    """The name of a tensor's type; its number if the gguf package does not know it."""
    from gguf.constants import GGMLQuantizationType

    known = {of.value: of.name for of in GGMLQuantizationType}
    return known.get(tensor.kind, str(tensor.kind))


def _stored(header: Header, name: str, tensor: Tensor, of: str) -> Stored:
    dtype = PLAIN.get(of, np.dtype(np.uint8))
    shape = tensor.shape if of in PLAIN else _in_bytes(header, name, tensor, of)
    end = tensor.start + math.prod(shape) * dtype.itemsize
    if end > header.size:
        ends = f"ends at byte {header.size:,}, but its tensor {name} at {end:,}"
        raise InputError(f"{header.file!r} {ends}; the GGUF file is cut short")
    read = functools.partial(slice_of, header.file, tensor.start, dtype, shape)
    if of in PLAIN:
        return Stored(shape, dtype, read)
    return Stored(tensor.shape, np.dtype(np.float32), lambda: _unpacked(read(), of, tensor.shape))


def _in_bytes(header: Header, name: str, tensor: Tensor, of: str) -> tuple[int, ...]:
    """The shape of a quantised tensor in bytes: a row is a number of whole blocks."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[of]]
    if not tensor.shape or tensor.shape[-1] % numbers:
        raise InputError(f"{header.file!r} holds {name} of shape {tensor.shape}, expected rows of {of}'s {numbers}")
    return (*tensor.shape[:-1], tensor.shape[-1] // numbers * size)


def _unpacked(packed: np.ndarray, of: str, shape: tuple[int, ...]) -> np.ndarray:
    import gguf

    found = np.empty(shape, np.float32)
    rows, into = packed.reshape(-1, packed.shape[-1]), found.reshape(-1, shape[-1])
    step = max(1, _AT_ONCE // shape[-1])
    for first in range(0, len(rows), step):
        into[first : first + step] = gguf.dequantize(rows[first : first + step], gguf.GGMLQuantizationType[of])
    return found
