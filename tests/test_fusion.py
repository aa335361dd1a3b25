"""What is to be computed once is compiled once, and differs in nothing else."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from surm.fusion import computed_once
from surm.models import bert


def test_it_can_be_differentiated_and_mapped():
    function = lambda x, tree: {"y": jnp.sin(x) * tree["scale"]}  # noqa: E731
    once, x, tree = computed_once(function), jnp.arange(3.0), {"scale": jnp.float32(2)}
    np.testing.assert_allclose(once(x, tree)["y"], 2 * jnp.sin(x), rtol=1e-6)
    mapped = jax.vmap(jax.grad(lambda x: once(x, tree)["y"]))
    np.testing.assert_allclose(mapped(x), 2 * jnp.cos(x), rtol=1e-6)
    tangent = jax.jvp(lambda x: once(x, tree)["y"], (x,), (jnp.ones(3),))[1]
    np.testing.assert_allclose(tangent, 2 * jnp.cos(x), rtol=1e-6)


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
