"""The frozen part of a run's model: in the type that it computes in, on the devices, out of the way."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from surm.data.share import Share
from surm.machine import mesh as meshes
from surm.peft import surgery
from surm.peft.variables import FixedParam
from surm.training.prepared import Run


def narrowed(frozen: nnx.State, dtype: jax.typing.DTypeLike) -> nnx.State:
    """The frozen part of a model with its matrices in the dtype that the model computes in.

    Every use would round them so anyway: results are the same, bit for bit. Vectors stay as they are, norms need them;
    so do a method's own fixed matrices.

    Args:
      frozen: from `surgery.split`.
      dtype: of all of the model's computations; any other would change results.

    Returns:
      The same, narrower.
    """

    def rounded(leaf: jax.Array | FixedParam) -> jax.Array | FixedParam:
        if isinstance(leaf, FixedParam) or leaf.ndim <= 1 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.astype(dtype)

    return jax.tree.map(rounded, frozen, is_leaf=lambda node: isinstance(node, FixedParam))


def placed(prepared: Run, mesh: jax.sharding.Mesh) -> nnx.State:
    """The frozen part of a run's model on its devices, in the type that it computes in."""
    frozen = narrowed(surgery.split(prepared.model)[2], prepared.config.model.dtype)
    return meshes.put_base(mesh, frozen, sharded=prepared.config.mesh.shard_base)


def off_device(original: jax.Array, used: jax.Array) -> jax.Array | np.ndarray:
    """What has a copy on the devices waits in the host's memory for the end of the run: its hash is of the original."""
    if used is original or jax.dtypes.issubdtype(original.dtype, jax.dtypes.prng_key):
        return original
    return np.asarray(original)


def share_of(mesh: jax.sharding.Mesh) -> Share:
    """The part of every batch that this process reads: the rows of its devices, as `mesh_of` places them."""
    return Share(jax.process_index(), mesh.shape["data"] // meshes.own_rows(mesh))
