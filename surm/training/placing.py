"""The frozen part of a run's model: its dtype, and its placement on the devices."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from surm.data.share import WHOLE, Share
from surm.machine import mesh as meshes
from surm.models import scanned
from surm.peft import surgery
from surm.peft.variables import FixedParam
from surm.training import stacking
from surm.training.prepared import Run


def narrowed(frozen: nnx.State, dtype: jax.typing.DTypeLike) -> nnx.State:
    """Casts the frozen matrices of a model to the dtype that the model computes in.

    Results are the same bit for bit, because every use of a matrix would cast it anyway. Vectors keep their dtype,
    because norms need it, and so do the fixed matrices of an adapter.

    Args:
      frozen: the frozen part, from `surgery.split`.
      dtype: the dtype of all computations of the model; another one would change results.

    Returns:
      The frozen part with the matrices cast.
    """

    def rounded(leaf: jax.Array | FixedParam) -> jax.Array | FixedParam:
        if isinstance(leaf, FixedParam) or leaf.ndim <= 1 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        if leaf.dtype.itemsize < jnp.dtype(dtype).itemsize:  # a base that is stored in fewer bits, or its scales
            return leaf
        return leaf.astype(dtype)

    return jax.tree.map(rounded, frozen, is_leaf=lambda node: isinstance(node, FixedParam))


def in_place(prepared: Run, model: nnx.Module) -> nnx.State:
    """The frozen part of a model as the programs of a run take it, before it is placed on the devices."""
    frozen = narrowed(surgery.split(model)[2], prepared.config.model.dtype)
    return scanned.stacked(stacking.runs(prepared.model), frozen)


def placed(prepared: Run, mesh: jax.sharding.Mesh) -> nnx.State:
    """The frozen part of a run's model on the devices, in the dtype that the model computes in.

    The arrays of blocks that are scanned are stacked, see `surm.models.scanned`.
    """
    frozen = in_place(prepared, prepared.model)
    return meshes.put_base(mesh, frozen, sharded=prepared.config.mesh.shard_base)


def originals(prepared: Run, frozen: nnx.State) -> nnx.State:
    """The frozen arrays of a run's model, where they take no memory on the devices beside those that programs use.

    They are kept, because the hash that is saved with the adapter at the end of the run is computed from them.

    Args:
      prepared: the prepared run.
      frozen: from `placed`.

    Returns:
      The arrays of the model, for the model.
    """
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(frozen)):
        frozen = scanned.parts_of(stacking.runs(prepared.model), frozen)
    return jax.tree.map(off_device, surgery.split(prepared.model)[2], frozen)


def off_device(original: jax.Array, used: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Moves an original array to the host's memory if a copy of it is used; a part of a stack there takes its place."""
    if isinstance(used, np.ndarray) and (used.shape, used.dtype) == (original.shape, original.dtype):
        return used
    if used is original or jax.dtypes.issubdtype(original.dtype, jax.dtypes.prng_key):
        return original
    return np.asarray(original)


def share_of(mesh: jax.sharding.Mesh) -> Share:
    """The part of every batch that this process reads: the rows that `mesh_of` places on its devices.

    For a described mesh, whose processes are not there, it is the whole batch.
    """
    if meshes.is_described(mesh):
        return WHOLE
    return Share(jax.process_index(), mesh.shape["data"] // meshes.own_rows(mesh))
