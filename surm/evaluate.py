"""Metrics of a model over a whole split."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from flax import nnx

from surm import metrics
from surm.peft import surgery

Batch = dict[str, np.ndarray]


def evaluator(
    graphdef: nnx.GraphDef, normalize: Callable[[jax.Array], jax.Array]
) -> Callable[[dict[str, jax.Array], nnx.State, Iterable[Batch]], dict[str, float]]:
    """Compiles evaluation once; call it as often as needed.

    Args:
      graphdef: of the model in evaluation mode, from `surgery.split`.
      normalize: from uint8 images to what the model expects.

    Returns:
      A function (trainable, frozen, batches) -> metrics: means over all real examples of the batches, added up in
      double precision.
    """

    @jax.jit
    def sums(trainable: dict[str, jax.Array], frozen: nnx.State, batch: Batch) -> dict[str, jax.Array]:
        logits = surgery.join(graphdef, trainable, frozen)(normalize(batch["image"]))
        return metrics.classification_sums(logits, batch["label"], batch["mask"])

    def evaluate(trainable: dict[str, jax.Array], frozen: nnx.State, batches: Iterable[Batch]) -> dict[str, float]:
        total: dict[str, float] = {}
        for batch in batches:
            for name, value in jax.device_get(sums(trainable, frozen, batch)).items():
                total[name] = total.get(name, 0.0) + float(value)
        return metrics.means(total)

    return evaluate
