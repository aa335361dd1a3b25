"""A model inside `jax.shard_map`: every device its part of the batch, gradients as of the whole."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import surm
from surm.models import bert
from surm.models.normalization import layer_norm
from surm.ops.fusion import not_before
from surm.ops.matmul import dot_general, matmul
from surm.ops.spread import spread
from surm.peft import surgery
from surm.peft.multiply import paths

two_devices = pytest.mark.skipif(jax.device_count() != 2, reason="runs in the process of the last test")
WHOLE, SPREAD = PartitionSpec(), PartitionSpec("batch")


def _spread_gradient(loss, params, batch):
    """The gradient of the summed loss, each device with its part of the batch."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    of_all = lambda params, part: jax.lax.psum(loss(params, part), "batch")  # noqa: E731
    gradient = jax.shard_map(jax.grad(of_all), mesh=mesh, in_specs=(WHOLE, SPREAD), out_specs=WHOLE)
    return jax.jit(gradient)(params, batch)


def _assert_close(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


FUNCTIONS = {
    "matmul": lambda params, x: jnp.sin(matmul(x, params)).sum(),
    "layer_norm": lambda params, x: jnp.sin(layer_norm(x, params[:, 0], params[:, 1], 1e-6)).sum(),
}


@two_devices
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_with_a_derivative_of_their_own(name):
    x, params = jax.random.normal(jax.random.key(0), (4, 5, 3)), jax.random.normal(jax.random.key(1), (3, 2))
    _assert_close(_spread_gradient(FUNCTIONS[name], params, x), jax.jit(jax.grad(FUNCTIONS[name]))(params, x))


@two_devices
def test_a_kernel_that_is_spread_where_the_batch_is_not():
    x, kernel = jax.random.normal(jax.random.key(0), (4, 3)), jax.random.normal(jax.random.key(1), (3, 2))
    loss = lambda x, kernel: jnp.sin(matmul(x, kernel)).sum()  # noqa: E731
    of_all = lambda x, part: jax.lax.psum(loss(x, part), "batch")  # noqa: E731
    mesh, columns = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,)), PartitionSpec(None, "batch")
    gradients = jax.shard_map(
        jax.grad(of_all, argnums=(0, 1)), mesh=mesh, in_specs=(WHOLE, columns), out_specs=(WHOLE, columns)
    )
    _assert_close(jax.jit(gradients)(x, kernel), jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel))


@two_devices
def test_a_kernels_gradient_where_types_tell_how_arrays_are_spread():
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Explicit,))
    x, params = jax.random.normal(jax.random.key(0), (4, 5, 3)), jax.random.normal(jax.random.key(1), (3, 2))
    there = (jax.device_put(value, NamedSharding(mesh, spec)) for value, spec in ((params, WHOLE), (x, SPREAD)))
    gradient = jax.jit(jax.grad(FUNCTIONS["matmul"]))
    _assert_close(gradient(*there), gradient(params, x))


