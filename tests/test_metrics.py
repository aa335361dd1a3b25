import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from surm import metrics

LOGITS = jax.random.normal(jax.random.key(0), (9, 4))
LABELS = jnp.arange(9) % 4


def test_sums_agree_with_scikit_learn_and_ignore_padding():
    mask = jnp.arange(9) < 7
    got = metrics.means(metrics.classification_sums(LOGITS, LABELS, mask))
    probabilities = jax.nn.softmax(LOGITS)[:7]
    assert float(got["loss"]) == pytest.approx(sklearn.metrics.log_loss(LABELS[:7], probabilities), rel=1e-5)
    assert float(got["accuracy"]) == pytest.approx(sklearn.metrics.accuracy_score(LABELS[:7], LOGITS[:7].argmax(1)))


def test_padding_that_is_not_a_number_does_not_spread():
    logits = LOGITS.at[8].set(jnp.nan)
    mask = jnp.arange(9) < 8
    loss = lambda x: metrics.classification_sums(x, LABELS, mask)["loss"]  # noqa: E731
    assert np.isfinite(loss(logits))


def test_sums_of_parts_add_up_to_the_whole():
    whole = metrics.classification_sums(LOGITS, LABELS, jnp.ones(9, bool))
    parts = [metrics.classification_sums(LOGITS[s], LABELS[s], jnp.ones(len(LABELS[s]), bool))
             for s in (slice(0, 4), slice(4, 9))]  # fmt: skip
    for name, value in whole.items():
        assert float(parts[0][name] + parts[1][name]) == pytest.approx(float(value), rel=1e-6)


def test_label_smoothing_mixes_in_the_uniform_target():
    plain, half = (metrics.classification_sums(LOGITS, LABELS, jnp.ones(9, bool), e)["loss"] for e in (0.0, 0.5))
    uniform = -jax.nn.log_softmax(LOGITS).mean(1).sum()
    assert float(half) == pytest.approx(float(0.5 * plain + 0.5 * uniform), rel=1e-5)
