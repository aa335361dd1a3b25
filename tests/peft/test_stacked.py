"""Layers stacked by nnx.vmap and run by nnx.scan: one update for each, split as the kernels are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import surm
from surm import InputError, PeftSpec
from surm.peft import surgery
from surm.peft.layers import reseed_dropout
from surm.peft.schedules import rank_budget
from tests.peft.randomize import randomize

DEPTH = 3


class Block(nnx.Module):
    """A map up and one down, of several axes between."""

    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(4, 6, rngs=rngs)
        self.down = nnx.LinearGeneral((2, 3), 4, axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        return x + self.down(jnp.tanh(self.up(x)).reshape(*x.shape[:-1], 2, 3))


class Tower(nnx.Module):
    """Blocks in one stack, and a head."""

    def __init__(self, rngs: nnx.Rngs, axes=0):
        self.blocks = nnx.vmap(Block, in_axes=0, out_axes=0)(rngs.fork(split=DEPTH))
        self.head = nnx.Linear(4, 2, rngs=rngs)
        self.axes = axes

    def __call__(self, x):
        through = nnx.scan(lambda block, x: block(x), in_axes=(self.axes, nnx.Carry), out_axes=nnx.Carry)
        return self.head(through(self.blocks, x))


SPEC = PeftSpec(family="low_rank", options="rank=2", targets=r"blocks\..*", train="head", magnitude=True, scale=0.5)
X = jax.random.normal(jax.random.key(0), (5, 4))


def one_by_one(model: Tower, x: jax.Array) -> jax.Array:
    """The definition: every block with its ΔW in its kernels, one after the other."""
    wide = lambda a: a.reshape(a.shape[0], -1, a.shape[-1])  # noqa: E731
    blocks = model.blocks
    for i in range(DEPTH):
        weights = []
        for layer in (blocks.up, blocks.down):
            params = layer.delta.parameters
            rows = wide(layer.base.kernel[...])[i].T + 0.5 * params["b"][i] @ params["a"][i]
            norms = jax.lax.stop_gradient(jnp.linalg.norm(rows, axis=1))
            weights.append(rows * (layer.magnitude[i] / norms)[:, None])
        inner = jnp.tanh(x @ weights[0].T + blocks.up.base.bias[i])
        x = x + inner @ weights[1].T + blocks.down.base.bias[i]
    return model.head(x)


def test_each_layer_of_a_stack_has_an_update_of_its_own():
    plain = Tower(nnx.Rngs(0))
    fresh = surm.attach(plain, SPEC, nnx.Rngs(1))
    np.testing.assert_allclose(fresh(X), plain(X), rtol=1e-5, atol=1e-6)
    without = surm.attach(plain, dataclasses.replace(SPEC, magnitude=False), nnx.Rngs(1))
    np.testing.assert_array_equal(without(X), plain(X))
    assert surm.count_parameters(fresh).adapter == DEPTH * (2 * (2 * 10) + 6 + 4)
    assert [row.split()[:4] for row in surm.peft.table(fresh).splitlines()[:2]] == [
        ["blocks.down", "3", "of", "4×6"], ["blocks.up", "3", "of", "6×4"],
    ]  # fmt: skip
    first = fresh.blocks.up.delta.parameters["a"][...]
    assert np.abs(first[0] - first[1]).max() > 0.01
    graphdef, trainable, frozen = surgery.split(randomize(fresh))
    values, slopes = zip(*(
        jax.jit(jax.value_and_grad(lambda t, way=way: jnp.sum(way(surgery.join(graphdef, t, frozen)) ** 2)))(trainable)
        for way in (lambda model: model(X), lambda model: one_by_one(model, X))
    ), strict=True)  # fmt: skip
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)
    for path, slope in slopes[1].items():
        np.testing.assert_allclose(slopes[0][path], slope, rtol=2e-3, atol=1e-4 * np.abs(slope).max(), err_msg=path)


def test_a_stack_is_merged_saved_and_taken_apart(tmp_path):
    plain = Tower(nnx.Rngs(0))
    adapted = randomize(surm.attach(plain, SPEC, nnx.Rngs(1)))
    merged = surm.merge(adapted)
    np.testing.assert_allclose(merged(X), adapted(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(surm.unmerge(merged).blocks.down.kernel[...], plain.blocks.down.kernel[...])
    assert nnx.graphdef(surm.detach(merged)) == nnx.graphdef(plain)
    surm.save_adapter(tmp_path, adapted)
    np.testing.assert_array_equal(surm.load_adapter(tmp_path, plain)(X), adapted(X))
    with surm.disabled(adapted):
        adapted.head = plain.head
        np.testing.assert_array_equal(adapted(X), plain(X))


@pytest.mark.slow
def test_stacks_are_combined_served_and_started_warm():
    plain = Tower(nnx.Rngs(0))
    spec = PeftSpec(family="circulant", targets=r"blocks\..*", train="head")
    one, other = (randomize(surm.attach(plain, spec, nnx.Rngs(1)), seed=seed) for seed in (1, 2))
    both = surm.combine({"one": one, "other": other}, {"one": 0.5}, head="one")
    assert surm.peft.together.several.adapters(both) == {"one": 0.5, "other": 0.0}
    np.testing.assert_allclose(surm.activate(both, "one")(X), one(X), rtol=1e-4, atol=1e-5)
    half = surm.activate(both, {"one": 0.5, "other": 1.0})
    np.testing.assert_allclose(surm.merge(half)(X), half(X), rtol=1e-4, atol=1e-4)
    answers = surm.serve_batch(one, surm.stack_adapters([one, other]), X, [0, 1, 1, 0, 0])
    np.testing.assert_allclose(answers[:2], jnp.stack([one(X)[0], other(X)[1]]), rtol=1e-4, atol=1e-5)
    deltas = surm.difference(surm.merge(one), plain, spec.targets)
    started, errors = surm.warm_start(surm.attach(plain, spec, nnx.Rngs(3)), deltas)
    assert max(errors.values()) < 1e-5
    lora, errors = surm.to_low_rank(one, energy=1.0)
    np.testing.assert_allclose(lora(X), one(X), rtol=1e-3, atol=1e-4)


METHODS = {
    "adapter": {"method": "adapter", "family": "circulant"},
    "bottleneck": {"method": "bottleneck", "options": "size=2"},
    "hadamard": {"method": "hadamard_adapter", "options": {"norm": ""}},
    "vera": {"family": "vera", "options": "rank=2"},
    "fused": {"family": "circulant", "path": "fused", "targets": r"blocks\.up"},
}


@pytest.mark.parametrize("name", METHODS)
def test_other_positions_answer_in_a_stack_as_in_single_layers(name):
    plain = Tower(nnx.Rngs(0))
    adapted = randomize(surm.attach(plain, PeftSpec(**{"targets": r"blocks\..*"} | METHODS[name]), nnx.Rngs(1)))
    graphdef, state = nnx.split(adapted.blocks)
    x = X
    for i in range(DEPTH):
        x = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], state))(x)
    np.testing.assert_allclose(adapted(X), adapted.head(x), rtol=1e-5, atol=1e-5)
    assert np.abs(adapted(X) - plain(X)).max() > 1e-2


def test_every_layer_of_a_stack_drops_from_its_input_something_else():
    spec = PeftSpec(family="low_rank", options="rank=2", targets=r"blocks\.up", dropout=0.5)
    adapted = randomize(surm.attach(Tower(nnx.Rngs(0)), spec, nnx.Rngs(1)))
    one = adapted(X)
    assert np.abs(one - adapted(X)).max() > 1e-3
    reseed_dropout(adapted, jax.random.key(3))
    keys = jax.random.key_data(adapted.blocks.up.dropout.rngs.key[...])
    assert len(np.unique(keys, axis=0)) == DEPTH
    first = adapted(X)
    reseed_dropout(adapted, jax.random.key(3))
    np.testing.assert_array_equal(adapted(X), first)
    adapted.eval()
    np.testing.assert_array_equal(adapted(X), adapted(X))


def test_what_a_stack_cannot_have_is_one_line():
    plain = Tower(nnx.Rngs(0))
    with pytest.raises(InputError, match=r"blocks.down: lorta shares a, b, .* among layers, but layers stacked"):
        surm.attach(plain, PeftSpec(family="lorta", options="rank=2,heads=2", targets=r"blocks\..*"), nnx.Rngs(1))
    gated = surm.attach(plain, PeftSpec(family="adalora", options="rank=1", targets=r"blocks\..*"), nnx.Rngs(1))
    with pytest.raises(InputError, match="blocks.down holds 3 stacked layers, to which adalora gives no budget"):
        rank_budget.budgets_of(gated, 10)
    spec = PeftSpec(family="svft", targets=r"blocks\.up")
    other = surm.attach(Tower(nnx.Rngs(0), nnx.StateAxes({nnx.Param: 0, ...: None})), spec, nnx.Rngs(1))
    with pytest.raises(InputError, match="svft: the arrays .* have .* axes in front; expected all to be split alike"):
        other(X)
    turned = nnx.clone(plain)
    turned.blocks.up.kernel = nnx.Param(jnp.ones((4, 3, 6)))
    with pytest.raises(InputError, match=r"an nnx.Linear of \[4, 6\] whose kernel is float32\[4, 3, 6\]"):
        surm.attach(turned, PeftSpec(targets=r"blocks\.up"), nnx.Rngs(1))
