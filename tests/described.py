"""Devices that nobody here has: programs are traced for them, and computed by the processor."""

import contextlib

import jax
from jax.sharding import AbstractDevice, AbstractMesh

KINDS = {"tpu": "TPU v5 lite", "gpu": "NVIDIA H200"}


def described(platform: str) -> contextlib.AbstractContextManager:
    """A context in which programs are for devices of a platform."""
    device = AbstractDevice(KINDS.get(platform, platform), 1, platform)
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=device))
