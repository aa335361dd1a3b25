"""What a run needs while it trains, which nothing changes then: `surm.training.preparation` makes it of a config."""

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
    """Everything a run needs that does not change while it trains.

    Attributes:
      plan: what the run's configuration comes to.
      model: with its adapter.
      data: what it is trained and measured on.
      task: what is asked of the model.
      total_steps: length of the run.
      resumed: whether a checkpoint supplies the trained arrays.
      training: the training split, as the task takes it.
      held_out: every split that is reported, likewise, by the ending of its metrics' names.
      saved: the paths of the trained arrays, where a checkpoint tells them.
      validation: the split that the best step is chosen by; None where none is.
      tokens: a hash of all tokens that are trained on; None of images.
      tokenizer_of_0_1: the file that 0.1.0 would have made them with.
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
        """From a batch to the model's keyword arguments."""
        return self.task.inputs

    @property
    def processor(self) -> Processor | None:
        """What becomes of every picture; None of texts."""
        return getattr(self.task, "processor", None)

    def training_batches(self, seed: int, share: Share = WHOLE) -> grain.DatasetIterator:
        """Opens the endless iterator over the training split, in the order of a seed, with a share of every batch."""
        return self.task.training(self.training, seed, share)

    @property
    def evaluation_batches(self) -> dict[str, Callable[..., Iterator[Batch]]]:
        """Functions of a share that open one pass over each reported split, by the ending of its metrics' names."""
        return {ending: functools.partial(self.task.evaluation, source) for ending, source in self.held_out.items()}

    @property
    def validation_batches(self) -> Callable[..., Iterator[Batch]] | None:
        """The same of the split that the best step is chosen by; None where none is."""
        return None if self.validation is None else functools.partial(self.task.evaluation, self.validation)
