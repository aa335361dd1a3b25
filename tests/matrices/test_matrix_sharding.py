"""A batch spread over devices gives what one device gives."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from surm.matrices import FAMILIES

from .cases import Case, assert_close

several_devices = pytest.mark.skipif(jax.device_count() == 1, reason="runs in the process of the last test")


@several_devices
@pytest.mark.parametrize("name", FAMILIES)
def test_sharded_equals_unsharded(name):
    case = Case(name, (), 12, 6)
    params, x = case.member("float32"), case.random(8 * jax.device_count(), 3, 6, dtype="float32")
    matvec = jax.jit(case.family.matvec, static_argnums=2)
    expected = matvec(params, x, 12)
    mesh = jax.make_mesh((jax.device_count(),), ("batch",))
    spread = NamedSharding(mesh, PartitionSpec("batch"))
    copied = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    y = matvec(copied, jax.device_put(x, spread), 12)
    assert len(y.sharding.device_set) == jax.device_count()
    assert_close(y, expected, "float32")
    slopes = jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.sin(case.family.matvec(p, x, 12)))))
    for key, slope in slopes(copied, jax.device_put(x, spread)).items():
        assert_close(slope, np.asarray(slopes(params, x)[key]), "float32")


def test_on_eight_virtual_devices():
    if jax.device_count() > 1:
        pytest.skip("several devices are here already")
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    here = pathlib.Path(__file__)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{here}::{several_test()}"]
    root = here.parents[2]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(FAMILIES)} passed" in run.stdout


def several_test() -> str:
    return test_sharded_equals_unsharded.__name__
