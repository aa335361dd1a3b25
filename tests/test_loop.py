"""The frozen part of a run that computes in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import surm
from surm.models.bert import Bert, BertConfig
from surm.models.vit import ViT, ViTConfig
from surm.peft import surgery
from surm.training.placing import narrowed
from tests.peft.randomize import randomize

NARROW = jnp.bfloat16
MODELS = {
    "vit": (ViT, ViTConfig(16, 8, 12, 2, 3, 24), jax.random.normal(jax.random.key(0), (2, 16, 16, 3))),
    "bert": (Bert, BertConfig(30, 12, 2, 3, 24, positions=10), jnp.arange(16).reshape(2, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_frozen_matrices_kept_narrow_give_the_same_bits(name):
    build, config, inputs = MODELS[name]
    model = randomize(surm.attach(build(config, 5, dtype=NARROW, rngs=nnx.Rngs(0)), surm.PeftSpec(), nnx.Rngs(1)))
    graphdef, trainable, frozen = surgery.split(model)
    narrow = narrowed(frozen, NARROW)
    matrices = [leaf for leaf in jax.tree.leaves(narrow) if leaf.ndim > 1]
    vectors = [leaf for leaf in jax.tree.leaves(narrow) if leaf.ndim == 1]
    assert {leaf.dtype for leaf in matrices} == {jnp.dtype(NARROW)}
    assert {leaf.dtype for leaf in vectors} == {jnp.dtype(jnp.float32)}

    @jax.jit
    def gradient(frozen):
        loss = lambda trainable: jnp.sum(surgery.join(graphdef, trainable, frozen)(inputs).astype(jnp.float32) ** 2)  # noqa: E731
        return jax.value_and_grad(loss)(trainable)

    jax.tree.map(np.testing.assert_array_equal, gradient(narrow), gradient(frozen))


def test_in_single_precision_nothing_is_copied():
    frozen = surgery.split(surm.attach(ViT(MODELS["vit"][1], 5, rngs=nnx.Rngs(0)), surm.PeftSpec(), nnx.Rngs(1)))[2]
    same = jax.tree.map(lambda a, b: a is b, jax.tree.leaves(narrowed(frozen, "float32")), jax.tree.leaves(frozen))
    assert all(same)
