"""Metrics of answers to labelled examples, over a whole split."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from surm.tasks import metrics
from surm.tasks.task import Answers

CONFUSION = "confusion"
MOST_CLASSES = 32
"""Of more classes no confusion matrix is made."""

OF_MODEL = ("loss", "predicted", "scores")
"""Answers of a model, which differ between members; besides there are `label` and `mask` of the batch."""


def measured(
    answers: Iterable[Answers], names: Sequence[str] = ("accuracy",), *, classes: int = 1, members: int | None = None
) -> list[dict[str, Any]]:
    """The metrics of what was answered to all batches of a pass.

    Args:
      answers: batch by batch.
      names: of the metrics, from `surm.tasks.metrics`; those of scores need answers with scores.
      classes: how many there are; 1 for regression.
      members: how many models answered, along a first axis of what `OF_MODEL` names; None where one model answered
        and there is no such axis.

    Returns:
      For every member (one for None) the metrics, then the mean `loss`, over all real examples, in double precision;
      and of up to `MOST_CLASSES` classes under `CONFUSION` the counts of `surm.tasks.metrics.confusion`.

    Raises:
      ValueError: if an answer is not of one number an example (for scores one row), for every member.
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
    """Answers with a first axis of members, of length 1 where there is none; checked, as a wrong axis may fit."""
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
