"""Blocks computed again in the backward pass: the same numbers for less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from surm.models.bert import Bert, BertConfig
from surm.models.vit import ViT, ViTConfig


def _vit(remat: bool):
    model = ViT(ViTConfig(16, 4, 24, 6, 3, 96), 5, remat=remat, rngs=nnx.Rngs(0))
    return model, (jax.random.normal(jax.random.key(1), (8, 16, 16, 3)),)


def _bert(remat: bool):
    model = Bert(BertConfig(30, 24, 6, 3, 96, positions=32, dropout=0.2), 5, remat=remat, rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 32), 1, 30)
    return model, (tokens, jnp.zeros_like(tokens), jnp.arange(32) < jnp.arange(25, 33)[:, None])


UNDONE = jax.default_backend() == "cpu" and jax.__version_info__ < (0, 12)  # XLA's CPU compiler then undid it


def _gradient(model: nnx.Module, inputs: tuple):
    graphdef, params, others = nnx.split(model, nnx.Param, ...)
    loss = lambda params, others: jnp.sum(nnx.merge(graphdef, params, others, copy=True)(*inputs) ** 2)  # noqa: E731
    lowered = jax.jit(jax.grad(loss)).lower(params, others)
    compiled = lowered.compile()
    needed, barriers = compiled.memory_analysis().temp_size_in_bytes, lowered.as_text().count("optimization_barrier")
    return compiled(params, others), needed, barriers


@pytest.mark.parametrize("build", [_vit, _bert])
def test_the_gradient_is_the_same_for_less_memory(build):
    plain, needed, barriers = _gradient(*build(remat=False))
    again, needed_again, barriers_again = _gradient(*build(remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), again, plain)
    assert (barriers, barriers_again) == (0, 6)
    assert UNDONE or needed_again < 0.6 * needed
