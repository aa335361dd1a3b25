"""The platform that a computation is for, which decides on the best way to write it.

A program may be compiled for devices that this process does not have: those of a mesh, or of a described topology.
`jax.default_backend()` alone could name the wrong platform.
"""

import functools
import os
import pathlib
import platform
import re

import jax

_NAMES = {"cuda": "gpu", "rocm": "gpu"}


def platform_of(*arrays: object) -> str:
    """The platform on which a computation with these arrays will run, as far as tracing can tell.

    (`jax.lax.platform_dependent` would decide even later, when a program is lowered. But it traces every alternative,
    keeps the residuals of each for the derivative, and leaves a branch in programs for a CPU, which is too expensive
    for a choice between whole products. So a program without a mesh that is lowered for another platform, by
    `lowering_platforms=`, has the form for the default platform.)

    Args:
      *arrays: the arrays of the computation, concrete or traced; other arguments are ignored.

    Returns:
      `cpu`, `gpu`, `tpu`, ...: the platform of the mesh in an array's type, or else of `jax.set_mesh`, of
      `jax.default_device`, or of `jax.default_backend()`.

    Examples:
      >>> import jax.numpy as jnp
      >>> device = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
      >>> mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
      >>> with jax.sharding.use_abstract_mesh(mesh):
      ...     print(jax.eval_shape(lambda x: print(platform_of(x)), jnp.ones(3)))
      tpu
      None
    """
    device = _device_of(*arrays)
    if device is not None:
        return _named(device if isinstance(device, str) else device.platform)
    return jax.default_backend()


def kind_of(*arrays: object) -> str:
    """The kind of the devices on which a computation with these arrays will run, as far as tracing can tell.

    Args:
      *arrays: as for `platform_of`.

    Returns:
      The kind as JAX names it, such as `TPU v5 lite`. JAX calls every CPU `cpu`; for one it is the processor's name and
      the number of cores that this process may use.
    """
    device = _device_of(*arrays)
    if device is None or isinstance(device, str):
        device = jax.devices(device)[0]
    return f"{processor()}, {_cores()} cores" if device.platform == "cpu" else device.device_kind


def _cores() -> int | None:
    """The number of cores that this process may use, where the system tells it, or else of all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@functools.cache
def processor() -> str:
    """The name of this machine's processor, if the system reports it."""
    told = pathlib.Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", told.read_text(), re.MULTILINE) if told.is_file() else []
    return names[0] if names else platform.processor() or "processor unknown"


def _device_of(*arrays: object) -> jax.Device | jax.sharding.AbstractDevice | str | None:
    """The device, or the name of a platform, that arrays, mesh or configuration tell; None if they tell nothing."""
    of_types = (jax.typeof(array).sharding.mesh for array in arrays if isinstance(array, jax.Array))
    for mesh in (*of_types, jax.sharding.get_abstract_mesh()):
        if mesh.abstract_device is not None:
            return mesh.abstract_device
    return jax.config.jax_default_device


def _named(platform: str) -> str:
    """The name of a platform, as `jax.default_backend` gives it."""
    return _NAMES.get(platform, platform)
