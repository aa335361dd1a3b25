import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import surm
from surm import PeftSpec, matrices
from surm.config import default
from surm.training import optim


@pytest.fixture
def options():
    return default().optim.unlock()


def first_step(options, groups: dict[str, str]) -> optax.GradientTransformation:
    return optim.optimizer(options.name, optim.hyperparameters(options, PeftSpec(), 10).at(0), groups)


RATES = {  # of an update, of an adapter; None for a family that has no adapter
    "circulant": (1e-3, 8e-3),
    "skew_circulant": (1e-3, 8e-3),
    "toeplitz": (3e-3, 2e-3),
    "kronecker": (1e-2, 8e-3),
    "low_displacement_rank": (3e-3, 2e-3),
    "low_rank": (1e-2 / math.sqrt(8), 8e-3),
    "block_circulant": (1e-3, 8e-3),
    "c3a": (2e-1, 2e-1),
    "monarch": (1e-2, 1e-2),
    "diagonal_circulant": (1e-2, 1e-2),
    "melora": (1e-2, 1e-2),
    "lora_xs": (1e-2, None),
    "vera": (1e-2, None),
    "adalora": (1e-2, 1e-2),
    "dora_dynamic": (1e-2, 1e-2),
    "lora2": (1e-2, 1e-2),
    "lorta": (1e-2, 1e-2),
    "aurora": (3e-3, 3e-3),
    "svft": (1e-2, None),
}
OF_RANK_4 = RATES | {"low_rank": (1e-2 / 2, 8e-3)}


@pytest.mark.parametrize("family", matrices.FAMILIES)
def test_the_default_rate_of_every_family_in_both_positions(options, family):
    tables = [(RATES, {})] + ([(OF_RANK_4, {"rank": 4})] if "rank" in matrices.options(family) else [])
    for table, chosen in tables:
        for method, expected in zip(("update", "adapter"), table[family], strict=True):
            if expected is not None:
                assert optim.learning_rate(options, PeftSpec(method=method, family=family, options=chosen)) == expected


def test_the_default_rate_of_every_method_without_a_family(options):
    expected = {"bottleneck": 1e-3, "full": 5e-5, "bitfit": 2e-3, "hadamard_adapter": 2e-3, "loko": 1e-3, "head": 5e-3}
    assert {method: optim.learning_rate(options, PeftSpec(method=method)) for method in expected} == expected


def test_a_rate_that_the_config_gives_is_taken(options):
    options.learning_rate = 0.125
    for method in ("update", "adapter", "full"):
        assert optim.learning_rate(options, PeftSpec(method=method, family="toeplitz")) == 0.125


@pytest.mark.parametrize(("name", "end"), [("cosine", 0.0), ("linear", 0.0), ("constant", 2.0)])
def test_schedules_rise_from_zero_to_the_peak_and_end_where_they_should(options, name, end):
    options.schedule, options.warmup_fraction = name, 0.1
    rate = optim.schedule(options, 2.0, 100)
    assert float(rate(0)) == 0.0
    assert float(rate(5)) == pytest.approx(1.0)
    assert float(rate(10)) == pytest.approx(2.0)
    assert float(rate(100)) == pytest.approx(end, abs=1e-6)
    options.warmup_fraction = 0.0
    assert float(optim.schedule(options, 2.0, 100)(0)) == pytest.approx(2.0)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_adapter_and_head_have_their_own_rates(options, name):
    options.name, options.schedule, options.warmup_fraction = name, "constant", 0.0
    options.learning_rate, options.head_learning_rate, options.momentum = 0.5, 0.0, 0.0
    arrays = {"layer.a": jnp.ones(3), "head.kernel": jnp.ones(3)}
    tx = first_step(options, {"layer.a": "adapter", "head.kernel": "head"})
    updates, _ = tx.update({name: jnp.ones(3) for name in arrays}, tx.init(arrays), arrays)
    np.testing.assert_allclose(updates["layer.a"], -0.5, rtol=1e-5)
    np.testing.assert_array_equal(updates["head.kernel"], 0.0)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_decay_spares_biases_shifts_and_scales(options, name):
    options.name, options.schedule, options.warmup_fraction = name, "constant", 0.0
    options.learning_rate = options.head_learning_rate = 0.1
    options.weight_decay, options.head_weight_decay = 0.5, 0.25
    kinds = ("kernel", "bias", "scale", "shift")
    arrays = {f"{where}.{kind}": jnp.ones(2) for where in ("x", "head") for kind in kinds}
    groups = {path: "head" if path.startswith("head") else "adapter" for path in arrays}
    tx = first_step(options, groups)
    updates, _ = tx.update({path: jnp.zeros(2) for path in arrays}, tx.init(arrays), arrays)
    for path, update in updates.items():
        decay = {"x.kernel": 0.5, "head.kernel": 0.25}.get(path, 0.0)
        np.testing.assert_allclose(update, -0.1 * decay, atol=1e-7)


