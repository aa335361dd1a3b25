"""The log of a run, in `metrics.jsonl` and other writers, and an error when a value is no longer finite."""

import math
from typing import Any, Protocol, runtime_checkable

from surm.machine import processes
from surm.rundir import writers
from surm.rundir.workdir import Workdir

Values = dict[str, Any]
"""Metrics by name: one number, or one for each member of a population."""


class NonFiniteError(RuntimeError):
    """The loss, its gradient or the update is no longer finite; earlier checkpoints stay."""


def check_finite(step: int, values: dict[str, float]) -> None:
    """Raises NonFiniteError, naming the step and the value, if one of the values is not a finite number."""
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        finite = ", ".join(f"{name} {value:g}" for name, value in values.items() if name not in wrong)
        found = ", ".join(f"{name} is {values[name]}" for name in wrong)
        raise NonFiniteError(f"step {step}: {found}, no finite number" + (f" ({finite})" if finite else ""))


@runtime_checkable
class Log(Protocol):
    """Receives the metrics of a run."""

    notes: dict[str, Any]
    """State that a continued run needs again, as JSON values."""

    def take(self, step: int, split: str, values: Values, *, written: bool = True) -> None:
        """Checks metrics, and writes them if asked to; raises NonFiniteError if training cannot continue."""

    def logged(self, step: int, split: str) -> Values | None:
        """The metrics that were written for a step; None if there are none."""

    def start(self, step: int, notes: dict[str, Any]) -> None:
        """Opens the log; drops the lines after a step, which will come again, and takes the notes saved there."""

    def flush(self) -> None:
        """Writes everything out, because a checkpoint follows and a later restart will not repeat it."""

    def close(self) -> None:
        """Waits until everything is written."""


class RunLog:
    """The log of one run."""

    def __init__(self, folder: Workdir):
        """Writes into a run's folder, and to the other writers of its config."""
        self._folder, self._writers, self.notes = folder, writers.of(folder), {}

    def take(self, step: int, split: str, values: Values, *, written: bool = True) -> None:
        """See `Log`."""
        numbers = {name: float(value) for name, value in values.items()}
        check_finite(step, numbers)
        # A population that was killed while its members' evaluation was written has some of it already.
        if written and (split == "train" or self._folder.logged(step, split) is None):
            self._folder.log(step, split, numbers)
            for writer in self._writers:
                writer.write(step, split, numbers)
            if split != "train":
                self._folder.flush()

    def logged(self, step: int, split: str) -> Values | None:
        """See `Log`."""
        return processes.from_first(lambda: self._folder.logged(step, split))

    def start(self, step: int, _: dict[str, Any]) -> None:
        """See `Log`."""
        self._folder.rewind(step)
        for writer in self._writers:
            writer.start(step)

    def flush(self) -> None:
        """See `Log`."""
        self._folder.flush()
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """See `Log`."""
        for writer in self._writers:
            writer.close()
