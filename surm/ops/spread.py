"""How a program is spread over the devices of a mesh, where XLA would choose worse if it were left to itself.

A training step has batches in parts, and perhaps the frozen base in parts. Two choices of XLA cost much there, as one
reads off programs that are compiled for a pod (docs/pods.md):

    the gradient of a trained vector   A dense matrix ΔW is built from it. XLA adds up the gradient of ΔW over the
                                       devices, which has as many entries as the layer, and derives that of the vector
                                       afterwards. Inside `by_rows` every device derives its own, and only those are
                                       added up.
    a kernel in parts                  XLA keeps it so, brings the activations of all devices together instead, and
                                       goes on with parts of the results. `whole` brings the kernel together where it is
                                       used, and again in the backward pass, so that it does not stay in memory.

Both do nothing outside of `spread`, which the step of a run sets while it is traced.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

Tree, Kernel = TypeVar("Tree"), TypeVar("Kernel")

ROWS = "data"
"""The axis of a run's mesh over which batches are spread."""


class _Spread(NamedTuple):
    """What is spread: the rows of batches, and the kernels."""

    rows: bool = False
    kernels: bool = False


_NOW: contextvars.ContextVar[_Spread] = contextvars.ContextVar("spread")
_NOTHING = _Spread()


@contextlib.contextmanager
def spread(*, rows: bool, kernels: bool) -> Iterator[None]:
    """A context for tracing a program; also a decorator of functions that are traced in it.

    Args:
      rows: whether the first axis of batches is spread over the axis `ROWS` of the current mesh.
      kernels: whether frozen kernels are spread over its axes.
    """
    token = _NOW.set(_Spread(rows, kernels))
    try:
        yield
    finally:
        _NOW.reset(token)


def kernels_are() -> bool:
    """Whether frozen kernels are spread over a mesh of several devices."""
    return _NOW.get(_NOTHING).kernels and _chosen_by_xla(*jax.sharding.get_abstract_mesh().axis_names)


def devices_of_rows() -> int:
    """The number of parts into which the first axis of batches is spread over devices."""
    spreading = _NOW.get(_NOTHING).rows and _chosen_by_xla(ROWS)
    return jax.sharding.get_abstract_mesh().shape[ROWS] if spreading else 1


def whole(kernel: Kernel, after: Array | None = None) -> Kernel:
    """An array, or a tree of arrays, brought together on every device if kernels are spread.

    Args:
      kernel: the arrays.
      after: an array before which they are not brought together; in a backward pass, XLA would else keep those of the
        forward pass.

    Returns:
      The arrays.
    """
    if not kernels_are():
        return kernel
    if after is not None:
        kernel = jax.lax.optimization_barrier((kernel, after))[0]
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), kernel)


def by_rows(function: Callable[[Tree, Array], Array]) -> Callable[[Tree, Array], Array]:
    """A function of parameters and a batch, which every device computes for its own rows if batches are spread.

    Args:
      function: of parameters, which every device has, and vectors; it treats each row of the first axis alike.

    Returns:
      The function. The gradient of its parameters is added up over the devices.
    """

    def chosen(params: Tree, x: Array) -> Array:
        mesh = jax.sharding.get_abstract_mesh()
        if not (_NOW.get(_NOTHING).rows and x.ndim > 1 and _chosen_by_xla(ROWS) and x.shape[0] % mesh.shape[ROWS] == 0):
            return function(params, x)

        def of_device(params: Tree, x: Array) -> Array:
            return function(jax.lax.pcast(params, ROWS, to="varying"), x)  # whose derivative adds up the parameters'

        own = PartitionSpec(ROWS)
        given = {"in_specs": (PartitionSpec(), own), "out_specs": own, "axis_names": {ROWS}}
        return jax.shard_map(of_device, mesh=mesh, **given)(params, x)

    return chosen


def _chosen_by_xla(*axes: str) -> bool:
    """Whether the current mesh has these axes with several devices, and XLA spreads values over all of them."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    devices = math.prod(mesh.shape.get(axis, 1) for axis in axes)
    return devices > 1 and all(kinds.get(axis) == AxisType.Auto for axis in axes)
