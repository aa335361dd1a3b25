"""Makes the bytes of safetensors files; no other module does this.

The library writes an array's memory as it is (0.8.0; 0.7.0 did not). A transposed view, or an array that is
column-major on its device, is therefore silently scrambled. So arrays are put in order first, and the finished bytes
are read back and compared with the arrays before they are returned.
"""

import json
from collections.abc import Iterator, Mapping

import ml_dtypes  # noqa: F401  lets NumPy hold bfloat16 and its like
import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import ArrayLike

from surm.errors import InputError, one_line


def encoded(arrays: Mapping[str, ArrayLike], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file that holds these arrays, for every layout in memory.

    Args:
      arrays: arrays of NumPy or JAX by key; they may be transposed, broadcast, empty or without axes.
      metadata: texts for the header of the file.

    Returns:
      The bytes, checked to hold every array bit for bit. Cost: a copy of every array that is not in C order, the
      bytes, and one comparison.

    Raises:
      InputError: if an array holds a number that is not finite, or the format does not have its dtype.

    Examples:
      >>> import numpy as np
      >>> one, other = encoded({"a": np.ones((2, 3)).T}), encoded({"a": np.ones((3, 2))})
      >>> one == other
      True
    """
    given = {key: np.asarray(arrays[key]) for key in sorted(arrays)}
    head = dict(metadata) if metadata else None  # for an empty mapping the library would write an empty entry
    _check_finite(given)
    try:
        data = safetensors.numpy.save({key: _in_order(array) for key, array in given.items()}, head)
    except safetensors.SafetensorError as error:
        listed = ", ".join(sorted({array.dtype.name for array in given.values()}))
        raise InputError(f"arrays of {listed} cannot be written as safetensors: {one_line(str(error))}") from error
    _check_held(data, given)
    return data


def _in_order(array: np.ndarray) -> np.ndarray:
    """The array in C order and the format's byte order, copied only if necessary."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    for key, array in arrays.items():
        if array.dtype.kind not in "fcV":  # V: bfloat16 and its like
            continue
        if wrong := int(array.size - np.count_nonzero(np.isfinite(array))):
            raise InputError(
                f"{key} holds {wrong} of {array.size} numbers that are not finite; expected none in a file. "
                "Did the training diverge? A lower learning rate may help"
            )


def _check_held(data: bytes, arrays: Mapping[str, np.ndarray]) -> None:
    """Reads the bytes without the library that wrote them, and raises OSError if they are not the arrays."""
    found = dict(_parts(data))
    for key, array in arrays.items():
        shape, held = found.pop(key, (None, b""))
        if shape != array.shape or len(held) != array.nbytes or not _holds(held, array):
            raise OSError(f"safetensors {safetensors.__version__} wrote {key} other than it was given")
    if found:
        raise OSError(f"safetensors {safetensors.__version__} wrote {', '.join(found)}, which was not given")


def _parts(data: bytes) -> Iterator[tuple[str, tuple[tuple[int, ...], memoryview]]]:
    """Every array's key, shape and bytes; the file has eight bytes of length, a header in JSON, then the arrays."""
    view = memoryview(data)
    start = 8 + int.from_bytes(view[:8], "little")
    for key, about in json.loads(bytes(view[8:start])).items():
        if key != "__metadata__":
            first, last = about["data_offsets"]
            yield key, (tuple(about["shape"]), view[start + first : start + last])


def _holds(data: memoryview, array: np.ndarray) -> bool:
    """Whether bytes of the right number are an array's numbers in C order, bit for bit."""
    bits = np.dtype(f"u{array.dtype.itemsize}")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return bool(np.array_equal(np.frombuffer(data, bits).reshape(array.shape), little.view(bits)))
