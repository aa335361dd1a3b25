"""Metrics of a model over a whole split."""

from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from flax import nnx

from surm import metrics
from surm.peft import surgery

Batch = dict[str, np.ndarray]
Inputs = Callable[[Batch], dict[str, jax.Array]]
Answers = dict[str, jax.Array]
"""Of a batch: `loss` and `predicted`, with a first axis of members where there are several, `label` and `mask`."""


def answer(graphdef: nnx.GraphDef, inputs: Inputs, *, regression: bool = False) -> Callable[..., Answers]:
    """What a model says to a batch.

    Args:
      graphdef: of the model in evaluation mode, from `surgery.split`.
      inputs: from a batch to the model's keyword arguments.
      regression: whether labels are numbers to be met.

    Returns:
      A function (trainable, frozen, batch, scale of updates or None) -> answers; not compiled.
    """

    def answered(
        trainable: dict[str, jax.Array], frozen: nnx.State, batch: Batch, scale: jax.Array | None = None
    ) -> Answers:
        outputs = surgery.join(graphdef, trainable, frozen, scale=scale)(**inputs(batch))
        return {
            "loss": metrics.losses(outputs, batch["label"], regression=regression),
            "predicted": metrics.predictions(outputs, regression=regression),
            "label": batch["label"],
            "mask": batch["mask"],
        }

    return answered


def measured(answers: Iterable[Answers], names: Sequence[str] = ("accuracy",)) -> list[dict[str, float]]:
    """The metrics of what was answered to all batches of a pass.

    Args:
      answers: batch by batch.
      names: of the metrics, from `surm.metrics.METRICS`.

    Returns:
      For every member (one, where there is no axis of members) the metrics, then the mean `loss`, over all real
      examples, in double precision.
    """
    losses, predicted, labels = [], [], []
    for found in map(jax.device_get, answers):
        losses.append(np.atleast_2d(found["loss"])[:, found["mask"]])
        predicted.append(np.atleast_2d(found["predicted"])[:, found["mask"]])
        labels.append(found["label"][found["mask"]])
    losses, predicted, labels = np.concatenate(losses, 1), np.concatenate(predicted, 1), np.concatenate(labels)
    return [
        {name: metrics.METRICS[name](of_member, labels) for name in names}
        | {"loss": float(np.mean(loss, dtype=np.float64))}
        for of_member, loss in zip(predicted, losses, strict=True)
    ]
