"""Losses of examples, on the device, and metrics of whole splits, exact and in double precision, on the host."""

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
      outputs: of the model, one a class, or one altogether for regression.
      labels: the true classes, or the numbers to be met.
      regression: whether the loss is the squared error, rather than the cross-entropy in nats.
      label_smoothing: ε of the target (1 − ε)·one-hot + ε/classes; not of regression.
      class_weights: w of the classes, which multiply the target: -Σ_c w_c target_c log p_c, so without ε the loss of
        an example times the weight of its class. Over Σ w_label, the mean is that of PyTorch's `CrossEntropyLoss`.

    Returns:
      One number an example, float32.
    """
    outputs = outputs.astype(jnp.float32)
    if regression:
        return jnp.square(outputs[:, 0] - labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, outputs.shape[-1]), label_smoothing)
    if class_weights is not None:
        targets = targets * class_weights
    return optax.softmax_cross_entropy(outputs, targets)


def predictions(outputs: Float[Array, "batch outputs"], *, regression: bool = False) -> Labels:
    """What the model answers: the likeliest class, or the number."""
    return outputs[:, 0].astype(jnp.float32) if regression else outputs.argmax(axis=-1)


def scores(outputs: Float[Array, "batch outputs"]) -> Float[Array, "batch outputs"]:
    """How likely a model finds every class: numbers in the order of its probabilities, without their rounding near 1.

    Of two classes log-odds, of more the logarithms of the probabilities; float32.
    """
    outputs = outputs.astype(jnp.float32)
    return outputs - outputs[:, ::-1] if outputs.shape[-1] == 2 else jax.nn.log_softmax(outputs)


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


def macro_f1(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """The mean over classes of F1, 2·tp / (2·tp + fp + fn); over those that occur or are predicted."""
    hits, given, true = _counts(predicted, labels)
    return float(np.mean(2 * hits[given + true > 0] / (given + true)[given + true > 0]))


def balanced_accuracy(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """The mean over the classes that occur of the share of their examples whose class is right."""
    hits, _, true = _counts(predicted, labels)
    return float(np.mean(hits[true > 0] / true[true > 0]))


def auc(found: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> float:
    """The area under the curve of true against false positives, by scores, higher for what is likelier.

    Of two classes that of class 1: the chance that an example of class 1 has a higher score than one of class 0, equal
    ones half. Of more classes the mean over those that occur of the same of each class against all others. NaN if a
    score is, or if all labels are the same.

    Args:
      found: from `scores`, or probabilities.
      labels: the true classes.
    """
    if np.isnan(found).any():
        return float("nan")
    classes = [1] if found.shape[1] == 2 else range(found.shape[1])
    areas = [_area(found[:, label], labels == label) for label in classes if 0 < np.sum(labels == label) < len(labels)]
    return float(np.mean(areas)) if areas else float("nan")


def confusion(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int) -> Int[np.ndarray, "c c"]:
    """How many examples of every class, a row each, were taken for every class, a column each."""
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
"""Every metric of answers by name: a function of predictions and labels. `surm.tasks.labels` says their direction."""

SCORED: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"auc": auc}
"""Every metric of scores by name: a function of the scores of all classes and of labels."""

OF_NUMBERS = ("pearson", "spearman")
"""Those that regression has."""


def listed(text: str) -> tuple[str, ...]:
    """The metrics that a config names, separated by commas.

    Raises:
      InputError: for one that there is not, or that is named twice.

    Examples:
      >>> listed("macro_f1, auc")
      ('macro_f1', 'auc')
    """
    names = tuple(part.strip() for part in text.split(",")) if text.strip() else ()
    known = {*METRICS, *SCORED}
    for name in names:
        if name == "loss":
            raise InputError(
                f"config.eval.metrics={text!r} names 'loss', which is measured anyway; config.eval.choose='least_loss' "
                "chooses by it"
            )
        if name not in known:
            raise InputError(f"config.eval.metrics={text!r} names {name!r}; {nearest(name, known)}")
    if len({*names}) < len(names):
        raise InputError(f"config.eval.metrics={text!r} names a metric twice")
    return names


def _counts(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every class how many are right, how many are predicted, and how many there are."""
    classes = 1 + max(predicted.max(), labels.max())
    return tuple(np.bincount(each, minlength=classes) for each in (labels[predicted == labels], predicted, labels))


def _area(found: Float[np.ndarray, " n"], positive: np.ndarray) -> float:
    """From the ranks of the positive ones: (Σ ranks - p(p + 1)/2) / (p·q), with p positive and q other examples."""
    count = int(np.sum(positive))
    above = np.sum(_ranks(found)[positive]) - count * (count + 1) / 2
    return float(above / (count * (len(found) - count)))


def _ranks(values: Real[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
