"""Warm starts: updates near given matrices, with honest errors; what a fine-tune or a gradient gives for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import surm
from surm import InputError, PeftSpec
from surm.models import vit
from surm.peft import surgery
from surm.peft.together import several, warm_start
from tests.conftest import SMALL
from tests.peft.randomize import randomize

SQUARE_AND_NOT = r"blocks\.0\.(attention\.query|mlp\.up)"
EXACT = [
    ("circulant", ""),
    ("toeplitz", "factors=1,symmetric=False"),
    ("kronecker", "rank=4"),
    ("low_rank", "rank=3"),
    ("lora_xs", "rank=3"),
    ("vera", "rank=4"),
]


def attach(base: nnx.Module, **spec) -> nnx.Module:
    return surm.attach(base, PeftSpec(**{"targets": SQUARE_AND_NOT, **spec}), nnx.Rngs(1))


@pytest.fixture(scope="module")
def base() -> vit.ViT:
    return vit.ViT(SMALL, 5, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def deltas() -> dict[str, jax.Array]:
    """What no family has exactly."""
    query, up = (jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate([(12, 12), (24, 12)]))
    return {"blocks.0.attention.query": query, "blocks.0.mlp.up": up}


def updates(model: nnx.Module) -> dict[str, jax.Array]:
    layers = surgery.wrapped_layers(model)
    return {surgery.select.dotted(path): layer.scale * layer.delta.to_dense() for path, layer in layers}


@pytest.mark.parametrize(("family", "options"), EXACT)
def test_a_member_comes_back(base, family, options):
    fresh = attach(base, family=family, options=options, scale=0.25)
    wanted = updates(randomize(fresh))
    started, errors = warm_start.warm_start(fresh, wanted)
    assert errors.keys() == wanted.keys() and max(errors.values()) < 1e-4
    for path, delta in updates(started).items():
        np.testing.assert_allclose(delta, wanted[path], atol=1e-4 * float(jnp.linalg.norm(wanted[path])))
    assert all(not np.any(np.asarray(delta)) for delta in updates(fresh).values())


def test_the_error_is_the_relative_one_and_falls_with_the_rank(base, deltas):
    before = dict.fromkeys(deltas, 1.0)
    for rank in (1, 4, 12):
        started, errors = warm_start.warm_start(attach(base, family="low_rank", options={"rank": rank}), deltas)
        for path, delta in updates(started).items():
            off = np.linalg.norm(np.asarray(delta) - deltas[path]) / np.linalg.norm(deltas[path])
            np.testing.assert_allclose(errors[path], off, atol=1e-6)
            assert errors[path] < before[path] - 0.05
        before = errors
    assert max(errors.values()) < 1e-5


def test_every_layer_has_its_own_options(base, deltas):
    rules = {r".*0.*up": {"family": "low_rank", "options": {"rank": 12}, "scale": 0.1}}
    targets = r".*0\.(attention\.query|mlp\.up)"
    model = attach(base, family="circulant", options="hadamard=False", rules=rules, targets=targets)
    started, errors = warm_start.warm_start(surm.merge(model), {path: np.asarray(d) for path, d in deltas.items()})
    assert errors["blocks.0.mlp.up"] < 1e-5 < 0.5 < errors["blocks.0.attention.query"] < 1
    assert started.blocks[0].attention.query.delta.parameters.keys() == {"c"}
    assert not started.blocks[0].mlp.up.merged


def test_nothing_can_still_train(base, deltas):
    nothing = {path: 0 * delta for path, delta in deltas.items()}
    started, errors = warm_start.warm_start(randomize(attach(base, family="low_rank")), nothing)
    assert set(errors.values()) == {0.0} and not np.any(np.asarray(updates(started)["blocks.0.mlp.up"]))
    assert np.any(np.asarray(started.blocks[0].mlp.up.delta.parameters["a"][...]))


def test_layers_that_are_to_be_zero_start_from_different_values(base):
    fresh = attach(base, family="low_rank", targets=r".*\.query")
    nothing = {path: jnp.zeros((12, 12)) for path in updates(fresh)}
    one, again = (warm_start.warm_start(fresh, nothing)[0] for _ in range(2))
    first, second = (block.attention.query.delta.parameters["a"][...] for block in one.blocks[:2])
    assert not np.any(np.asarray(first) == second)
    np.testing.assert_array_equal(first, again.blocks[0].attention.query.delta.parameters["a"][...])


def test_a_magnitude_keeps_the_new_weight(base, deltas):
    with_it, without = (attach(base, family="low_rank", options="rank=12", magnitude=m) for m in (True, False))
    x = jax.random.normal(jax.random.key(2), (3, 12))
    one, other = (warm_start.warm_start(model, deltas)[0].blocks[0].mlp.up(x) for model in (with_it, without))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_full_fine_tune_is_reached_from_its_difference(base, images):
    full = randomize(surm.attach(base, PeftSpec(method="full", targets=r"blocks.*query\.kernel"), nnx.Rngs(0)))
    deltas = warm_start.difference(full, base, targets=r".*query")
    after, before = (model.blocks[1].attention.query.kernel[...] for model in (full, base))
    np.testing.assert_array_equal(deltas["blocks.1.attention.query"], (after - before).T)
    fresh = attach(base, family="low_rank", options="rank=12", targets=r".*query")
    started, errors = warm_start.warm_start(fresh, deltas)
    assert max(errors.values()) < 1e-5
    np.testing.assert_allclose(started(images), full(images), rtol=1e-3, atol=1e-4)


def test_a_difference_has_every_linear_layer_and_sees_updates(base, deltas):
    started, _ = warm_start.warm_start(attach(base, family="low_rank", options="rank=12"), deltas)
    found = warm_start.difference(started, base)
    assert found.keys() == surgery.select.linear_layers(base).keys()
    np.testing.assert_allclose(found["blocks.0.mlp.up"], deltas["blocks.0.mlp.up"], atol=1e-5)
    assert not np.any(np.asarray(found["head"]))


def test_models_of_other_layers_have_no_difference(base):
    with pytest.raises(InputError, match=r"'finetuned' does not fit the model: head has shape \(7, 12\), expected \(5"):
        warm_start.difference(vit.ViT(SMALL, 7, rngs=nnx.Rngs(0)), base)
    with pytest.raises(InputError, match=r"missing first"):
        warm_start.difference(nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), _named())
    with pytest.raises(InputError, match=r"pattern '.\*qery' matches no linear layer|pattern '.*qery', a regular"):
        warm_start.difference(base, base, targets=".*qery")


def _named() -> nnx.Module:
    model = nnx.Module()
    model.first = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    return model


def test_the_gradient_is_that_of_the_weights():
    x = jax.random.normal(jax.random.key(0), (2, 6))
    base = nnx.Sequential(*(nnx.Linear(6, 6, use_bias=False, rngs=nnx.Rngs(seed)) for seed in range(2)))
    fresh = attach(base, family="low_rank", options="rank=6", targets=".*")
    loss = lambda model: jnp.sum(model(x) ** 2)  # noqa: E731
    gradients = warm_start.kernel_gradients(surm.merge(fresh), loss)
    first, second = (layer.kernel[...] for layer in base.layers)
    h = x @ first
    expected = {"layers.1": 2 * (h @ second).T @ h, "layers.0": 2 * (h @ second @ second.T).T @ x}
    assert gradients.keys() == expected.keys()
    for path, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[path], rtol=1e-4, atol=1e-4)
    started, _ = warm_start.warm_start(fresh, {path: -1e-4 * g for path, g in gradients.items()})
    squares = sum(float(jnp.sum(g**2)) for g in gradients.values())
    np.testing.assert_allclose(loss(base) - loss(started), 1e-4 * squares, rtol=0.1)


def test_matrices_that_are_not_the_layers_are_refused(base, deltas):
    model, query = attach(base), "blocks.0.attention.query"
    for wrong, message in (
        ({query: deltas[query]}, r"'deltas' does not fit the model: missing blocks\.0\.mlp\.up"),
        ({**deltas, "blocks.0.mlp.down": deltas[query]}, r"unknown blocks\.0\.mlp\.down"),
        ({**deltas, "blocks.0.mlp.up": deltas["blocks.0.mlp.up"].T}, r"has shape \(12, 24\), expected \(24, 12\)"),
        ({**deltas, query: deltas[query].at[0, 0].set(jnp.nan)}, r"query: the given matrix has entries that are not f"),
    ):
        with pytest.raises(InputError, match=message):
            warm_start.warm_start(model, wrong)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"family": "lorta", "options": "heads=3"}, r"attention\.query: lorta shares a, b, c_head, c_kind, c_layer"),
        ({"family": "aurora", "options": "rank=5"}, r"aurora shares core, u, v among layers, expected a family where"),
        ({"scale": 0.0}, r"attention\.query: scale=0, so ΔW has no effect"),
        ({"method": "adapter", "targets": ()}, "the model has method='adapter'; expected an update"),
        ({"method": "head", "targets": (), "train": "head"}, "the model has method='head'; expected an update"),
    ],
)
def test_models_without_updates_of_their_own_are_refused(base, deltas, spec, message):
    with pytest.raises(InputError, match=message):
        warm_start.warm_start(attach(base, **spec), deltas)


def test_no_adapter_or_several_are_refused(base, deltas):
    with pytest.raises(InputError, match="the model has no adapter; expected an update"):
        warm_start.warm_start(base, deltas)
    with pytest.raises(InputError, match="the model has several adapters, 'a'; expected one"):
        warm_start.warm_start(several.combine({"a": attach(base)}), deltas)
    with pytest.raises(InputError, match="the model has no layer with an adapter"):
        warm_start.kernel_gradients(base, lambda model: jnp.zeros(()))


class Twice(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        self.second = self.first


def test_two_matrices_for_one_layer_are_refused():
    model = surm.attach(Twice(), PeftSpec(family="low_rank", targets="second", options="rank=1"), nnx.Rngs(0))
    one = jnp.ones((3, 3))
    with pytest.raises(
        InputError, match="deltas for first and second, which are one layer, differ; expected one of th"
    ):
        warm_start.warm_start(model, {"first": one, "second": 2 * one})
    _, errors = warm_start.warm_start(model, {"first": one, "second": np.ones((3, 3), np.float32)})
    assert errors.keys() == {"first"} and errors["first"] < 1e-5
    assert warm_start.warm_start(model, warm_start.difference(Twice(), Twice()))[1] == {"first": 0.0}


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_layer_with_two_names_answers_to_both(name):
    model = surm.attach(Twice(), PeftSpec(family="low_rank", targets="second", options="rank=1"), nnx.Rngs(0))
    started, errors = warm_start.warm_start(model, {name: jnp.ones((3, 3))})
    assert started.first is started.second and max(errors.values()) < 1e-5
    assert started.first.delta.parameters["a"][...].shape == (1, 3)


def test_a_loss_that_is_no_number_is_refused(base, images):
    model = surm.attach(base, PeftSpec(targets=r".*\.query"), nnx.Rngs(0))
    with pytest.raises(InputError, match=r"the loss has shape \(3, 5\), expected one number"):
        warm_start.kernel_gradients(model, lambda model: model(images))
