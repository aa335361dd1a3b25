"""The devices of a run as a mesh, and the placement of its arrays on that mesh.

The mesh has two axes. Batches are spread over `data`. Every device has all trained arrays, and the frozen base too,
unless `config.mesh.shard_base` spreads its large arrays over both axes because the base does not fit on one device.
Such an array is gathered where it is used. JAX's compiler inserts the communication (the axes have type `Auto`).
"""

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from surm.errors import InputError

AXES = ("data", "model")
_SHARDED_FROM = 2**14  # entries; to bring a smaller array together costs more than it spares


def mesh_of(config: ml_collections.ConfigDict, described: Sequence[jax.Device] = ()) -> Mesh:
    """The mesh that a config asks for.

    Args:
      config: a run's configuration; one of `mesh.data` and `mesh.model` may be -1, which takes all remaining devices.
      described: devices that are not there, from `surm.machine.targets.devices_of`; by default the mesh has the devices
        that are there.

    Returns:
      The mesh over all devices of all processes.

    Raises:
      InputError: if the mesh does not use all devices, if its data axis does not divide the batch (or, with
        `mesh.shard_members`, the population, see `surm.training.population`), or if the model axis spans processes.
    """
    every = described or jax.devices()
    devices, wanted = len(every), {"data": config.mesh.data, "model": config.mesh.model}
    given = math.prod(size for size in wanted.values() if size != -1)
    if devices % given or (-1 not in wanted.values() and given != devices) or [*wanted.values()] == [-1, -1]:
        raise InputError(
            f"config.mesh.data={wanted['data']} and config.mesh.model={wanted['model']} do not take the {devices} "
            f"devices; expected the product {devices}, or one of them -1 and the other a divisor of {devices}"
        )
    shape = [devices // given if size == -1 else size for size in wanted.values()]
    parts = config.optim.accumulation_steps
    over = 1 if config.mesh.shard_members else shape[0]
    if config.optim.batch_size % (over * parts):
        of_parts = f" in {parts} parts (config.optim.accumulation_steps)" if parts > 1 else ""
        raise InputError(
            f"config.optim.batch_size={config.optim.batch_size}{of_parts} does not divide among config.mesh.data="
            f"{over} devices; expected a multiple of {over * parts}, or fewer devices in config.mesh.data and more in "
            "config.mesh.model"
        )
    if (of_process := devices // hosts_of(every)) % shape[1]:
        raise InputError(
            f"config.mesh.model={shape[1]} reaches over processes of {of_process} devices each; expected "
            "a divisor of that"
        )
    # Process by process, so that each has neighbouring rows, and they are its share of a batch; `jax.make_mesh` goes by
    # the wiring of a TPU instead, which matters little where gradients are small.
    in_order = sorted(every, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(in_order).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 2)


def hosts_of(devices: Sequence[jax.Device]) -> int:
    """The number of processes that devices belong to, of which every host has one."""
    return len({device.process_index for device in devices})


def is_described(mesh: Mesh) -> bool:
    """Whether a mesh has devices that are only described: programs can be compiled for them, but they hold no array."""
    return mesh.devices.flat[0] not in jax.devices()


def used(mesh: Mesh) -> contextlib.AbstractContextManager:
    """The context in which programs are for a mesh.

    In that of a described mesh, arrays that a computation makes at once are on the devices that are there.
    """
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if is_described(mesh) else jax.set_mesh(mesh)


def own_rows(mesh: Mesh) -> int:
    """The number of rows of the data axis that belong to this process's devices."""
    return jax.local_device_count() // mesh.shape["model"]


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that puts a whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding that spreads an array over the data axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def put_batch(mesh: Mesh, batch: Any, axis: int = 0) -> Any:
    """Joins every process's share of a batch into the whole batch, spread over the data axis.

    On a described mesh, which has no processes, the share is the whole batch, and only its shape is placed.
    """
    sharding = over_data(mesh, axis)
    if is_described(mesh):
        return put(sharding, batch)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def put(sharding: NamedSharding, tree: Any) -> Any:
    """Places arrays of which every process has a whole copy; shapes get the sharding that arrays would have."""
    return jax.tree.map(lambda value: _put(sharding, value), tree)


def put_everywhere(mesh: Mesh, tree: Any) -> Any:
    """Copies arrays of which every process has a whole copy to every device."""
    return put(replicated(mesh), tree)


def _put(sharding: NamedSharding, value: Any) -> jax.Array | jax.ShapeDtypeStruct:
    if not isinstance(value, jax.ShapeDtypeStruct) and is_described(sharding.mesh):
        value = jax.eval_shape(lambda value: value, value)
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(sharding, jax.random.key_data(value)), impl=jax.random.key_impl(value))
    value = np.asarray(value)  # JAX would send it around, to see whether it is the same everywhere
    return jax.make_array_from_callback(value.shape, sharding, lambda part: value[part])


def take(mesh: Mesh, tree: Any) -> Any:
    """Copies arrays from a mesh into every process's memory, whole; no later step overwrites the copies."""
    whole = tree if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)) else _gathered(mesh)(tree)
    return jax.tree.map(lambda value: np.array(value.addressable_data(0)), whole)


@functools.cache
def _gathered(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def put_base(mesh: Mesh, frozen: Any, *, sharded: bool) -> Any:
    """Places the frozen part of a model, either whole on every device or in parts over all of them.

    Args:
      mesh: from `mesh_of`.
      frozen: from `surgery.split`.
      sharded: whether large arrays are spread over both axes.

    Returns:
      The same arrays, placed.
    """

    def placed(value: jax.Array | jax.ShapeDtypeStruct) -> jax.Array | jax.ShapeDtypeStruct:
        is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
        spec = _parts(value.shape, mesh.size) if sharded and not is_key else PartitionSpec()
        return _put(NamedSharding(mesh, spec), value)

    return jax.tree.map(placed, frozen)


def _parts(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """Spreads the longest axis that divides among all devices over them; small arrays stay whole."""
    fitting = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if math.prod(shape) < _SHARDED_FROM or not fitting:
        return PartitionSpec()
    chosen = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*[AXES if axis == chosen else None for axis in range(len(shape))])
