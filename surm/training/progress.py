"""The progress bar of a training loop, and the profiler's trace of a few steps."""

import statistics
import sys
import time
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
import tqdm
from etils import epath

from surm.machine import processes
from surm.rundir import mirror
from surm.rundir.log import Log

_UNITS = {"examples": "ex", "tokens": "tok"}
_COMPILING = 2  # first steps, which wait for the compiler and do not count
_TIMED = 7  # steps before the remaining time is estimated


class Trace:
    """Traces a few steps of a run with JAX's profiler."""

    def __init__(self, folder: epath.Path, first: int, steps: int):
        """Creates a trace that has not started.

        Args:
          folder: receives the files of the profiler.
          first: the first step to trace.
          steps: number of steps to trace; may be 0.
        """
        self._folder, self._first, self._behind, self._on = mirror.Mirror(folder), first, first + steps, False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int, flush: Callable[[], None]) -> None:
        """Starts or stops the profiler if that is due before a step; calls `flush` first, to finish earlier steps."""
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
    """Fetches and logs the metrics of each step one step late, so that the device never waits for the host."""

    def __init__(self, log: Log, config: ml_collections.ConfigDict, start: int, total: int, counts: str = "examples"):
        """Shows a bar.

        Args:
          log: receives the metrics.
          config: the run's configuration.
          start: number of steps that were taken before.
          total: number of steps of the run.
          counts: the unit of the bar, `examples` or `tokens`.
        """
        self._log, self._config, self._start, self._total = log, config, start, total
        self._pending: tuple[int, dict[str, jax.Array], int] | None = None
        self.step_seconds: list[float] = []
        self._counts, self._sizes, self._seen = counts, [], 0
        batch = config.optim.batch_size
        known = {"total": total * batch, "initial": start * batch} if counts == "examples" else {}
        self._bar = tqdm.tqdm(
            **known, unit=_UNITS[counts], unit_scale=True, smoothing=0.1,
            mininterval=0.5 if sys.stderr.isatty() else 20, dynamic_ncols=True, disable=not processes.is_first(),
        )  # fmt: skip
        self._last = time.perf_counter()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def before(self) -> None:
        """Starts the clock of a step if no step is running, so that time between steps does not count."""
        if not self._pending:
            self._last = time.perf_counter()

    def step(self, step: int, values: dict[str, jax.Array], size: int) -> None:
        """Takes the metrics of a step that may still be running, and logs those of the step before.

        Args:
          step: number of finished steps, including this one.
          values: its metrics.
          size: the size of its batch in the unit of the bar.
        """
        previous, self._pending = self._pending, (step, values, size)
        if previous:
            self._deal_with(*previous)

    def flush(self) -> None:
        """Waits for the last step and logs its metrics."""
        if self._pending:
            self._deal_with(*self._pending)
            self._pending = None

    def _deal_with(self, step: int, values: dict[str, jax.Array], size: int) -> None:
        values = jax.device_get(values)
        now = time.perf_counter()
        self.step_seconds.append(now - self._last)
        self._last = now
        self._sizes.append(size)
        if self._counts == "tokens":  # batches differ in their number, so the bar's end is an estimate
            self._seen += size
            self._bar.total = round(self._seen / len(self._sizes) * (self._total - self._start))
        if len(self.step_seconds) == _TIMED and self._total > step:
            sizes, seconds = self._sizes[_COMPILING:], self.step_seconds[_COMPILING:]
            rate = sum(sizes) / sum(seconds) if self._counts == "tokens" else None
            tqdm.tqdm.write(_expected(statistics.median(seconds), self._total - step, rate))
            sys.stdout.flush()
        due = step % self._config.log_every_steps == 0 or step == self._total
        self._log.take(step, "train", values, written=due)
        self._bar.set_postfix(loss=f"{np.mean(values['loss']):.3f}", refresh=False)
        self._advance(size)

    def _advance(self, size: int) -> None:
        """Moves the bar; its clock starts after the steps that wait for the compiler, which say nothing about speed."""
        if len(self.step_seconds) > _COMPILING:
            self._bar.update(size)
            return
        self._bar.n += size
        self._bar.initial = self._bar.last_print_n = self._bar.n
        self._bar.start_t = self._bar.last_print_t = time.time()


def _expected(seconds: float, steps: int, tokens: float | None = None) -> str:
    """One line with the seconds of a step, the estimated time of the remaining steps, and perhaps tokens a second."""
    left = seconds * steps
    time_left = f"{left / 3600:.1f} h" if left >= 5400 else f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    rate = "" if tokens is None else f" ({tokens:,.0f} tokens a second)"
    return f"a step takes {seconds:.3g} s{rate}; {steps:,} more will take about {time_left}, not counting evaluation"
