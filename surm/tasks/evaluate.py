"""Metrics over a whole split, from the model's answers to its labelled examples."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from surm.tasks import metrics
from surm.tasks.task import Answers

CONFUSION = "confusion"
MOST_CLASSES = 32
"""The largest number of classes for which a confusion matrix is made."""

OF_MODEL = ("loss", "predicted", "scores")
"""The answers that depend on the model, so that they have an axis of members in a population. The others, `label` and
`mask`, depend on the batch alone."""


def measured(
    answers: Iterable[Answers], names: Sequence[str] = ("accuracy",), *, classes: int = 1, members: int | None = None
) -> list[dict[str, Any]]:
    """Computes metrics over one pass, from the answers to all its batches.

    Args:
      answers: one dictionary per batch, with `label` and `mask` of shape (batch,), `loss` and `predicted` of shape
        ([members,] batch), and `scores` of shape ([members,] batch, classes) where a metric needs them.
      names: names of metrics in `surm.tasks.metrics`.
      classes: number of classes; 1 for regression.
      members: number of members of a population, the first axis of the answers in `OF_MODEL`; None if one model
        answered and there is no such axis.

    Returns:
      A list with one dictionary per member, of length 1 if `members` is None: the metrics, then the mean `loss` in
      double precision, over all rows that the mask marks as examples; with 2 to `MOST_CLASSES` classes also
      `CONFUSION`, the counts of `surm.tasks.metrics.confusion`.

    Raises:
      ValueError: if an answer in `OF_MODEL` lacks the axis of members, or that of the examples.
    """
    found: dict[str, list[np.ndarray]] = {}
    for batch in map(jax.device_get, answers):
        real = batch["mask"]
        found.setdefault("label", []).append(batch["label"][real])
        for name in [name for name in OF_MODEL if name in batch]:
            rows = _by_member(name, batch[name], members, len(real))
            found.setdefault(name, []).append(rows[:, real])
    labels = np.concatenate(found.pop("label"))
    whole = {name: np.concatenate(parts, axis=1) for name, parts in found.items()}
    return [
        _metrics({name: rows[member] for name, rows in whole.items()}, labels, names, classes)
        for member in range(members or 1)
    ]


def _by_member(name: str, answers: np.ndarray, members: int | None, examples: int) -> np.ndarray:
    """Answers with a first axis of members, added with length 1 if `members` is None.

    The shape is checked, because otherwise an axis of another meaning but the same length would go unnoticed.
    """
    expected = (*(() if members is None else (members,)), examples)
    if answers.shape[: len(expected)] != expected or answers.ndim != len(expected) + (name == "scores"):
        raise ValueError(
            f"answers {name!r} have the shape {answers.shape}, expected {expected}"
            f"{' and a last axis of classes' if name == 'scores' else ''}, with members={members}"
        )
    return answers[None] if members is None else answers


def _metrics(
    of_member: dict[str, np.ndarray], labels: np.ndarray, names: Sequence[str], classes: int
) -> dict[str, Any]:
    predicted, found = of_member["predicted"], {}
    for name in names:
        if name in metrics.SCORED:
            found[name] = metrics.SCORED[name](of_member["scores"], labels)
        elif name in metrics.METRICS:
            found[name] = metrics.METRICS[name](predicted, labels)
    found["loss"] = float(np.mean(of_member["loss"], dtype=np.float64))
    return found | ({CONFUSION: metrics.confusion(predicted, labels, classes)} if 1 < classes <= MOST_CLASSES else {})
