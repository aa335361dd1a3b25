"""Which axes of a kernel are inputs and which are outputs, for the arrays of any framework.

    kernel                                  shape                   layout
    Linen, Haiku, by hand                   (n_in, n_out)           KernelLayout()
    Equinox, PyTorch                        (n_out, n_in)           KernelLayout(inputs=(1,), outputs=(0,))
    Linen's attention: query, key, value    (n_in, heads, size)     KernelLayout(outputs=(1, 2))
    Linen's attention: out                  (heads, size, n_out)    KernelLayout(inputs=(0, 1), outputs=(2,))
    query, key and value in one             (n_in, 3n)              KernelLayout(segments=("query", "key", "value"))
    layers under a scan, experts            (layers, n_in, n_out)   KernelLayout((1,), (2,), stacked=(0,))
    Linen's convolution                     (h, w, n_in, n_out)     KernelLayout(inputs=(0, 1, 2), outputs=(3,))

A matrix is always (n_out, n_in), for every layout of its kernel.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jaxtyping import Array, Float

from surm.errors import InputError

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class KernelLayout:
    """How a kernel is read as a matrix, or a stack of matrices; each of its axes is named once, by number.

    Attributes:
      inputs: the axes that make up n_in, the slowest first.
      outputs: the axes that make up n_out, the slowest first: `(2, 1, 3)` for (n_in, heads, 3, size) has all queries
        in front, then all keys.
      stacked: the axes along which each index has a matrix, and an update, of its own.
      segments: named parts of the outputs, which can be targeted separately: names alone divide them evenly,
        `("query", "key", "value")`; `{"query": (0, 64), "key": (64, 80)}` says where each starts and stops.

    Raises:
      InputError: if an axis is not a number from 0 on or is named twice, inputs or outputs are empty, or segments
        overlap.

    Examples:
      >>> KernelLayout(outputs=(1, 2)).sizes((32, 4, 16))
      (64, 32)
      >>> KernelLayout(segments=("query", "key", "value")).spans(96)
      {'query': (0, 32), 'key': (32, 64), 'value': (64, 96)}
    """

    inputs: Sequence[int] = (0,)
    outputs: Sequence[int] = (1,)
    stacked: Sequence[int] = ()
    segments: Mapping[str, Span] | Sequence[str] = ()

    def __post_init__(self):
        for field in ("inputs", "outputs", "stacked"):
            object.__setattr__(self, field, _axes(field, getattr(self, field)))
        if not self.inputs or not self.outputs or len(set(self.axes)) < len(self.axes):
            raise InputError(f"given the axes {self._axes_in_words}; expected inputs and outputs, and each axis once")
        object.__setattr__(self, "segments", _segments(self.segments))

    @property
    def axes(self) -> tuple[int, ...]:
        """All axes in the order of a stack of matrices."""
        return (*self.stacked, *self.outputs, *self.inputs)

    @property
    def _axes_in_words(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in ("inputs", "outputs", "stacked"))

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises InputError for a kernel with other axes."""
        if sorted(self.axes) != list(range(len(shape))):
            raise InputError(f"shape {shape}, but a layout of the axes {self._axes_in_words}; expected 0 to "
                             f"{len(shape) - 1}, each once")  # fmt: skip

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The n_out and n_in of a kernel."""
        return math.prod(shape[axis] for axis in self.outputs), math.prod(shape[axis] for axis in self.inputs)

    def stack(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The number of matrices along each stacked axis of a kernel."""
        return tuple(shape[axis] for axis in self.stacked)

    def spans(self, n_out: int) -> dict[str, Span]:
        """The start and stop of each segment among n_out outputs; InputError if a segment does not fit."""
        if isinstance(self.segments, Mapping):
            for name, (start, stop) in self.segments.items():
                if stop > n_out:
                    raise InputError(f"segment {name!r} is {start} to {stop}, but there are {n_out} outputs")
            return dict(self.segments)
        size, rest = divmod(n_out, max(len(self.segments), 1))
        if rest:
            raise InputError(f"{n_out} outputs do not divide evenly into {', '.join(self.segments)}; say where each "
                             "starts and stops")  # fmt: skip
        return {name: (size * index, size * (index + 1)) for index, name in enumerate(self.segments)}

    def matrices(self, kernel: Float[Array, "..."]) -> Float[Array, "*stack n_out n_in"]:
        """The matrices that a kernel holds."""
        return kernel.transpose(self.axes).reshape(*self.stack(kernel.shape), *self.sizes(kernel.shape))

    def kernel(self, matrices: Float[Array, "*stack n_out n_in"], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """The kernel that holds these matrices."""
        return matrices.reshape([shape[axis] for axis in self.axes]).transpose(np.argsort(self.axes))

    def each(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Maps a function of one matrix, or its parameters, over a stack of them."""
        return each(function, len(self.stacked))


def each(function: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """Maps a function of one matrix, or its parameters, over a stack with the given number of axes."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function


def is_floating(array: Any) -> bool:
    """Whether an update can be added to an array directly, which needs floating point of 16 bits or more."""
    return jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize >= 2


def in_words(array: Any) -> str:
    """The type and shape of an array, for messages."""
    return f"{array.dtype}{list(array.shape)}"


def _axes(field: str, given: Any) -> tuple[int, ...]:
    if not isinstance(given, Sequence) or not all(type(axis) is int and axis >= 0 for axis in given):
        raise InputError(f"{field}={given!r}, expected axes by number from 0 on, such as (0,)")
    return tuple(given)


def _segments(given: Any) -> FrozenDict[str, Span] | tuple[str, ...]:
    several = isinstance(given, Mapping | Sequence) and not isinstance(given, str)
    if not several or not all(isinstance(name, str) for name in given):
        raise InputError(f"segments={given!r}, expected names, or a mapping from names to (start, stop)")
    if not isinstance(given, Mapping):
        if len(set(given)) < len(given):
            raise InputError(f"segments={given!r}, expected each name once")
        return tuple(given)
    for name, span in given.items():
        if not (isinstance(span, Sequence) and [type(end) for end in span] == [int, int] and 0 <= span[0] < span[1]):
            raise InputError(f"segment {name!r} is {span!r}, expected (start, stop) with 0 <= start < stop")
    for (one, first), (other, second) in itertools.pairwise(sorted(given.items(), key=lambda item: tuple(item[1]))):
        if second[0] < first[1]:
            raise InputError(f"segments {one!r} {tuple(first)} and {other!r} {tuple(second)} overlap")
    return FrozenDict({name: tuple(span) for name, span in given.items()})
