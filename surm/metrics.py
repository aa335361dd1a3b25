"""Metrics of classification, as sums over examples, so that they add up over padded batches exactly."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def classification_sums(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    mask: Bool[Array, " batch"],
    label_smoothing: float = 0.0,
) -> dict[str, Float[Array, ""]]:
    """Sums over the real examples of a batch.

    Args:
      logits: one a class.
      labels: the true classes.
      mask: False for padding.
      label_smoothing: ε of the target (1 − ε)·one-hot + ε/classes.

    Returns:
      `loss` (cross-entropy in nats) and `accuracy` (number correct), both summed, and `examples`.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    loss = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    correct = logits.argmax(axis=-1) == labels
    return {
        "loss": jnp.sum(loss, where=mask),
        "accuracy": jnp.sum(correct, where=mask, dtype=jnp.float32),
        "examples": jnp.sum(mask, dtype=jnp.float32),
    }


def means(sums: dict) -> dict:
    """Divides every sum by the number of examples."""
    return {name: value / sums["examples"] for name, value in sums.items() if name != "examples"}
