"""Reads NNX layers as linear maps: their kernels as matrices, their inputs and outputs as vectors.

    layer                                   reads           kernel                     writes
    nnx.Linear                              (..., n_in)     (n_in, n_out)              (..., n_out)
    nnx.LinearGeneral                       axes of x       (batch, inputs, outputs)   (batch, ..., outputs)
    nnx.Einsum("btd,dhk->bthk")             d               (d, h, k)                  h, k
    PackedLinear                            (..., n_in)     (n_in, n_out), packed      (..., n_out)
    any of them under nnx.vmap, nnx.scan    as it does      (layers, its own axes)     as it does

A vector consists of the numbers that a layer reads, or writes, along those axes, in their order.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from surm.errors import InputError
from surm.ops.packed import PackedLinear
from surm.peft.kernels import KernelLayout, in_words, is_floating


class Axes(NamedTuple):
    """The axes of an array by number: those of a stack of matrices, those of the batch, and those of a vector."""

    stacked: tuple[int, ...]
    rest: tuple[int, ...]
    vector: tuple[int, ...]


def _last(ndim: int) -> Axes:
    return Axes((), tuple(range(ndim - 1)), (ndim - 1,))


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """A layer as a linear map.

    Attributes:
      layout: the layout of the kernel in its present form. Outside `nnx.vmap` and `nnx.scan` it has the leading axes
        of a stack; inside, for one layer, it does not.
      read: a function from the number of axes of an input to their meaning.
      written: the same for an output.
      split_off: the number of leading axes that `nnx.vmap` and `nnx.scan` map over.
    """

    layout: KernelLayout = KernelLayout()
    read: Callable[[int], Axes] = _last
    written: Callable[[int], Axes] = _last
    split_off: int = 0

    def vectors(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The input of the layer as vectors: (*stack, *batch, n_in)."""
        return _together(x, self.read(x.ndim))

    def answers(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """The output of the layer as vectors: (*stack, *batch, n_out)."""
        return _together(y, self.written(y.ndim))

    def output(self, vectors: Float[Array, "..."], like: Float[Array, "..."]) -> Float[Array, "..."]:
        """Converts vectors to the form and shape of the layer's output."""
        axes = self.written(like.ndim)
        return vectors if axes == _last(like.ndim) else _apart(vectors, axes, like.shape)

    def beside(self, values: Float[Array, "..."], like: Float[Array, "..."]) -> Float[Array, "..."]:
        """Reshapes one number per output, (*stack, n_out), so that it broadcasts to the layer's output."""
        axes = self.written(like.ndim)
        return values if axes == _last(like.ndim) else _apart(values, axes, _of_outputs(axes, like.shape))

    def bias_beside(self, bias: Float[Array, "..."], like: Float[Array, "..."]) -> Float[Array, "..."]:
        """The layer's bias, reshaped so that it broadcasts to the layer's output."""
        axes = self.written(like.ndim)
        return bias if axes == _last(like.ndim) else bias.reshape(_of_outputs(axes, like.shape))

    def row_norms(self, kernel: Float[Array, "..."]) -> Float[Array, "*stack n_out"]:
        """The norm of every row of the matrices in a kernel, in float32 at least."""
        wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
        if self.layout == KernelLayout():
            return jnp.linalg.norm(wide, axis=0)
        return jnp.linalg.norm(self.layout.matrices(wide), axis=-1)


def _together(array: Array, axes: Axes) -> Array:
    array = _transposed(array, (*axes.stacked, *axes.rest, *axes.vector))
    return array if len(axes.vector) == 1 else array.reshape(*array.shape[: -len(axes.vector)], -1)


def _apart(vectors: Array, axes: Axes, shape: Sequence[int]) -> Array:
    order = (*axes.stacked, *axes.rest, *axes.vector)
    return _transposed(vectors.reshape([shape[axis] for axis in order]), np.argsort(order).tolist())


def _transposed(array: Array, order: Sequence[int]) -> Array:
    return array if list(order) == list(range(array.ndim)) else array.transpose(order)


def _of_outputs(axes: Axes, shape: Sequence[int]) -> list[int]:
    """A shape with 1 for every axis that does not distinguish outputs."""
    return [1 if axis in axes.rest else size for axis, size in enumerate(shape)]


def _linear(layer: nnx.Linear) -> tuple[LinearMap, tuple[int, ...]]:
    return LinearMap(), (layer.in_features, layer.out_features)


def _packed(layer: PackedLinear) -> tuple[LinearMap, tuple[int, ...]]:
    return LinearMap(), (layer.in_features, layer.out_features)


def _general(layer: nnx.LinearGeneral) -> tuple[LinearMap, tuple[int, ...]]:
    stacked = tuple(range(len(layer.batch_axis)))
    inputs = tuple(range(len(stacked), len(stacked) + len(layer.in_features)))
    outputs = tuple(range(len(stacked) + len(inputs), len(stacked) + len(inputs) + len(layer.out_features)))

    def read(ndim: int) -> Axes:
        vector = tuple(sorted(axis % ndim for axis in layer.axis))  # flax sorts them too
        return Axes(stacked, tuple(axis for axis in range(ndim) if axis not in (*stacked, *vector)), vector)

    def written(ndim: int) -> Axes:
        return Axes(stacked, tuple(range(len(stacked), ndim - len(outputs))), tuple(range(ndim))[-len(outputs) :])

    shape = (*layer.batch_axis.values(), *layer.in_features, *layer.out_features)
    return LinearMap(KernelLayout(inputs, outputs, stacked), read, written), shape


def _einsum(layer: nnx.Einsum) -> tuple[LinearMap, tuple[int, ...]]:
    operands, written = layer.einsum_str.split("->")
    read, kernel = operands.split(",")
    if odd := _oddity(read, kernel, written):
        raise InputError(f"is an nnx.Einsum of {layer.einsum_str!r}, which {odd}; expected one such as "
                         "'...d,dhk->...hk'")  # fmt: skip
    stacked = [axis for axis in written if axis in read and axis in kernel]
    inputs = [axis for axis in read if axis in kernel and axis not in written]
    outputs = [axis for axis in written if axis in kernel and axis not in read]
    layout = KernelLayout(*([kernel.index(axis) for axis in axes] for axes in (inputs, outputs, stacked)))

    def axes_of(term: str, vector: list[str], ndim: int) -> Axes:
        names, rest = _names(term, ndim), _names(written, ndim - len(vector) + len(outputs))
        rest = [name for name in rest if name not in stacked and name not in outputs]
        return Axes(*(tuple(names.index(name) for name in part) for part in (stacked, rest, vector)))

    both = (functools.partial(axes_of, term, vector) for term, vector in ((read, inputs), (written, outputs)))
    return LinearMap(layout, *both), tuple(layer.kernel_shape)


def _names(term: str, ndim: int) -> list[str]:
    """A name for every axis of an array in a term of an einsum, including those of its ellipsis."""
    before, ellipsis, after = term.partition("...")
    more = [f"...{number}" for number in range(ndim - len(before + after))] if ellipsis else []
    return [*before, *more, *after]


def _oddity(read: str, kernel: str, written: str) -> str:
    """The reason why an einsum is not a product of matrices with vectors; empty if it is one."""
    terms = [term.replace("...", "") for term in (read, kernel, written)]
    x, weight, y = map(set, terms)
    of_output = [axis for axis in terms[2] if axis in weight]
    if any(len(set(term)) < len(term) for term in terms):
        return "reads a diagonal"
    if "..." in kernel or ("..." in read) != ("..." in written):
        return "has an ellipsis that is not one of both input and output"
    if alone := sorted((weight ^ x) - y):
        return f"sums over {', '.join(alone)} in only one operand"
    if not (weight & x) - y:
        return "sums over no axis of the kernel: it scales what it reads"
    if not (weight & y) - x:
        return "writes no axis of the kernel alone"
    if of_output != sorted(of_output, key=lambda axis: axis not in x):
        return "writes an axis of the kernel alone in front of one that it shares with the input"
    return ""


_MAPS: dict[type[nnx.Module], Callable[..., tuple[LinearMap, tuple[int, ...]]]] = {
    nnx.Linear: _linear,
    nnx.LinearGeneral: _general,
    nnx.Einsum: _einsum,
    PackedLinear: _packed,
}
"""Every class of layers that are linear maps, with the functions that give the map and the shape of its kernel."""

LAYERS = tuple(_MAPS)
"""The classes in `_MAPS`."""


def linear_map(layer: nnx.Module) -> LinearMap:
    """Reads a layer as a linear map.

    Args:
      layer: an instance of one of the classes in `LAYERS`, or of a subclass.

    Returns:
      The map.

    Raises:
      InputError: if the layer is not a linear map, or its kernel cannot be adapted; the message describes the layer
        without its path.
    """
    kernel = layer.kernel
    if isinstance(layer, nnx.LoRALinear):
        raise InputError("is an nnx.LoRALinear, which has an update already; expected an nnx.Linear")
    if not isinstance(kernel, nnx.Variable) or not hasattr(kernel, "ndim"):
        held = type(kernel.get_value() if isinstance(kernel, nnx.Variable) else kernel).__name__
        raise InputError(f"is {named(layer)} whose kernel is a {held}, as of a quantised layer; expected an array")
    if not is_floating(kernel):
        raise InputError(f"is {named(layer)} whose kernel is {in_words(kernel)}; expected floating point of 16 bits or "
                         "more")  # fmt: skip
    found, own = _MAPS[_class(layer)](layer)
    more = kernel.ndim - len(own)
    if more < 0 or (more and kernel.shape[more:] != own):
        raise InputError(f"is {named(layer)} of {list(own)} whose kernel is {in_words(kernel)}; expected that, or what "
                         "nnx.vmap and nnx.scan stack along the first axis")  # fmt: skip
    return dataclasses.replace(found, layout=_under(found.layout, more), split_off=more) if more else found


def _under(layout: KernelLayout, more: int) -> KernelLayout:
    """The layout of a kernel with additional axes in front."""
    inputs, outputs, stacked = (
        [axis + more for axis in axes] for axes in (layout.inputs, layout.outputs, layout.stacked)
    )
    return KernelLayout(inputs, outputs, (*range(more), *stacked))


def more_than_multiplies(layer: nnx.Module) -> bool:
    """Whether a layer's class has a `__call__` of its own, which may be more than a product with the kernel."""
    return type(layer).__call__ is not _class(layer).__call__


def _class(layer: nnx.Module) -> type[nnx.Module]:
    return next(kind for kind in type(layer).__mro__ if kind in _MAPS)


def named(module: object) -> str:
    """The name of a module's class with its article.

    Examples:
      >>> named(nnx.Dropout(0.1))
      'an nnx.Dropout'
    """
    kind = type(module)
    name = f"nnx.{kind.__name__}" if kind.__module__.startswith("flax.nnx") else kind.__name__
    return f"{'an' if name[0] in 'AEIOaeio' or name.startswith('nnx.') else 'a'} {name}"
