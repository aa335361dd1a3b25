"""Weighted losses against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from surm.tasks import metrics


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_weighted_mean_and_its_gradient_are_pytorchs(classes, smoothing):
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(40, classes)).astype(np.float32)
    labels, weights = rng.integers(0, classes, 40), rng.uniform(0.2, 5, classes).astype(np.float32)

    def mean(logits):
        each = metrics.losses(
            logits, jnp.asarray(labels), label_smoothing=smoothing, class_weights=jnp.asarray(weights)
        )
        return jnp.sum(each) / jnp.sum(jnp.asarray(weights)[labels])

    theirs = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights), label_smoothing=smoothing)
    expected = loss(theirs, torch.tensor(labels))
    expected.backward()
    found, gradient = jax.value_and_grad(mean)(jnp.asarray(logits))
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-7)
