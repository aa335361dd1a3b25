"""Checkpoints of a run: trained arrays, optimiser, step, random key, data position; never the base.

The only module that knows orbax. A checkpoint appears under its final name when it is whole.
"""

import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp

from surm.errors import InputError, one_line
from surm.stopping import Stopped

State = TypeVar("State")
DAMAGED = "damaged_"
"""Stands before the name of a checkpoint that could not be read; nothing reads or removes it any more."""


class Checkpoints:
    """The checkpoints in one folder; a context manager that waits for the last write."""

    def __init__(self, folder: pathlib.Path, keep: int, keep_best: int = 0):
        """Opens (or makes) the folder; what an interrupted write has left is removed before the next one starts.

        Args:
          folder: where the checkpoints lie.
          keep: how many of the newest to keep.
          keep_best: how many of those with the highest metric to keep besides.
        """
        self._folder, self._keep, self._keep_best = folder, keep, keep_best
        self._checkpointer = self._opened()

    def _opened(self) -> ocp.training.Checkpointer:
        policies = ocp.training.preservation_policies
        newest = policies.LatestN(self._keep)
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["main"], n=self._keep_best, keep_checkpoints_without_metrics=False
        )
        return ocp.training.Checkpointer(
            self._folder.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([newest, best]) if self._keep_best else newest,
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the last write. That a run has saved before it stops must be so: raises OSError if not."""
        failure = self._failure(self._checkpointer.close)
        if failure and kind is Stopped:
            raise OSError(failure)
        self._say(failure)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: Any, notes: dict[str, Any], metric: float | None = None) -> None:
        """Writes a checkpoint in the background; one of the same step is left as it is.

        One that cannot be written, on a full disk for instance, is said on the error stream, and the run goes on with
        those that are there.

        Args:
          step: number of finished training steps.
          state: a tree of arrays.
          notes: what else the run needs to go on, such as the data position, as JSON values.
          metric: the main one on the held-out split, where it is known.
        """
        if failure := self._failure(self._checkpointer.wait):
            self._say(failure)
            self._checkpointer = self._opened()
        if step != self.latest_step:
            # The next training step reuses the state's buffers while they are still being written.
            state = jax.tree.map(jnp.copy, state)
            metrics = None if metric is None else {"main": metric}
            failure = self._failure(
                lambda: self._checkpointer.save_checkpointables_async(
                    step, {"state": state, "notes": notes}, force=True, metrics=metrics
                )
            )
            self._say(failure)

    def newest(
        self, like: State, check: Callable[[dict[str, Any]], None] = lambda notes: None
    ) -> tuple[int, State, dict[str, Any]] | None:
        """The newest checkpoint that can be read; newer, damaged ones are renamed, and said on the error stream.

        Args:
          like: a state of the same structure, shapes and dtypes.
          check: of the notes, before the state is read; what it raises is passed on.

        Returns:
          Its step, state and notes; None if there is no checkpoint.

        Raises:
          InputError: if there are checkpoints and none can be read: they are damaged, or of another structure.
        """
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
        errors: dict[int, Exception] = {}
        for step in sorted((checkpoint.step for checkpoint in self._checkpointer.checkpoints), reverse=True):
            try:
                notes = self._checkpointer.load_checkpointables(step, {"notes": None})["notes"]
                check(notes)
                state = self._checkpointer.load_checkpointables(step, {"state": abstract})["state"]
            except InputError:
                raise
            except Exception as error:  # orbax raises what it meets in damaged files, of many types
                errors[step] = error
                continue
            self._set_aside(errors)
            return step, state, notes
        if errors:
            step, error = next(iter(errors.items()))
            raise InputError(
                f"the checkpoint {str(self._folder / str(step))!r} cannot be read "
                f"({one_line(f'{type(error).__name__}: {error}')}), nor any before it; remove "
                f"{str(self._folder)!r} to start afresh, or name another workdir"
            ) from error
        return None

    def _set_aside(self, errors: dict[int, Exception]) -> None:
        for step, error in errors.items():
            aside = self._folder / f"{DAMAGED}{step}"
            (self._folder / str(step)).rename(aside)
            said = one_line(f"{type(error).__name__}: {error}")
            print(f"warning: the checkpoint of step {step} cannot be read ({said}); it is {aside} now", file=sys.stderr)
        if errors:
            self._checkpointer.reload()

    def _failure(self, act: Callable[[], object]) -> str:
        """Why a write failed, in a line; empty if it did not."""
        try:
            act()
        except Exception as error:  # orbax raises what the file system's driver meets, of many types
            # What orbax leaves unfinished is reported when the process ends, after our last line.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            return f"a checkpoint in {self._folder} failed: {one_line(error)}"
        return ""

    def _say(self, failure: str) -> None:
        if failure:
            print(f"warning: {failure}; the run goes on, with the checkpoints before", file=sys.stderr, flush=True)
