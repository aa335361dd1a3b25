"""The best step of a run: chosen by the validation split, never by the one that is reported.

What answers at the best step is kept with every checkpoint, so no rotation of checkpoints loses it, and a run that was
stopped goes on choosing as if it had not been. Of equals the earlier is kept.
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
    """What is chosen by a split is not reported on it; and there must be something to choose from.

    Args:
      config: a run's configuration.

    Raises:
      InputError: where `config.eval` asks for what the other keys do not allow.
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
            "evaluates the last alone; set it to how often the validation split shall be looked at"
        )
    if config.data.eval_split != "test":
        raise InputError(
            f"config.eval.choose={choose!r} chooses by the validation split and reports the test split, but "
            f"config.data.eval_split={config.data.eval_split!r}; set config.data.eval_split='test'"
        )
    if config.population:
        raise InputError(
            f"config.eval.choose={choose!r} and config.population exclude each other, as members have one checkpoint "
            "together; python -m surm.sweep trains them one by one"
        )


def remarks(config: ml_collections.ConfigDict, total: int) -> list[str]:
    """What is odd about how often a run looks and saves, in lines.

    Args:
      config: a run's configuration.
      total: steps of the run.

    Returns:
      The lines; none for most runs.
    """
    every, saved, found = config.eval_every_steps, config.checkpoint_every_steps, []
    if config.eval.choose != "last" and every >= total:
        found.append(
            f"config.eval_every_steps={every} of {total} steps: the last step alone is looked at, so there is nothing "
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
    """The best of the steps looked at so far.

    Attributes:
      metric: what decides, one that the task measures.
      patience: looks without a better one after which the run shall end; 0 for never.
      arrays: what answers at the best step; before the first look what answers then.
      step: the best one, None before the first look.
      values: all metrics there.
      looked_at: the last step looked at.
      since: looks since the best.
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
        """Whether there has been nothing better for as long as there is patience."""
        return bool(self.patience) and self.since >= self.patience

    def take(self, step: int, values: dict[str, float], arrays: Callable[[], Arrays]) -> None:
        """Looks at a step; one that was looked at already changes nothing.

        Args:
          step: of the run.
          values: metrics of the validation split.
          arrays: what answers at the step; called if it is the best.
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
        """Why a run ends after a step, in a line."""
        return (
            f"no better {self.metric.name} on the validation split in {self.since} evaluations: the run ends after "
            f"step {step}, the best was step {self.step} (config.eval.patience)"
        )

    @property
    def notes(self) -> dict[str, Any]:
        """All but the arrays, as JSON values."""
        return {"step": self.step, "values": self.values, "looked_at": self.looked_at, "since": self.since}

    def restore(self, notes: dict[str, Any], arrays: Arrays) -> None:
        """Goes on from what a checkpoint holds."""
        self.arrays = arrays
        for name, value in notes.items():
            setattr(self, name, value)
