"""Arrays that are read from their file only when they are asked for, so that a model is filled one array at a time."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np


class Stored(NamedTuple):
    """An array that may not have been read yet.

    Attributes:
      shape: its shape.
      dtype: its dtype.
      read: reads it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """The size of the array in bytes, once it is read."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def outline(self) -> np.ndarray:
        """An array of this shape and dtype that takes no memory: its strides are 0."""
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)

    def then(self, transform: Callable[[np.ndarray], np.ndarray]) -> "Stored":
        """The array behind a transform, which is applied whenever the array is read.

        The new shape is found by applying the transform to the outline. So the shape, and not the values, must decide
        about it.
        """
        after = transform(self.outline)
        return Stored(after.shape, after.dtype, lambda: transform(self.read()))


def held(array: np.ndarray) -> Stored:
    """An array in memory."""
    return Stored(array.shape, array.dtype, lambda: array)


class Arrays(Mapping):
    """Arrays by name, each of which is read when it is asked for, and again when it is asked for again.

    Examples:
      >>> arrays = Arrays({"a": held(np.ones((2, 3))).then(np.transpose)}) | {"b": np.zeros(4)}
      >>> {name: array.shape for name, array in arrays.items()}
      {'a': (3, 2), 'b': (4,)}
      >>> arrays.stored["a"].shape  # without reading
      (3, 2)
    """

    def __init__(self, stored: Mapping[str, Stored]):
        """Takes the arrays by name."""
        self.stored = dict(stored)

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads an array."""
        return self.stored[name].read()

    def __iter__(self) -> Iterator[str]:
        """The names, in order."""
        return iter(self.stored)

    def __len__(self) -> int:
        """The number of arrays."""
        return len(self.stored)

    def __contains__(self, name: object) -> bool:
        """Whether there is an array of that name; nothing is read."""
        return name in self.stored

    def __or__(self, others: "Arrays | dict[str, np.ndarray]") -> "Arrays":
        """These arrays and others, which replace those of the same name; nothing is read."""
        return Arrays({**self.stored, **of(others).stored})

    def __repr__(self) -> str:
        """Their number."""
        return f"Arrays({len(self)} arrays)"


Named = Arrays | dict[str, np.ndarray]
"""Arrays by name, in files or in memory."""


def of(arrays: Named) -> Arrays:
    """The same arrays as `Arrays`; those of a dict are in memory already."""
    return arrays if isinstance(arrays, Arrays) else Arrays({name: held(array) for name, array in arrays.items()})
