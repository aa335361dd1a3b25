"""Checkpoints of a run: trained arrays, optimiser, step, random key, data position; never the base.

This is the only module that knows orbax. A checkpoint appears under its final name once it is complete. Of several
processes of a run only the first has checkpoints; the trained arrays are small and are sent to the others.
`surm.rundir.checkpoint_files` knows where checkpoints are stored, for instance in an object store.
"""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from surm import files
from surm.errors import InputError, one_line
from surm.machine import buckets, notes
from surm.machine.stopping import Stopped
from surm.rundir import checkpoint_files

State = TypeVar("State")
DAMAGED = "damaged_"
"""The prefix of a checkpoint that could not be read; nothing reads or removes it any more."""


class Checkpoints:
    """The checkpoints in one folder, as a context manager that waits for the last write."""

    def __init__(self, folder: epath.Path, keep: int, keep_best: int = 0):
        """Opens (or creates) the folder; remains of an interrupted write are removed before the next write starts.

        Args:
          folder: the folder of the checkpoints.
          keep: number of the newest checkpoints to keep.
          keep_best: number of further checkpoints to keep, the best by the metric that `save` is given.
        """
        self._place, self._keep, self._keep_best = checkpoint_files.Place(folder), keep, keep_best
        self._manager, self._failed = self._opened(), ""

    def _opened(self) -> ocp.CheckpointManager:
        policies = ocp.checkpoint_managers
        newest = policies.LatestN(self._keep)
        best = policies.BestN(get_metric_fn=_ranked, n=self._keep_best, keep_checkpoints_without_metrics=False)
        folder = self._place.folder
        folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([newest, best]) if self._keep_best else newest,
            best_fn=_main,  # chooses nothing here, but makes orbax write metrics down
            save_decision_policy=policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}),
        )
        return ocp.CheckpointManager(
            folder.absolute(),
            options=options,
            item_handlers={"state": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()},
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the last write, and raises OSError if it failed, because a run must have saved before it stops."""
        failure = self._failure(self._closed)
        if (failure or self._failed) and kind is Stopped:
            raise OSError(failure or self._failed)
        self._say(failure)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def measured(self) -> dict[int, float | None]:
        """The steps that are kept, each with the metric that `save` was given, or None."""
        steps = sorted(self._manager.all_steps())
        found = {step: self._manager.metrics(step) for step in steps}
        return {step: None if metrics is None else _main(metrics) for step, metrics in found.items()}

    def state(self, step: int) -> Any:
        """The state of a step that is kept, as numpy arrays; InputError if it cannot be read."""
        try:
            return jax.tree.map(np.asarray, self._restored(step, state=ocp.args.StandardRestore()))
        except Exception as error:  # orbax raises exceptions of many types for damaged files
            said = one_line(f"{type(error).__name__}: {error}")
            where = str(self._place.place / str(step))
            raise InputError(f"the checkpoint {where!r} cannot be read ({said})") from error

    def save(self, step: int, state: Any, notes: dict[str, Any], metric: float | None = None) -> None:
        """Writes a checkpoint in the background; one of the same step is left as it is.

        If it cannot be written, for instance because the disk is full, a warning is printed on the error stream, and
        the run continues with the earlier checkpoints.

        Args:
          step: number of finished training steps.
          state: a tree of numpy arrays, not changed afterwards.
          notes: further state that the run needs to continue, such as the data position, as JSON values.
          metric: the metric of the step on the held-out split, of which more is better; None if it was not evaluated.
        """
        if failure := self._failure(self._written):
            self._say(failure)
        if failure or self._failed:
            self._manager = self._opened()
        if step != self.latest_step:
            items = ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes))
            metrics = None if metric is None else {"main": metric, "step": step}
            self._failed = self._failure(lambda: self._manager.save(step, args=items, metrics=metrics, force=True))
            self._say(self._failed)
        self._send()

    def _send(self) -> None:
        """Sends complete checkpoints of the local folder to the store, if they belong in one."""
        if self._place.is_remote:
            self._failed = self._failed or self._failure(self._manager.wait_until_finished)
            self._place.write()

    def _written(self) -> None:
        """Waits until everything is written; raises the error of a failed write."""
        self._manager.wait_until_finished()
        self._place.wait()

    def newest(
        self, like: State, check: Callable[[dict[str, Any]], None] = lambda notes: None
    ) -> tuple[int, State, dict[str, Any]] | None:
        """The newest checkpoint that can be read; newer, damaged ones are renamed with a warning on the error stream.

        Args:
          like: a state of the same structure, shapes and dtypes, with arrays of any kind.
          check: is called with the notes before the state is read; its exceptions are passed on.

        Returns:
          Its step, state (of numpy arrays) and notes; None if there is no checkpoint.

        Raises:
          InputError: if there are checkpoints but none can be read, because they are damaged or have another structure.
          PermissionError: if they may not be read.
        """
        abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        errors: dict[int, Exception] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                notes = self._restored(step, notes=ocp.args.JsonRestore())
                check(notes)
                state = self._restored(step, state=ocp.args.StandardRestore(abstract))
                _check_like(abstract, state)
            except (InputError, PermissionError, MemoryError):  # these do not mean that the checkpoint is damaged
                raise
            except Exception as error:  # orbax raises exceptions of many types for damaged files
                errors[step] = error
                continue
            self._set_aside(errors)
            return step, state, notes
        if errors:
            step, error = next(iter(errors.items()))
            raise InputError(
                f"the checkpoint {str(self._place.place / str(step))!r} cannot be read "
                f"({one_line(f'{type(error).__name__}: {error}')}), nor any before it; remove "
                f"{str(self._place.place)!r} to start afresh, or name another workdir"
            ) from error
        return None

    def _restored(self, step: int, **item: ocp.args.CheckpointArgs) -> Any:
        """Restores one of a checkpoint's items."""
        (restored,) = self._manager.restore(step, args=ocp.args.Composite(**item)).values()
        return restored

    def _closed(self) -> None:
        try:
            self._written()
        finally:
            self._manager.close()

    def _set_aside(self, errors: dict[int, Exception]) -> None:
        for step, error in errors.items():
            before = sum(name.startswith(f"{DAMAGED}{step}") for name in self._place.names())
            aside = self._place.rename(step, f"{DAMAGED}{step}{f'_{before + 1}' if before else ''}")
            said = one_line(f"{type(error).__name__}: {error}")
            notes.warn(f"the checkpoint of step {step} cannot be read ({said}); it is {aside} now")
        if errors:
            self._manager.reload()

    def _failure(self, act: Callable[[], object]) -> str:
        """One line that says why a write failed; empty if it did not."""
        try:
            act()
        except Exception as error:  # orbax passes on exceptions of many types from the file system's driver
            # Python would report coroutines that orbax left unfinished when the process ends, after our last line.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            return f"a checkpoint in {self._place.place} failed: {one_line(error)}"
        return ""

    def _say(self, failure: str) -> None:
        if failure:
            notes.warn(f"{failure}; the run continues with the earlier checkpoints")


def trained(folder: epath.Path) -> list[str] | None:
    """The paths of the trained arrays in the newest checkpoint that records them; the folder is not changed.

    Args:
      folder: a folder of checkpoints; it need not exist.

    Returns:
      Dotted paths. None if no checkpoint records them, and for a store, because surm 0.1.0, whose specs could train
      other arrays, never wrote to a store.
    """
    local = not buckets.holds(folder) and folder.is_dir()
    steps = [int(each.name) for each in folder.iterdir() if each.name.isdecimal()] if local else []
    for step in sorted(steps, reverse=True):
        with contextlib.suppress(Exception):  # `Checkpoints.newest` reports damaged checkpoints
            state = files.absolute(folder / str(step) / "state")
            return [*ocp.StandardCheckpointHandler().metadata(state).tree["trainable"]]
    return None


def _main(metrics: dict[str, float]) -> float:
    return metrics["main"]


def _ranked(metrics: dict[str, float]) -> tuple[float, float]:
    """The order of checkpoints: by the metric; of equally good ones the earlier is better."""
    return metrics["main"], -metrics.get("step", 0)


def _check_like(expected: Any, found: Any) -> None:
    """Checks the shapes of restored numpy arrays, because orbax does not."""
    shapes = [jax.tree.map(lambda array: (array.shape, array.dtype), tree) for tree in (expected, found)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"it holds {shapes[1]}, expected {shapes[0]}")
