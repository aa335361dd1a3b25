"""The outcome of training, from which results are written."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from surm.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The step that a run chose as its best.

    Attributes:
      step: the best step.
      validation: the metrics of the validation split at that step.
      steps_taken: number of steps after which the run ended.
    """

    step: int
    validation: dict[str, float]
    steps_taken: int


@dataclasses.dataclass(frozen=True)
class Trained:
    """The outcome of a run or a population; arrays and metrics of a population have a first axis of members.

    Attributes:
      state: the state after the last step, or the trained arrays of the best one.
      eval: the metrics of the reported splits, by name.
      confusion: the confusion matrix; None if there is none.
      step_seconds: the seconds of every step since the run was last started.
      seconds: the seconds spent on the run, including the time before it was last stopped.
      chosen: the best step; None if the last step is reported.
      overrides: the values that the command line or a sweep set, by dotted key.
    """

    state: TrainState
    eval: dict[str, Any]
    confusion: Any
    step_seconds: list[float]
    seconds: float
    chosen: Chosen | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
