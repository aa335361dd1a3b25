"""The protocol `Task`: a model's inputs, its loss and the metrics of its answers."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from surm.data.share import WHOLE, Share
from surm.errors import InputError
from surm.tasks.metric import Metric

Batch = dict[str, np.ndarray | jax.Array]
"""Arrays whose first axis is the rows of a batch. **A row of zeros weighs nothing**: batches are padded with such rows,
and rows with zeros at their end, to the shapes that programs are compiled for."""
Sums = dict[str, jax.Array]
Answers = dict[str, np.ndarray | jax.Array]


@runtime_checkable
class Task(Protocol):
    """A model's inputs, its loss and its metrics for one kind of problem.

    A class that has these attributes and methods is a task; it needs no base class. Everything that depends on the kind
    of data belongs to the task: the loss, class weights, the metrics, how texts are truncated. The training loop, the
    optimiser and the distribution over devices only call the task.

    Attributes:
      name: its name in `result.json`.
      outputs: number of outputs of a model for one example, which is the size of a new head; None if that is not
        fixed, as for a model that predicts a token at every position.
      metrics: the metrics that `measured` returns, the main one first.
      default_train: the patterns of the additional variables that train if the config names none: `("head",)` for a
        model with a fresh head, `()` for one without.
      counts: the unit in which the progress of training is shown, `examples` or `tokens`.
    """

    name: str
    default_train: tuple[str, ...]
    counts: Literal["examples", "tokens"]

    @property
    def outputs(self) -> int | None:
        """See above."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """See above."""

    def ready(self, split: Any) -> Any:
        """Prepares a split for `training` and `evaluation`, for example by tokenizing its texts."""

    def training(self, source: Any, seed: int, share: Share = WHOLE) -> grain.DatasetIterator:
        """Opens the endless iterator over a source for training.

        Args:
          source: from `ready`.
          seed: determines the order of the examples.
          share: the part of every batch that this process reads.

        Returns:
          An iterator over batches whose position can be saved.
        """

    def evaluation(self, source: Any, share: Share = WHOLE) -> Iterator[Batch]:
        """Opens one pass over a source; `share` is the part of every batch that this process reads."""

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The keyword arguments that the model is called with for a batch."""

    def counted(self, batch: Batch) -> int:
        """The size of a batch in the unit `counts`."""

    def sums(self, outputs: Any, batch: Batch, *, label_smoothing: jax.typing.ArrayLike = 0.0) -> Sums:
        """The loss on a batch as sums, which can be added over parts of a batch, devices and steps.

        Args:
          outputs: the outputs of the model, one array or a tuple of several.
          batch: the batch.
          label_smoothing: ε of the targets, if the task smooths them.

        Returns:
          Scalars by name: `loss`, Σ w·ℓ, and `weight`, Σ w, whose quotient is minimised. Further sums, such as the
          number of correct predictions, are divided by `count` if there is one, else by `weight`.
        """

    def answers(self, outputs: Any, batch: Batch) -> Answers:
        """The arrays that `measured` needs of a model's outputs; a population adds a first axis of members."""

    def known(self, batch: Batch) -> Answers:
        """The arrays that `measured` needs of a batch, whatever the model; they never have an axis of members."""

    def measured(self, answers: Iterable[Answers], members: int | None = None) -> list[dict[str, Any]]:
        """Computes the metrics of one pass.

        Args:
          answers: for every batch, `answers` and `known` merged into one dictionary.
          members: the number of members, the length of the first axis of `answers`; None if there is no such axis.

        Returns:
          A list with one dictionary of metrics per member, of length 1 if `members` is None.
        """


@runtime_checkable
class FixedOutputs(Task, Protocol):
    """A task whose models have a fixed number of outputs per example."""

    @property
    def outputs(self) -> int:
        """The number of outputs per example."""

    def said(self, outputs: Float[Array, "*batch outputs"]) -> Float[Array, "*batch outputs"]:
        """The predictions in the unit of the targets `wanted`, for example class probabilities from logits."""

    def wanted(self, batch: Batch, *, label_smoothing: jax.typing.ArrayLike = 0.0) -> Float[Array, "batch outputs"]:
        """The targets of the predictions `said`."""

    def real(self, batch: Batch) -> Bool[np.ndarray, " batch"] | Bool[Array, " batch"]:
        """True for the rows of a batch that are examples, False for padding."""


def with_outputs(task: Task, who: str) -> FixedOutputs:
    """Returns a task if its number of outputs is fixed.

    Args:
      task: the task.
      who: the feature that needs this, for the message, such as `config.peft.method='loko'`.

    Returns:
      The same task.

    Raises:
      InputError: if the task has no fixed number of outputs.
    """
    if task.outputs is None:
        raise InputError(f"{who} needs a task with a fixed number of outputs, such as 'labels'; got {task.name!r}")
    return task
