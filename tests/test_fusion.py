"""What is to be computed once is compiled once, and differs in nothing else."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from surm.models import bert
from surm.ops.fusion import computed_once, not_before
from tests.described import described


def test_it_can_be_differentiated_and_mapped():
    function = lambda x, tree: {"y": jnp.sin(x) * tree["scale"]}  # noqa: E731
    once, x, tree = computed_once(function), jnp.arange(3.0), {"scale": jnp.float32(2)}
    np.testing.assert_allclose(once(x, tree)["y"], 2 * jnp.sin(x), rtol=1e-6)
    mapped = jax.vmap(jax.grad(lambda x: once(x, tree)["y"]))
    np.testing.assert_allclose(mapped(x), 2 * jnp.cos(x), rtol=1e-6)
    tangent = jax.jvp(lambda x: once(x, tree)["y"], (x,), (jnp.ones(3),))[1]
    np.testing.assert_allclose(tangent, 2 * jnp.cos(x), rtol=1e-6)


def test_what_comes_late_is_bit_for_bit_what_it_was():
    values = {"a": jax.random.normal(jax.random.key(0), (5,)), "b": jnp.array([1e-30, 3e38, -2.0])}
    for other in (jnp.full((2, 3), -7.0), jnp.ones((0, 3)), jnp.array(1e38), jnp.array([5.0, jnp.nan])):
        jax.tree.map(np.testing.assert_array_equal, jax.jit(not_before)(values, other), values)
    late = jax.jit(not_before)(values, jnp.array([jnp.inf, 1.0]))
    assert all(np.isnan(value).all() for value in late.values())
    slopes = jax.grad(lambda other: not_before(values, other)["a"].sum())(jnp.ones((2, 3)))
    np.testing.assert_array_equal(slopes, 0)


def test_elsewhere_a_barrier_keeps_values_late_and_no_entry_is_sent_to_other_devices():
    found = {}
    for platform in ("cpu", "tpu"):
        with described(platform):
            jaxpr = jax.make_jaxpr(not_before)({"a": np.ones(3)}, np.ones((2, 3)))
        found[platform] = {equation.primitive.name for equation in jaxpr.eqns}
    assert found["tpu"] == {"optimization_barrier"} and "mul" in found["cpu"]


def test_no_residual_gradient_is_computed_from_all_the_blocks_above():
    config = bert.preset("bert_tiny", depth=4, vocabulary=50)
    graphdef, state = nnx.split(bert.Bert(config, 2, rngs=nnx.Rngs(0)))

    def loss(state, x):
        for block in nnx.merge(graphdef, state).blocks:
            x = block(x)
        return jnp.sum(x**2)

    text = jax.jit(jax.grad(loss, argnums=1)).lower(state, jnp.ones((4, 64, 128))).compile().as_text()
    operands = [found.count("%") for found in re.findall(r" fusion\(([^)]*)\), kind=kLoop", text)]
    assert operands and max(operands) < 12  # else 66, and 200 in a model of twelve blocks
