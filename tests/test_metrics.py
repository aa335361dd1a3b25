import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from surm import metrics

LOGITS = jax.random.normal(jax.random.key(0), (9, 4))
LABELS = jnp.arange(9) % 4
ORACLES = {
    "accuracy": lambda p, t: sklearn.metrics.accuracy_score(t, p),
    "f1": lambda p, t: sklearn.metrics.f1_score(t, p, zero_division=0.0),
    "matthews": lambda p, t: sklearn.metrics.matthews_corrcoef(t, p),
    "pearson": lambda p, t: scipy.stats.pearsonr(p, t).statistic,
    "spearman": lambda p, t: scipy.stats.spearmanr(p, t).statistic,
}


def test_cross_entropy_and_squared_error_are_those_of_scikit_learn():
    found = metrics.losses(LOGITS, LABELS).mean()
    assert float(found) == pytest.approx(sklearn.metrics.log_loss(LABELS, jax.nn.softmax(LOGITS)), rel=1e-5)
    numbers = jnp.arange(9.0)
    found = metrics.losses(LOGITS[:, :1], numbers, regression=True).mean()
    assert float(found) == pytest.approx(sklearn.metrics.mean_squared_error(numbers, LOGITS[:, 0]), rel=1e-5)


def test_losses_are_single_precision_whatever_the_model_computes_in():
    assert metrics.losses(LOGITS.astype(jnp.bfloat16), LABELS).dtype == jnp.float32
    assert metrics.predictions(LOGITS.astype(jnp.bfloat16), regression=True).dtype == jnp.float32


def test_label_smoothing_mixes_in_the_uniform_target():
    plain, half = (metrics.losses(LOGITS, LABELS, label_smoothing=e) for e in (0.0, 0.5))
    uniform = -jax.nn.log_softmax(LOGITS).mean(1)
    np.testing.assert_allclose(half, 0.5 * plain + 0.5 * uniform, rtol=1e-5)


def test_predictions_are_classes_or_numbers():
    np.testing.assert_array_equal(metrics.predictions(LOGITS), np.argmax(LOGITS, 1))
    np.testing.assert_array_equal(metrics.predictions(LOGITS[:, :1], regression=True), LOGITS[:, 0])


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews"])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_classes_are_those_of_scikit_learn(name, seed):
    rng = np.random.default_rng(seed)
    classes = 2 if name == "f1" else int(rng.integers(2, 6))
    labels = rng.integers(0, classes, 200)
    predicted = np.where(rng.random(200) < 0.3, labels, rng.integers(0, classes, 200))
    assert metrics.METRICS[name](predicted, labels) == pytest.approx(ORACLES[name](predicted, labels), abs=1e-12)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_correlations_are_those_of_scipy_ties_included(name, decimals):
    rng = np.random.default_rng(1)
    labels = np.round(rng.uniform(0, 5, 300), decimals).astype(np.float32)
    predicted = np.round(labels + rng.normal(size=300), decimals).astype(np.float32)
    assert metrics.METRICS[name](predicted, labels) == pytest.approx(ORACLES[name](predicted, labels), abs=1e-6)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_constant_answer_is_a_number(name):
    labels, constant = np.array([0, 1, 1, 0]), np.zeros(4, int)
    expected = {"accuracy": 0.5}.get(name, 0.0)
    assert metrics.METRICS[name](constant, labels) == expected
    assert metrics.METRICS[name](labels, labels) == pytest.approx(1)
    assert metrics.METRICS["f1"](constant, constant) == 0.0


def test_every_metric_has_an_oracle():
    assert ORACLES.keys() == metrics.METRICS.keys()


def test_correlations_of_what_is_no_number_are_none():
    for name in ("pearson", "spearman"):
        assert np.isnan(metrics.METRICS[name](np.array([1.0, np.nan, 2.0]), np.arange(3.0)))