@two_devices
# relu: the gradient of erf, and so of GELU, fails under shard_map in jax 0.12
@pytest.mark.parametrize(
    "spec",
    [
        {},
        pytest.param({"family": "low_rank"}, marks=pytest.mark.slow),
        {"method": "adapter", "activation": "relu"},
        pytest.param({"method": "full"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_model_with_an_adapter(spec):
    config = bert.BertConfig(30, 16, 2, 2, 32, positions=16, pooling="mean", activation="relu")
    model = surm.attach(bert.Bert(config, 2, rngs=nnx.Rngs(0)), surm.PeftSpec(train="head", **spec), nnx.Rngs(1))
    graphdef, trainable, frozen = surgery.split(model)
    loss = lambda trainable, tokens: jnp.sum(surgery.join(graphdef, trainable, frozen)(tokens) ** 2)  # noqa: E731
    tokens = jax.random.randint(jax.random.key(2), (4, 8), 0, 30)
    _assert_close(_spread_gradient(loss, trainable, tokens), jax.jit(jax.grad(loss))(trainable, tokens))


@two_devices
@pytest.mark.parametrize(
    ("product", "family"),
    [
        (jax.lax.dot_general, "circulant"),
        (dot_general, "circulant"),
        pytest.param(dot_general, "toeplitz", marks=pytest.mark.slow),
        (dot_general, "low_displacement_rank"),
    ],
)
def test_an_update_of_its_own_on_every_device(product, family):
    x, mesh = jax.random.normal(jax.random.key(0), (2, 3, 12)), jax.make_mesh((2,), ("batch",), (AxisType.Auto,))
    for path in paths.available("update", family):
        spec = surm.PeftSpec(family=family, targets="query", path=path)
        model = surm.attach(
            nnx.Dict(query=nnx.Linear(12, 12, dot_general=product, rngs=nnx.Rngs(0))), spec, nnx.Rngs(1)
        )
        graphdef, trainable, frozen = surgery.split(model)
        noise = lambda v: jax.random.normal(jax.random.key(1), (2, *v.shape))  # noqa: E731
        stacked = jax.tree.map(noise, trainable)
        loss = lambda t, x, g=graphdef, f=frozen: jnp.sum(surgery.join(g, t, f).query(x) ** 2)  # noqa: E731

        def of_own(stacked, x, loss=loss):
            slopes = jax.grad(loss)(jax.tree.map(lambda v: v[0], stacked), x[0])
            return jax.tree.map(lambda v: v[None], slopes)

        found = jax.jit(jax.shard_map(of_own, mesh=mesh, in_specs=(SPREAD, SPREAD), out_specs=SPREAD))(stacked, x)
        _assert_close(found, jax.jit(jax.vmap(jax.grad(loss)))(stacked, x))


@two_devices
@pytest.mark.parametrize(("kind", "rows"), [(AxisType.Explicit, 12), (AxisType.Auto, 24)], ids=str)
def test_auto_goes_by_the_rows_of_a_device_where_the_type_tells_them(kind, rows, monkeypatch):
    asked = []
    monkeypatch.setattr(paths, "quickest", lambda *given, **fusible: asked.append(given[3]) or "branch")
    layer = surm.attach(nnx.Dict(query=nnx.Linear(5, 5, rngs=nnx.Rngs(0))), surm.PeftSpec(), nnx.Rngs(1)).query
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(kind,))
    x = jax.device_put(jnp.ones((8, 3, 5)), NamedSharding(mesh, SPREAD))
    jax.jit(lambda x: (layer._path(x), x)[1])(x)
    assert asked == [rows]


@two_devices
@pytest.mark.parametrize(("spreading", "rows"), [(True, 12), (False, 24)])
def test_auto_goes_by_the_rows_of_a_device_where_a_run_spreads_them(spreading, rows, monkeypatch):
    asked = []
    monkeypatch.setattr(paths, "quickest", lambda *given, **fusible: asked.append(given[3]) or "branch")
    layer = surm.attach(nnx.Dict(query=nnx.Linear(5, 5, rngs=nnx.Rngs(0))), surm.PeftSpec(), nnx.Rngs(1)).query
    with jax.set_mesh(jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))):
        jax.eval_shape(spread(rows=spreading, kernels=False)(lambda x: (layer._path(x), x)[1]), jnp.ones((8, 3, 5)))
    assert asked == [rows]


@two_devices
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
def test_what_comes_late_where_the_batch_is_spread(kind):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(kind,))
    x = jax.device_put(jnp.ones((4, 3)), NamedSharding(mesh, SPREAD))
    _assert_close(jax.jit(not_before)({"a": jnp.arange(3.0)}, x), {"a": jnp.arange(3.0)})


@pytest.mark.parametrize("chosen", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_on_two_virtual_devices(chosen):
    if jax.device_count() > 1:
        pytest.skip("several devices are here already")
    more = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    flags = {"XLA_FLAGS": more, "JAX_PLATFORMS": "cpu"}
    here = pathlib.Path(__file__)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", chosen, str(here)],
        env={**os.environ, **flags}, cwd=here.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert ("15 passed, 1 skipped" if chosen == "not slow" else "3 passed, 1 skipped") in run.stdout