def test_clipping_bounds_the_norm_over_all_groups_together(options):
    options.name, options.schedule, options.warmup_fraction = "sgd", "constant", 0.0
    options.learning_rate = options.head_learning_rate = 1.0
    options.momentum, options.gradient_clip = 0.0, 1.0
    arrays = {"x.kernel": jnp.zeros(1), "head.kernel": jnp.zeros(1)}
    tx = first_step(options, {"x.kernel": "adapter", "head.kernel": "head"})
    updates, _ = tx.update({"x.kernel": jnp.array([3.0]), "head.kernel": jnp.array([4.0])}, tx.init(arrays), arrays)
    np.testing.assert_allclose([updates["x.kernel"][0], updates["head.kernel"][0]], [-0.6, -0.8], rtol=1e-6)


def test_the_rates_in_a_line(options, small_vit):
    def line(train="head", **spec) -> str:
        return optim.summary(options, surm.attach(small_vit, PeftSpec(train=train, **spec), nnx.Rngs(0)))

    assert line(train=()) == "learning rate: update 0.001 (the default)"
    assert line() == "learning rate: update 0.001 (the default), head 0.005"
    assert line(rules=".*value => family=vera", targets=".*value") == line(family="vera")
    both = line(targets=".*query", rules=".*value => family=vera")
    assert both == "learning rate: update 0.001 and 0.01 (defaults), head 0.005"
    assert line(method="full") == "learning rate: full 5e-05 (the default), head 0.005"
    options.learning_rate = 0.25
    assert line() == "learning rate: update 0.25 (by the config), head 0.005"
    assert line(method="head") == "learning rate: head 0.005"


def test_the_numbers_of_every_step_are_those_of_the_schedule(options):
    options.learning_rate, options.warmup_fraction = 0.5, 0.2
    numbers = optim.hyperparameters(options, PeftSpec(), 50)
    for name, peak in (("adapter_rate", 0.5), ("head_rate", options.head_learning_rate)):
        rate = optim.schedule(options, peak, 50)
        np.testing.assert_allclose(getattr(numbers, name), [float(rate(step)) for step in range(50)], rtol=1e-6)
        assert getattr(numbers.at(jnp.int32(7)), name) == getattr(numbers, name)[7]
    assert numbers.gradient_clip == np.inf


def test_without_clipping_huge_gradients_stay_as_they_are(options):
    options.name, options.schedule, options.warmup_fraction = "sgd", "constant", 0.0
    options.learning_rate, options.momentum = 1.0, 0.0
    tx, arrays = first_step(options, {"x.kernel": "adapter"}), {"x.kernel": jnp.zeros(2)}
    updates, _ = tx.update({"x.kernel": jnp.array([3e15, 0.0])}, tx.init(arrays), arrays)
    np.testing.assert_array_equal(updates["x.kernel"], jnp.array([-3e15, 0.0]))


def test_the_average_is_a_mean_at_first_and_forgets_later():
    values = np.random.default_rng(0).normal(size=40)
    average = jnp.float32(99.0)
    for step, value in enumerate(values):
        average = optim.average(average, jnp.float32(value), 0.9, step)
        if step < 10:
            np.testing.assert_allclose(average, values[: step + 1].mean(), rtol=1e-5, atol=1e-6)
    expected = values[:10].mean()
    for value in values[10:]:
        expected = 0.9 * expected + 0.1 * value
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)
