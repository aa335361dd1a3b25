"""The choice of a run's best step, by the validation split and never by the split that is reported.

Every checkpoint also holds the trained arrays of the best step so far. So the best step survives when old checkpoints
are deleted, and a run that was stopped and continued makes the same choice as one that was not. Of equally good steps
the earlier one is kept.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np

from surm.errors import InputError
from surm.tasks.metric import Metric

Arrays = dict[str, np.ndarray]


def check(config: ml_collections.ConfigDict) -> None:
    """Checks that a best step can be chosen: there must be several evaluations, and a separate split to report.

    Args:
      config: a run's configuration.

    Raises:
      InputError: if `config.eval` asks for a choice that the other keys do not allow.
    """
    choose = config.eval.choose
    if choose == "last" and config.eval.patience:
        raise InputError(
            f"config.eval.patience={config.eval.patience} stops by the validation split, but config.eval.choose="
            "'last'; set config.eval.choose='best' (or 'least_loss'), which also keeps the best step's adapter"
        )
    if choose == "last":
        return
    if not config.eval_every_steps:
        raise InputError(
            f"config.eval.choose={choose!r} chooses among the steps that are evaluated, but config.eval_every_steps=0 "
            "evaluates only the last one; set it to the number of steps between two evaluations"
        )
    if config.data.eval_split != "test":
        raise InputError(
            f"config.eval.choose={choose!r} chooses by the validation split and reports the test split, but "
            f"config.data.eval_split={config.data.eval_split!r}; set config.data.eval_split='test'"
        )
    if config.population:
        raise InputError(
            f"config.eval.choose={choose!r} and config.population exclude each other, as members share their "
            "checkpoints; python -m surm.sweep trains them one by one"
        )


def remarks(config: ml_collections.ConfigDict, total: int) -> list[str]:
    """Hints about evaluation and checkpoint intervals that leave nothing to choose from.

    Args:
      config: a run's configuration.
      total: number of steps of the run.

    Returns:
      One line per hint; none for most runs.
    """
    every, saved, found = config.eval_every_steps, config.checkpoint_every_steps, []
    if config.eval.choose != "last" and every >= total:
        found.append(
            f"config.eval_every_steps={every} of {total} steps: only the last step is evaluated, so there is nothing "
            "to choose from"
        )
    if config.keep_best_checkpoints and not (every and saved and math.lcm(every, saved) < total):
        found.append(
            f"config.keep_best_checkpoints={config.keep_best_checkpoints} keeps steps that are evaluated and saved; "
            f"with config.eval_every_steps={every} and config.checkpoint_every_steps={saved} only the last step is both"
        )
    return found


@dataclasses.dataclass
class Best:
    """The best of the steps that were evaluated so far.

    Attributes:
      metric: the metric that decides, one of the task's.
      patience: number of evaluations without a better step after which the run ends; 0 never ends it.
      arrays: the trained arrays at the best step; before the first evaluation, those that the run started with.
      step: the best step; None before the first evaluation.
      values: all metrics of the best step.
      looked_at: the last step that was evaluated.
      since: number of evaluations since the best one.
    """

    metric: Metric
    patience: int
    arrays: Arrays
    step: int | None = None
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    looked_at: int = -1
    since: int = 0

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` evaluations brought no better step."""
        return bool(self.patience) and self.since >= self.patience

    def take(self, step: int, values: dict[str, float], arrays: Callable[[], Arrays]) -> None:
        """Takes the evaluation of a step; a step that was taken before changes nothing.

        Args:
          step: number of finished training steps.
          values: metrics of the validation split.
          arrays: returns the trained arrays at the step; called only if the step is the best.
        """
        if step <= self.looked_at:
            return
        better = self.step is None or self._goodness(values) > self._goodness(self.values)
        self.looked_at, self.since = step, 0 if better else self.since + 1
        if better:
            self.step, self.values, self.arrays = step, values, arrays()

    def _goodness(self, values: Mapping[str, float]) -> float:
        return self.metric.goodness(values[self.metric.name])

    def told(self, step: int) -> str:
        """One line that says why a run ends after a step."""
        return (
            f"no better {self.metric.name} on the validation split in {self.since} evaluations: the run ends after "
            f"step {step}, the best was step {self.step} (config.eval.patience)"
        )

    @property
    def notes(self) -> dict[str, Any]:
        """Everything except the arrays, as JSON values for a checkpoint."""
        return {"step": self.step, "values": self.values, "looked_at": self.looked_at, "since": self.since}

    def restore(self, notes: dict[str, Any], arrays: Arrays) -> None:
        """Takes over the notes and arrays of a checkpoint."""
        self.arrays = arrays
        for name, value in notes.items():
            setattr(self, name, value)
