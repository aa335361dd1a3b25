"""Metrics of a model over a whole split."""

from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from flax import nnx

from surm import metrics
from surm.peft import surgery

Batch = dict[str, np.ndarray]
Inputs = Callable[[Batch], dict[str, jax.Array]]


def evaluator(
    graphdef: nnx.GraphDef, inputs: Inputs, names: Sequence[str] = ("accuracy",), *, regression: bool = False
) -> Callable[[dict[str, jax.Array], nnx.State, Iterable[Batch]], dict[str, float]]:
    """Compiles evaluation once a shape of batches; call it as often as needed.

    Args:
      graphdef: of the model in evaluation mode, from `surgery.split`.
      inputs: from a batch to the model's keyword arguments.
      names: of the metrics, from `surm.metrics.METRICS`.
      regression: whether labels are numbers to be met.

    Returns:
      A function (trainable, frozen, batches) -> the metrics, then the mean `loss`, over all real examples of the
      batches, in double precision.
    """

    @jax.jit
    def answer(trainable: dict[str, jax.Array], frozen: nnx.State, batch: Batch) -> tuple[jax.Array, jax.Array]:
        outputs = surgery.join(graphdef, trainable, frozen)(**inputs(batch))
        losses = metrics.losses(outputs, batch["label"], regression=regression)
        return losses, metrics.predictions(outputs, regression=regression)

    def evaluate(trainable: dict[str, jax.Array], frozen: nnx.State, batches: Iterable[Batch]) -> dict[str, float]:
        losses, predicted, labels = [], [], []
        for batch in batches:
            loss, prediction = jax.device_get(answer(trainable, frozen, batch))
            losses.append(loss[batch["mask"]])
            predicted.append(prediction[batch["mask"]])
            labels.append(batch["label"][batch["mask"]])
        predicted, labels = np.concatenate(predicted), np.concatenate(labels)
        values = {name: metrics.METRICS[name](predicted, labels) for name in names}
        return values | {"loss": float(np.mean(np.concatenate(losses), dtype=np.float64))}

    return evaluate
