"""Task: what is asked of a model, that is what it reads, how wrong it was, and how that is summed up."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from surm.data.share import WHOLE, Share
from surm.errors import InputError
from surm.tasks.metric import Metric

Batch = dict[str, np.ndarray | jax.Array]
"""Arrays with a first axis of rows. **A row of zeros weighs nothing**: batches are filled up with such rows, and rows
with zeros at their end, to the sizes that are compiled for."""
Sums = dict[str, jax.Array]
Answers = dict[str, np.ndarray | jax.Array]


@runtime_checkable
class Task(Protocol):
    """What is asked of a model.

    A class that has these attributes and methods is a task; it needs no base class. What depends on the data is its
    own: the loss, weights of classes, the metrics, how texts are cut. What trains, optimises or shares work among
    devices asks the task and knows none of that.

    Attributes:
      name: what `result.json` calls it.
      outputs: how many outputs a model has for an example, which is the size of a new head; None where that is not
        fixed, as for a model that answers with a token at every place.
      metrics: what `measured` finds, the main one first.
    """

    name: str

    @property
    def outputs(self) -> int | None:
        """See above."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """See above."""

    def ready(self, split: Any) -> Any:
        """The source that the two functions below take, of a split of the data: tokens, for instance, of texts."""

    def training(self, source: Any, seed: int, share: Share = WHOLE) -> grain.DatasetIterator:
        """Opens the endless iterator over a source, in the order of a seed, with a share of every batch."""

    def evaluation(self, source: Any, share: Share = WHOLE) -> Iterator[Batch]:
        """Opens one pass over a source, with a share of every batch."""

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The model's keyword arguments of a batch."""

    def sums(self, outputs: jax.Array, batch: Batch, *, label_smoothing: jax.typing.ArrayLike = 0.0) -> Sums:
        """How wrong a model was about a batch, as scalars that add over parts of a batch, devices and steps.

        Args:
          outputs: of the model.
          batch: as above.
          label_smoothing: the ε of the targets, where the task has such.

        Returns:
          `loss`, Σ w·ℓ, and `weight`, Σ w: the quotient of their sums is what is minimised. Whatever else is summed,
          such as hits, is divided by the sum of `count`, where there is one, else by that of `weight`.
        """

    def answers(self, outputs: jax.Array, batch: Batch) -> Answers:
        """What `measured` asks of a model's outputs; in a population it gets a first axis of members."""

    def known(self, batch: Batch) -> Answers:
        """What `measured` asks of a batch, whatever the model; it has no axis of members."""

    def measured(self, answers: Iterable[Answers], members: int | None = None) -> list[dict[str, Any]]:
        """The metrics of a pass.

        Args:
          answers: batch by batch what `answers` and `known` give together.
          members: how many models answered, along a first axis; None where there is no such axis.

        Returns:
          The metrics by name, for every member (for one where `members` is None).
        """


@runtime_checkable
class FixedOutputs(Task, Protocol):
    """A task whose models have a fixed number of outputs for an example."""

    @property
    def outputs(self) -> int:
        """How many."""

    def said(self, outputs: Float[Array, "*batch outputs"]) -> Float[Array, "*batch outputs"]:
        """What the outputs say, in the unit of `wanted`: probabilities of classes, for instance, of logits."""

    def wanted(self, batch: Batch, *, label_smoothing: jax.typing.ArrayLike = 0.0) -> Float[Array, "batch outputs"]:
        """What they should say."""

    def real(self, batch: Batch) -> Bool[np.ndarray, " batch"] | Bool[Array, " batch"]:
        """Which rows of a batch are examples, and do not only fill it up."""


def with_outputs(task: Task, who: str) -> FixedOutputs:
    """A task, if its number of outputs is fixed.

    Args:
      task: any.
      who: asks for that, for the message, such as `config.peft.method='loko'`.

    Returns:
      The same task.

    Raises:
      InputError: if the task has no fixed number of outputs.
    """
    if task.outputs is None:
        raise InputError(f"{who} needs a task with a fixed number of outputs, such as 'labels'; got {task.name!r}")
    return task
