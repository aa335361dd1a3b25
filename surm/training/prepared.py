"""A prepared run: everything that is constant while it trains. `surm.training.preparation` makes it from a config."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import grain
import ml_collections
from flax import nnx

from surm.config import Plan
from surm.data.share import WHOLE, Share
from surm.data.splits import Dataset
from surm.models.processor import Processor
from surm.tasks.task import Batch, Task


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a run needs and that does not change while it trains.

    Attributes:
      plan: the run's configuration, checked and parsed.
      model: the model with its adapter.
      data: the data set.
      task: the inputs, loss and metrics of the model.
      total_steps: number of steps of the run.
      resumed: whether a checkpoint supplies the trained arrays.
      training: the training split, prepared by `Task.ready`.
      held_out: the splits that are reported, prepared by `Task.ready`, by the suffix of their metrics' names.
      saved: the paths of the trained arrays in the newest checkpoint; None if there is none that records them.
      validation: the prepared split by which the best step is chosen; None if none is chosen.
      tokens: a hash of all training tokens; None for images.
      tokenizer_of_0_1: the tokenizer file that surm 0.1.0 would have used; empty for images, or if there is none.
    """

    plan: Plan
    model: nnx.Module
    data: Dataset
    task: Task
    total_steps: int
    resumed: bool
    training: Any
    held_out: Mapping[str, Any]
    saved: Collection[str] | None = None
    validation: Any = None
    tokens: str | None = None
    tokenizer_of_0_1: str = ""

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The run's configuration."""
        return self.plan.config

    @property
    def inputs(self) -> Callable[[Batch], dict[str, Any]]:
        """The function from a batch to the model's keyword arguments."""
        return self.task.inputs

    @property
    def processor(self) -> Processor | None:
        """The preprocessing of images; None for texts."""
        return getattr(self.task, "processor", None)

    def training_batches(self, seed: int, share: Share = WHOLE) -> grain.DatasetIterator:
        """Opens the endless iterator over the training split; see `Task.training`."""
        return self.task.training(self.training, seed, share)

    @property
    def evaluation_batches(self) -> dict[str, Callable[..., Iterator[Batch]]]:
        """Functions of a `Share` that open one pass over each reported split, by the suffix of its metrics' names."""
        return {ending: functools.partial(self.task.evaluation, source) for ending, source in self.held_out.items()}

    @property
    def validation_batches(self) -> Callable[..., Iterator[Batch]] | None:
        """A function of a `Share` that opens one pass over the split that chooses the best step; None if none does."""
        return None if self.validation is None else functools.partial(self.task.evaluation, self.validation)
