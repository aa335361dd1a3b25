"""What a training loop says while it runs: a progress bar, `metrics.jsonl`, and a stop when numbers cease."""

import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np
import tqdm
from etils import epath

from surm import mirror, processes, writers
from surm.workdir import Workdir

_TIMED = 7  # steps, the first two of which wait for the compiler, before it is said how long the rest will take

Values = dict[str, Any]
"""Metrics by name: a number each, or one of every member of a population."""


class NonFiniteError(RuntimeError):
    """The loss, its gradient or the update is no longer a number; checkpoints written before stay."""


def check_finite(step: int, values: dict[str, float]) -> None:
    """Raises NonFiniteError, naming the step and the value, if one of the values is not a finite number."""
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        finite = ", ".join(f"{name} {value:g}" for name, value in values.items() if name not in wrong)
        found = ", ".join(f"{name} is {values[name]}" for name in wrong)
        raise NonFiniteError(f"step {step}: {found}, no finite number" + (f" ({finite})" if finite else ""))


class Log(Protocol):
    """What becomes of the metrics."""

    notes: dict[str, Any]
    """What a run that goes on must know again, as JSON values."""

    def take(self, step: int, split: str, values: Values, *, written: bool = True) -> None:
        """Checks metrics, and writes them down if asked to; raises NonFiniteError if there is no going on."""

    def logged(self, step: int, split: str) -> Values | None:
        """Metrics that were written down, None if they were not."""

    def start(self, step: int, notes: dict[str, Any]) -> None:
        """Opens what is written to; drops what comes again after a step, and takes the notes that were saved there."""

    def flush(self) -> None:
        """Has all written that was taken: a checkpoint follows, behind which nothing comes again."""

    def close(self) -> None:
        """Waits until all is written."""


class RunLog:
    """The log of one run."""

    def __init__(self, folder: Workdir):
        """Writes into a run's folder, and where else its config wants it."""
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


class Trace:
    """JAX's profiler for a few steps of a run."""

    def __init__(self, folder: epath.Path, first: int, steps: int):
        """Traces so many steps from the first on into a folder; none, if there are to be none."""
        self._folder, self._first, self._behind, self._on = mirror.Mirror(folder), first, first + steps, False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int, flush: Callable[[], None]) -> None:
        """Starts or stops where a step is the one to do it at; what runs is finished first, by `flush`."""
        if step == self._first < self._behind:
            flush()
            jax.profiler.start_trace(self._folder.here)
            self._on = True
        elif self._on and step == self._behind:
            flush()
            self._stop()

    def _stop(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
            self._folder.send()


class Progress:
    """Fetches each step's metrics one step late, so that the device never waits for the host."""

    def __init__(self, log: Log, config: ml_collections.ConfigDict, start: int, total: int):
        self._log, self._config, self._total = log, config, total
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self.step_seconds: list[float] = []
        batch = config.optim.batch_size
        self._bar = tqdm.tqdm(
            total=total * batch, initial=start * batch, unit="ex", unit_scale=True, smoothing=0.1,
            mininterval=0.5 if sys.stderr.isatty() else 20, dynamic_ncols=True, disable=not processes.is_first(),
        )  # fmt: skip
        self._last = time.perf_counter()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def before(self) -> None:
        """Starts the clock of a step, if none is running: what came between two steps is no part of them."""
        if not self._pending:
            self._last = time.perf_counter()

    def step(self, step: int, values: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step that may still be running, and deals with those of the step before."""
        previous, self._pending = self._pending, (step, values)
        if previous:
            self._deal_with(*previous)

    def flush(self) -> None:
        """Deals with the metrics of the last step; waits for it."""
        if self._pending:
            self._deal_with(*self._pending)
            self._pending = None

    def _deal_with(self, step: int, values: dict[str, jax.Array]) -> None:
        values = jax.device_get(values)
        now = time.perf_counter()
        self.step_seconds.append(now - self._last)
        self._last = now
        if len(self.step_seconds) == _TIMED and self._total > step:
            tqdm.tqdm.write(_expected(statistics.median(self.step_seconds[2:]), self._total - step))
        due = step % self._config.log_every_steps == 0 or step == self._total
        self._log.take(step, "train", values, written=due)
        self._bar.set_postfix(loss=f"{np.mean(values['loss']):.3f}", refresh=False)
        self._bar.update(self._config.optim.batch_size)


def _expected(seconds: float, steps: int) -> str:
    """What a run will take, from one of its steps."""
    left = seconds * steps
    time_left = f"{left / 3600:.1f} h" if left >= 5400 else f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    return f"a step takes {seconds:.3g} s; {steps:,} more will take about {time_left}, evaluation apart"
