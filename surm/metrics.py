"""Losses of examples, on the device, and metrics of whole splits, exact and in double precision, on the host."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Real

Labels = Int[Array, " batch"] | Float[Array, " batch"]


def losses(
    outputs: Float[Array, "batch outputs"],
    labels: Labels,
    *,
    regression: bool = False,
    label_smoothing: float | Float[Array, ""] = 0.0,
) -> Float[Array, " batch"]:
    """The loss of every example.

    Args:
      outputs: of the model, one a class, or one altogether for regression.
      labels: the true classes, or the numbers to be met.
      regression: whether the loss is the squared error, rather than the cross-entropy in nats.
      label_smoothing: ε of the target (1 − ε)·one-hot + ε/classes; not of regression.

    Returns:
      One number an example, float32.
    """
    outputs = outputs.astype(jnp.float32)
    if regression:
        return jnp.square(outputs[:, 0] - labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, outputs.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(outputs, targets)


def predictions(outputs: Float[Array, "batch outputs"], *, regression: bool = False) -> Labels:
    """What the model answers: the likeliest class, or the number."""
    return outputs[:, 0].astype(jnp.float32) if regression else outputs.argmax(axis=-1)


def accuracy(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """The share of examples whose class is right."""
    return float(np.mean(predicted == labels))


def f1(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """F1 of class 1, 2·tp / (2·tp + fp + fn); 0 where class 1 neither occurs nor is predicted."""
    hits = np.sum((predicted == 1) & (labels == 1))
    return float(2 * hits / max(np.sum(predicted == 1) + np.sum(labels == 1), 1))


def matthews(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """Matthews' correlation coefficient of classes, for any number of them; 0 where one side is constant.

    With s examples, c of them right, p_k predicted and t_k true of class k:
    (c·s − Σ p_k t_k) / √((s² − Σ p_k²)(s² − Σ t_k²)).

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.
    """
    classes = 1 + max(predicted.max(), labels.max())
    # Python's integers: squares of counts overflow nothing.
    p, t = (list(map(int, np.bincount(values, minlength=classes))) for values in (predicted, labels))
    s, c = len(labels), int(np.sum(predicted == labels))
    p_square, t_square = s * s - sum(k * k for k in p), s * s - sum(k * k for k in t)
    covariance = c * s - sum(a * b for a, b in zip(p, t, strict=True))
    return covariance / (p_square**0.5 * t_square**0.5) if p_square and t_square else 0.0


def pearson(predicted: Real[np.ndarray, " n"], labels: Real[np.ndarray, " n"]) -> float:
    """Pearson's correlation coefficient; 0 where one side is constant."""
    p, t = (values - np.mean(values, dtype=np.float64) for values in (predicted, labels))
    norm = np.linalg.norm(p) * np.linalg.norm(t)
    return float(p @ t / norm) if norm else 0.0


def spearman(predicted: Real[np.ndarray, " n"], labels: Real[np.ndarray, " n"]) -> float:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing the mean of theirs; NaN if a value is."""
    if np.isnan(predicted).any() or np.isnan(labels).any():
        return float("nan")
    return pearson(_ranks(predicted), _ranks(labels))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
"""Every metric by name: a function of predictions and labels; of each, more is better."""


def _ranks(values: Real[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
