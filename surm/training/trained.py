"""What training hands to those who write results."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from surm.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Which step a run chose for its best.

    Attributes:
      step: the best one.
      validation: the metrics of the validation split there.
      steps_taken: after how many steps the run ended.
    """

    step: int
    validation: dict[str, float]
    steps_taken: int


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run, or a population, ends with; of a population every array and metric has a first axis of members.

    Attributes:
      state: after the last step, or at the best one.
      eval: the metrics of the reported splits, by name.
      confusion: the confusion matrix; None where there is none.
      step_seconds: of every step that was taken since the last start.
      seconds: spent on the run, before it was stopped included.
      chosen: the best step; None where the last one is reported.
      overrides: what the command line or a sweep set in the config's file, by dotted key.
    """

    state: TrainState
    eval: dict[str, Any]
    confusion: Any
    step_seconds: list[float]
    seconds: float
    chosen: Chosen | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
