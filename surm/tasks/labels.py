"""The task `labels`: every example has one label, a class (classification) or a number (regression)."""

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
    """The kind of labels of a data set, with its metrics.

    Attributes:
      outputs: number of classes; 1 for regression.
      metrics: names in `surm.tasks.metrics`, the main one first.
      regression: whether the labels are real numbers.
      class_weights: weights of the loss, one per class; None if all classes weigh the same.
    """

    outputs: int
    metrics: tuple[str, ...] = ("accuracy",)
    regression: bool = False
    class_weights: Float[np.ndarray, " classes"] | None = None

    @classmethod
    def of_data(cls, data: Dataset, class_weights: Float[np.ndarray, " classes"] | None = None) -> "Targets":
        """The targets of a data set."""
        return cls(data.num_classes, data.metrics, data.regression, class_weights)

    @classmethod
    def of_result(cls, result: Mapping[str, Any]) -> "Targets":
        """The targets of a finished run, from the contents of its `result.json`."""
        outputs = result["num_outputs"]
        return cls(outputs, (result["metric"],) if "metric" in result else (), regression=outputs == 1)


class Labels:
    """A task in which every example has one label; subclasses add the input, an image or a text.

    A batch holds `label`, the class or the number of every row, and `mask`, which is False for rows that only pad the
    batch. The loss ℓ of an example is the cross-entropy in nats or, for regression, the squared error of the only
    output. The weight w of an example is the weight of its class, or 1.

    Attributes:
      targets: the kind of the labels.
      processor: the preprocessing of images; None for texts.
      tokenizer: the folder or file of the tokenizer; None for images.
    """

    name = NAME
    default_train = ("head",)
    counts = "examples"
    processor: Processor | None = None
    tokenizer: str | os.PathLike | None = None

    def __init__(self, targets: Targets):
        self.targets = targets

    @property
    def outputs(self) -> int:
        """The number of classes; 1 for regression."""
        return self.targets.outputs

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the data set, then the loss."""
        loss = Metric("loss", "less", "" if self.targets.regression else "nats")
        return *map(Metric, self.targets.metrics), loss

    def sums(
        self,
        outputs: Float[Array, "batch outputs"],
        batch: Batch,
        *,
        label_smoothing: jax.typing.ArrayLike = 0.0,
    ) -> Sums:
        """Sums over the examples of a batch; see `surm.tasks.task.Task.sums`.

        For classes, `accuracy` is the number of correct predictions. With class weights, `count` is the number of
        examples.
        """
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
        """The `loss` and the `predicted` class or number of every row and, if a metric needs them, its `scores`."""
        regression = self.targets.regression
        found = {
            "loss": metrics.losses(outputs, batch["label"], regression=regression),
            "predicted": metrics.predictions(outputs, regression=regression),
        }
        scored = not metrics.SCORED.keys().isdisjoint(self.targets.metrics)
        return found | ({"scores": metrics.scores(outputs)} if scored else {})

    def known(self, batch: Batch) -> Answers:
        """The `label` of every row, and the `mask` that says whether it is an example."""
        return {"label": batch["label"], "mask": batch["mask"]}

    def measured(self, answers: Iterable[Answers], members: int | None = None) -> list[dict[str, Any]]:
        """The metrics of a pass; see `surm.tasks.evaluate.measured`."""
        return evaluate.measured(answers, self.targets.metrics, classes=self.outputs, members=members)

    def counted(self, batch: Batch) -> int:
        """The number of rows of a batch; of a stack of batches, that of each."""
        return batch["mask"].shape[-1]

    def said(self, outputs: Float[Array, "*batch outputs"]) -> Float[Array, "*batch outputs"]:
        """The probabilities of the classes; for regression, the outputs themselves."""
        return outputs if self.targets.regression else jax.nn.softmax(outputs)

    def wanted(self, batch: Batch, *, label_smoothing: jax.typing.ArrayLike = 0.0) -> Float[Array, "batch outputs"]:
        """The targets (1 − ε)·one-hot(label) + ε/classes; for regression, the labels themselves."""
        if self.targets.regression:
            return batch["label"][:, None]
        return optax.smooth_labels(jax.nn.one_hot(batch["label"], self.outputs), label_smoothing)

    def real(self, batch: Batch) -> Bool[np.ndarray, " batch"] | Bool[Array, " batch"]:
        """The mask of a batch: True for rows that are examples."""
        return batch["mask"]
