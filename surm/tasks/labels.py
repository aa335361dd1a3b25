"""Labels: one for every example, a class (classification) or a number (regression)."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from surm.data.splits import Dataset
from surm.models.processor import Processor
from surm.tasks import evaluate, metrics
from surm.tasks.metric import Metric
from surm.tasks.task import Answers, Batch, Sums

NAME = "labels"


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """What the labels of a data set are.

    Attributes:
      outputs: how many classes there are; 1 for regression.
      metrics: names in `surm.tasks.metrics`, the main one first.
      regression: whether labels are numbers to be met.
      class_weights: of the loss, one a class; None where all weigh the same.
    """

    outputs: int
    metrics: tuple[str, ...] = ("accuracy",)
    regression: bool = False
    class_weights: Float[np.ndarray, " classes"] | None = None

    @classmethod
    def of_data(cls, data: Dataset, class_weights: Float[np.ndarray, " classes"] | None = None) -> "Targets":
        """Those of a data set."""
        return cls(data.num_classes, data.metrics, data.regression, class_weights)

    @classmethod
    def of_result(cls, result: Mapping[str, Any]) -> "Targets":
        """Those of a finished run, by what its `result.json` holds."""
        outputs = result["num_outputs"]
        return cls(outputs, (result["metric"],) if "metric" in result else (), regression=outputs == 1)


class Labels:
    """A task in which every example has one label; its subclasses say what else an example is.

    Batches hold `label`, a class or a number, and `mask`, whether a row is an example. The loss is the cross-entropy
    in nats, or the squared error of the only output; w is the weight of an example's class, else 1.

    Attributes:
      targets: what the labels are.
      processor: what becomes of every picture; None of texts.
      tokenizer: the folder or file that makes tokens of texts; None of images.
    """

    name = NAME
    processor: Processor | None = None
    tokenizer: str | os.PathLike | None = None

    def __init__(self, targets: Targets):
        self.targets = targets

    @property
    def outputs(self) -> int:
        """How many classes there are; 1 for regression."""
        return self.targets.outputs

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those that the data set is measured by, then the loss."""
        loss = Metric("loss", "less", "" if self.targets.regression else "nats")
        return *map(Metric, self.targets.metrics), loss

    def sums(
        self,
        outputs: Float[Array, "batch outputs"],
        batch: Batch,
        *,
        label_smoothing: jax.typing.ArrayLike = 0.0,
    ) -> Sums:
        """Sums over the examples of a batch; see `surm.tasks.task.Task.sums`. Of classes, the hits are `accuracy`."""
        labels, mask, regression = batch["label"], batch["mask"], self.targets.regression
        weights = None if self.targets.class_weights is None else jnp.asarray(self.targets.class_weights)
        losses = metrics.losses(
            outputs, labels, regression=regression, label_smoothing=label_smoothing, class_weights=weights
        )
        found = {"loss": jnp.sum(losses, where=mask), "weight": jnp.sum(mask)}
        if weights is not None:
            found |= {"weight": jnp.sum(weights[labels], where=mask), "count": jnp.sum(mask)}
        if not regression:
            found["accuracy"] = jnp.sum(metrics.predictions(outputs) == labels, where=mask, dtype=losses.dtype)
        return found

    def answers(self, outputs: Float[Array, "batch outputs"], batch: Batch) -> Answers:
        """Of every example the `loss`, what is `predicted` and, where a metric asks for them, the `scores`."""
        regression = self.targets.regression
        found = {
            "loss": metrics.losses(outputs, batch["label"], regression=regression),
            "predicted": metrics.predictions(outputs, regression=regression),
        }
        scored = not metrics.SCORED.keys().isdisjoint(self.targets.metrics)
        return found | ({"scores": metrics.scores(outputs)} if scored else {})

    def known(self, batch: Batch) -> Answers:
        """Of every row the `label`, and by `mask` whether it is an example."""
        return {"label": batch["label"], "mask": batch["mask"]}

    def measured(self, answers: Iterable[Answers], members: int | None = None) -> list[dict[str, Any]]:
        """The metrics of a pass; see `surm.tasks.evaluate.measured`."""
        return evaluate.measured(answers, self.targets.metrics, classes=self.outputs, members=members)

    def said(self, outputs: Float[Array, "*batch outputs"]) -> Float[Array, "*batch outputs"]:
        """The probabilities of the classes, or the number."""
        return outputs if self.targets.regression else jax.nn.softmax(outputs)

    def wanted(self, batch: Batch, *, label_smoothing: jax.typing.ArrayLike = 0.0) -> Float[Array, "batch outputs"]:
        """(1 − ε)·one-hot + ε/classes of the label, or the number."""
        if self.targets.regression:
            return batch["label"][:, None]
        return optax.smooth_labels(jax.nn.one_hot(batch["label"], self.outputs), label_smoothing)

    def real(self, batch: Batch) -> Bool[np.ndarray, " batch"] | Bool[Array, " batch"]:
        """The mask of a batch."""
        return batch["mask"]
