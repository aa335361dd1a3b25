"""A batch spread over devices gives what one device gives."""

import os
import pathlib
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from surm.matrices.algebra import dft, fourier

from .cases import DISTINCT, Case, assert_close
from .test_matrix_paths import CONVOLVING

several_devices = pytest.mark.skipif(jax.device_count() == 1, reason="runs in the process of the last test")


@several_devices
@pytest.mark.parametrize("axes", [AxisType.Explicit, AxisType.Auto], ids=str)
@pytest.mark.parametrize("name", DISTINCT)
def test_sharded_equals_unsharded_and_no_batch_is_gathered(name, axes):
    case = Case(name, (), 12, 6)
    params, x = case.member("float32"), case.random(8 * jax.device_count(), 3, 6, dtype="float32")
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(axes,))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    copied = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    ways = [{"convolve": fourier.convolve}, {"convolve": dft.convolve}] if name in CONVOLVING else [{}]
    for way in ways:
        matvec = jax.jit(partial(case.family.matvec, n_out=12, **way))
        y = matvec(copied, spread)
        assert len(y.sharding.device_set) == jax.device_count()
        assert_close(y, matvec(params, x), "float32")
        slopes = jax.jit(jax.grad(lambda p, x, matvec=matvec: jnp.sum(jnp.sin(matvec(p, x))), argnums=(0, 1)))
        compiled = slopes.lower(copied, spread).compile()
        assert not re.search("all-gather|all-to-all", compiled.as_text()), way
        alone = slopes.lower(params, x).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < alone.memory_analysis().temp_size_in_bytes / 2
        for found, expected in zip(
            jax.tree.leaves(compiled(copied, spread)), jax.tree.leaves(alone(params, x)), strict=True
        ):
            assert_close(found, np.asarray(expected), "float32")


def test_on_eight_virtual_devices():
    if jax.device_count() > 1:
        pytest.skip("several devices are here already")
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    here = pathlib.Path(__file__)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{here}::{several_test()}"]
    root = here.parents[2]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{2 * len(DISTINCT)} passed" in run.stdout


def several_test() -> str:
    return test_sharded_equals_unsharded_and_no_batch_is_gathered.__name__
