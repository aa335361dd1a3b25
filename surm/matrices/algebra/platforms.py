"""The kind of device that a computation is for, which decides how it is best written.

A program may be compiled for devices that this process does not have: for those of a mesh, or for a described topology.
`jax.default_backend()` alone would choose for the wrong one.
"""

import jax

_NAMES = {"cuda": "gpu", "rocm": "gpu"}


def platform_of(*arrays: object) -> str:
    """The platform on which a computation with these arrays will run, as far as can be told while it is traced.

    (`jax.lax.platform_dependent` would decide later still, when a program is lowered. It traces every alternative,
    keeps what each of them saves for a derivative, and leaves a branch in the programs for a CPU: too dear for a choice
    between whole products. So a program without a mesh, lowered for another platform than the default one, by
    `lowering_platforms=`, has the form of the default one.)

    Args:
      *arrays: that are computed with; concrete ones or tracers, others are passed over.

    Returns:
      `cpu`, `gpu`, `tpu`, ...: of the mesh that an array's type names, else of `jax.set_mesh`'s, else of
      `jax.default_device`, else `jax.default_backend()`.

    Examples:
      >>> import jax.numpy as jnp
      >>> device = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
      >>> mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
      >>> with jax.sharding.use_abstract_mesh(mesh):
      ...     print(jax.eval_shape(lambda x: print(platform_of(x)), jnp.ones(3)))
      tpu
      None
    """
    of_types = (jax.typeof(array).sharding.mesh for array in arrays if isinstance(array, jax.Array))
    for mesh in (*of_types, jax.sharding.get_abstract_mesh()):
        if mesh.abstract_device is not None:
            return _named(mesh.abstract_device.platform)
    device = jax.config.jax_default_device
    if device is not None:
        return _named(device if isinstance(device, str) else device.platform)
    return jax.default_backend()


def _named(platform: str) -> str:
    """As `jax.default_backend` calls it."""
    return _NAMES.get(platform, platform)
