import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from surm import InputError
from surm.tasks import evaluate, metrics

LOGITS = jax.random.normal(jax.random.key(0), (9, 4))
LABELS = jnp.arange(9) % 4
ORACLES = {
    "accuracy": lambda p, t: sklearn.metrics.accuracy_score(t, p),
    "f1": lambda p, t: sklearn.metrics.f1_score(t, p, zero_division=0.0),
    "macro_f1": lambda p, t: sklearn.metrics.f1_score(t, p, average="macro", zero_division=0.0),
    "balanced_accuracy": lambda p, t: sklearn.metrics.balanced_accuracy_score(t, p),
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


@pytest.mark.parametrize("name", ["accuracy", "f1", "macro_f1", "balanced_accuracy", "matthews"])
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
    expected = {"accuracy": 0.5, "balanced_accuracy": 0.5, "macro_f1": 1 / 3}.get(name, 0.0)
    assert metrics.METRICS[name](constant, labels) == expected
    assert metrics.METRICS[name](labels, labels) == pytest.approx(1)
    assert metrics.METRICS["f1"](constant, constant) == 0.0


def test_every_metric_has_an_oracle():
    assert ORACLES.keys() == metrics.METRICS.keys()


def test_correlations_of_what_is_no_number_are_none():
    for name in ("pearson", "spearman"):
        assert np.isnan(metrics.METRICS[name](np.array([1.0, np.nan, 2.0]), np.arange(3.0)))


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.softmax(logits))


@pytest.mark.parametrize("seed", range(6))
def test_auc_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    classes = 2 + seed % 3
    labels, logits = rng.integers(0, classes, 150), rng.normal(size=(150, classes)).astype(np.float32)
    logits[np.arange(150), labels] += 0.7
    probabilities = softmax(logits).astype(np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    oracle = sklearn.metrics.roc_auc_score(
        labels, probabilities[:, 1] if classes == 2 else probabilities, multi_class="ovr", average="macro"
    )
    assert metrics.auc(softmax(logits), labels) == pytest.approx(oracle, abs=1e-12)
    assert metrics.auc(np.asarray(metrics.scores(jnp.asarray(logits))), labels) == pytest.approx(oracle, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_auc_counts_equal_scores_half_as_scikit_learn_does(classes):
    rng = np.random.default_rng(0)
    labels, found = rng.integers(0, classes, 80), rng.integers(0, 4, (80, classes)).astype(float)
    each = [sklearn.metrics.roc_auc_score(labels == label, found[:, label]) for label in range(classes)]
    expected = each[1] if classes == 2 else np.mean(each)
    assert metrics.auc(found, labels) == pytest.approx(expected, abs=1e-12)


def test_auc_tells_scores_apart_whose_probabilities_round_to_one():
    logits = np.array([[0, 20], [0, 30], [0, 40]], np.float32)
    labels = np.array([0, 1, 1])
    assert metrics.auc(softmax(logits), labels) == 0.5
    assert metrics.auc(np.asarray(metrics.scores(jnp.asarray(logits))), labels) == 1.0


def test_auc_leaves_out_absent_classes_and_is_none_of_what_is_no_number():
    labels, found = np.array([0, 1, 1, 0]), np.random.default_rng(0).normal(size=(4, 3))
    expected = np.mean([sklearn.metrics.roc_auc_score(labels == label, found[:, label]) for label in (0, 1)])
    assert metrics.auc(found, labels) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(metrics.auc(np.full((4, 2), np.nan), labels))
    assert np.isnan(metrics.auc(found[:, :2], np.ones(4, int)))


def test_the_confusion_matrix_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 90), rng.integers(0, 3, 90)
    expected = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(5))
    np.testing.assert_array_equal(metrics.confusion(predicted, labels, 5), expected)


def test_the_metrics_of_a_config_are_named_once_and_known():
    assert metrics.listed(" macro_f1 , auc") == ("macro_f1", "auc") and metrics.listed("") == ()
    with pytest.raises(InputError, match="names 'macro'; nearest: macro_f1"):
        metrics.listed("macro")
    with pytest.raises(InputError, match="names a metric twice"):
        metrics.listed("auc,auc")


@pytest.mark.parametrize("members", [None, 1, 3])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_pass_is_measured_whole_whatever_its_batches_and_members(members, classes):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(members or 1, 24, classes)).astype(np.float32), rng.integers(0, classes, 24)
    mask = np.arange(24) < 21
    batches = [
        {
            "loss": rows[..., 0],
            "predicted": rows.argmax(-1),
            "scores": rows,
            "label": labels[part],
            "mask": mask[part],
        }
        for part in (slice(0, 8), slice(8, 16), slice(16, 24))
        for rows in [logits[:, part] if members else logits[0, part]]
    ]
    found = evaluate.measured(batches, ("accuracy", "auc"), classes=classes, members=members)
    assert len(found) == (members or 1)
    for values, own in zip(found, logits[:, mask], strict=True):
        assert values["accuracy"] == metrics.accuracy(own.argmax(-1), labels[mask])
        assert values["auc"] == metrics.auc(own, labels[mask])
        assert values["loss"] == pytest.approx(own[:, 0].mean(), abs=1e-6)
        assert values["confusion"].sum() == 21


def _square(members: int | None) -> list[dict]:
    """What is measured of four answers to each of four examples."""
    rows = np.arange(16, dtype=np.float32).reshape(4, 4)
    batch = {"loss": rows, "predicted": rows.astype(int) % 4, "label": np.arange(4), "mask": np.ones(4, bool)}
    return evaluate.measured([batch], ("accuracy",), classes=4, members=members)


def test_losses_of_tokens_are_not_taken_for_those_of_members():
    with pytest.raises(ValueError, match=r"'loss' have the shape \(4, 4\), expected \(4,\), with members=None"):
        _square(None)
    with pytest.raises(ValueError, match="members=2"):
        _square(2)
    assert [values["loss"] for values in _square(4)] == [1.5, 5.5, 9.5, 13.5]
