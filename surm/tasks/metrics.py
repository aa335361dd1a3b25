"""Losses per example, computed on the device, and metrics of whole splits, computed on the host in double precision."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Real

from surm.errors import InputError, nearest

Labels = Int[Array, " batch"] | Float[Array, " batch"]


def losses(
    outputs: Float[Array, "batch outputs"],
    labels: Labels,
    *,
    regression: bool = False,
    label_smoothing: float | Float[Array, ""] = 0.0,
    class_weights: Float[Array, " outputs"] | None = None,
) -> Float[Array, " batch"]:
    """The loss of every example.

    Args:
      outputs: the logits of a model, one per class, or a single column for regression.
      labels: the true classes, or the true numbers.
      regression: whether the loss is the squared error rather than the cross-entropy in nats.
      label_smoothing: ε in the target (1 − ε)·one-hot + ε/classes; ignored for regression.
      class_weights: weights w of the classes, which multiply the target: the loss is −Σ_c w_c target_c log p_c. If
        ε = 0, that is the plain loss times the weight of the example's class. The sum of the losses divided by
        Σ w_label is the mean that PyTorch's `CrossEntropyLoss` computes. Ignored for regression.

    Returns:
      One float32 per example.
    """
    outputs = outputs.astype(jnp.float32)
    if regression:
        return jnp.square(outputs[:, 0] - labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, outputs.shape[-1]), label_smoothing)
    if class_weights is not None:
        targets = targets * class_weights
    return optax.softmax_cross_entropy(outputs, targets)


def predictions(outputs: Float[Array, "batch outputs"], *, regression: bool = False) -> Labels:
    """The class with the largest logit; for regression, the output itself."""
    return outputs[:, 0].astype(jnp.float32) if regression else outputs.argmax(axis=-1)


def scores(outputs: Float[Array, "batch outputs"]) -> Float[Array, "batch outputs"]:
    """Scores that rank examples as the class probabilities do, but do not round to 1 when a model is very certain.

    With two classes they are the log-odds of each class, with more the log-probabilities; float32.
    """
    outputs = outputs.astype(jnp.float32)
    return outputs - outputs[:, ::-1] if outputs.shape[-1] == 2 else jax.nn.log_softmax(outputs)


def accuracy(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """The fraction of examples whose class is predicted correctly."""
    return float(np.mean(predicted == labels))


def f1(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """F1 of class 1, 2·tp / (2·tp + fp + fn); 0 where class 1 neither occurs nor is predicted."""
    hits = np.sum((predicted == 1) & (labels == 1))
    return float(2 * hits / max(np.sum(predicted == 1) + np.sum(labels == 1), 1))


def matthews(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """Matthews' correlation coefficient for any number of classes; 0 if predictions or labels are constant.

    With s examples, c of them correct, and p_k predictions and t_k labels of class k, it is
    (c·s − Σ p_k t_k) / √((s² − Σ p_k²)(s² − Σ t_k²)).

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.
    """
    classes = 1 + max(predicted.max(), labels.max())
    # Python's integers do not overflow when counts are squared.
    p, t = (list(map(int, np.bincount(values, minlength=classes))) for values in (predicted, labels))
    s, c = len(labels), int(np.sum(predicted == labels))
    p_square, t_square = s * s - sum(k * k for k in p), s * s - sum(k * k for k in t)
    covariance = c * s - sum(a * b for a, b in zip(p, t, strict=True))
    return covariance / (p_square**0.5 * t_square**0.5) if p_square and t_square else 0.0


def pearson(predicted: Real[np.ndarray, " n"], labels: Real[np.ndarray, " n"]) -> float:
    """Pearson's correlation coefficient; 0 if predictions or labels are constant."""
    p, t = (values - np.mean(values, dtype=np.float64) for values in (predicted, labels))
    norm = np.linalg.norm(p) * np.linalg.norm(t)
    return float(p @ t / norm) if norm else 0.0


def spearman(predicted: Real[np.ndarray, " n"], labels: Real[np.ndarray, " n"]) -> float:
    """Spearman's correlation, which is Pearson's of the ranks; ties have their mean rank. NaN if any value is NaN."""
    if np.isnan(predicted).any() or np.isnan(labels).any():
        return float("nan")
    return pearson(_ranks(predicted), _ranks(labels))


def macro_f1(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """The mean of F1 = 2·tp / (2·tp + fp + fn) over the classes that occur or are predicted."""
    hits, given, true = _counts(predicted, labels)
    return float(np.mean(2 * hits[given + true > 0] / (given + true)[given + true > 0]))


def balanced_accuracy(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """The mean recall of the classes that occur, the fraction of a class's examples that are predicted correctly."""
    hits, _, true = _counts(predicted, labels)
    return float(np.mean(hits[true > 0] / true[true > 0]))


def auc(found: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> float:
    """The area under the ROC curve, of true against false positive rates.

    With two classes it is the probability that a random example of class 1 has a higher score for class 1 than a random
    example of class 0; ties count one half. With more classes it is the mean of the areas of each class that occurs
    against all others.

    Args:
      found: the scores of all classes, from `scores`, or probabilities.
      labels: the true classes.

    Returns:
      The area; NaN if a score is NaN, or if all labels are the same.
    """
    if np.isnan(found).any():
        return float("nan")
    classes = [1] if found.shape[1] == 2 else range(found.shape[1])
    areas = [_area(found[:, label], labels == label) for label in classes if 0 < np.sum(labels == label) < len(labels)]
    return float(np.mean(areas)) if areas else float("nan")


def confusion(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int) -> Int[np.ndarray, "c c"]:
    """The confusion matrix: entry (i, j) is the number of examples of class i that were predicted as class j."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "balanced_accuracy": balanced_accuracy,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
"""The metrics that are functions of predictions and labels, by name."""

SCORED: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"auc": auc}
"""The metrics that are functions of the scores of all classes and of labels, by name."""

OF_NUMBERS = ("pearson", "spearman")
"""The metrics of regression; all others are metrics of classes."""


def listed(text: str) -> tuple[str, ...]:
    """Parses `config.eval.metrics`, names of metrics separated by commas.

    Args:
      text: the value of the key; may be empty.

    Returns:
      The names, in order.

    Raises:
      InputError: if a name is unknown or occurs twice.

    Examples:
      >>> listed("macro_f1, auc")
      ('macro_f1', 'auc')
    """
    names = tuple(part.strip() for part in text.split(",")) if text.strip() else ()
    known = {*METRICS, *SCORED}
    for name in names:
        if name == "loss":
            raise InputError(
                f"config.eval.metrics={text!r} names 'loss', which is always measured; to choose the best step by it, "
                "set config.eval.choose='least_loss'"
            )
        if name not in known:
            raise InputError(f"config.eval.metrics={text!r} names {name!r}; {nearest(name, known)}")
    if len({*names}) < len(names):
        raise InputError(f"config.eval.metrics={text!r} names a metric twice")
    return names


def _counts(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every class the number of correct predictions, of predictions, and of examples."""
    classes = 1 + max(predicted.max(), labels.max())
    return tuple(np.bincount(each, minlength=classes) for each in (labels[predicted == labels], predicted, labels))


def _area(found: Float[np.ndarray, " n"], positive: np.ndarray) -> float:
    """The area by the ranks of the p positive among p + q examples: (Σ ranks − p(p + 1)/2) / (p·q)."""
    count = int(np.sum(positive))
    above = np.sum(_ranks(found)[positive]) - count * (count + 1) / 2
    return float(above / (count * (len(found) - count)))


def _ranks(values: Real[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
