"""The training loop, and how it continues from a checkpoint.

The order within an iteration is fixed: stop if asked to -> evaluate if due -> save if due -> next batch -> step -> log
the metrics of the previous step, and raise an error if they are not finite. A run that was stopped and started again
ends exactly as if it had never stopped.
"""

import hashlib
import time
from typing import Any

import jax
import numpy as np
from flax import nnx

from surm.errors import InputError
from surm.machine import mesh as meshes
from surm.machine import processes
from surm.machine.notes import say
from surm.machine.processes import StopRequest
from surm.machine.stopping import Stopped
from surm.rundir import checkpoint
from surm.rundir.log import Log
from surm.rundir.workdir import Workdir
from surm.tasks import choosing, evaluate
from surm.tasks.metric import Metric
from surm.training import placing, signature
from surm.training.prepared import Run
from surm.training.program import Program
from surm.training.progress import Progress, Trace
from surm.training.step import TrainState, answering
from surm.training.trained import Chosen, Trained

_COMPILING = 3  # first steps, which wait for the compiler or for memory


class Loop:
    """A run while it trains: its state, and the evaluation and saving between two steps."""

    def __init__(
        self,
        prepared: Run,
        folder: Workdir,
        saved: checkpoint.Checkpoints | None,
        program: Program,
        log: Log,
        mesh: jax.sharding.Mesh,
    ):
        """Starts a run from its newest checkpoint, or afresh if there is none.

        Args:
          prepared: the run.
          folder: its folder.
          saved: its checkpoints; None in all processes but the first.
          program: its compiled functions.
          log: receives its metrics.
          mesh: its devices.

        Raises:
          InputError: if no checkpoint can be read, or the newest one belongs to other weights or examples.
        """
        self.began, self.earlier = time.perf_counter(), 0.0
        self.prepared, self.folder, self.saved, self.program, self.log = prepared, folder, saved, program, log
        self.state, self.batches = program.initial(), program.batches
        self.evaluated: tuple[int, dict[str, Any]] = (-1, {})  # the last evaluated step, and its metrics
        self.confused: tuple[int, str, Any] = (-1, "", None)  # step, split and matrix of the last confusion matrix
        self.frozen = placing.placed(prepared, mesh)
        self.mesh, self.split = mesh, prepared.config.data.eval_split  # the split that is reported
        self.best = None if prepared.validation_batches is None else self._first_best()
        self.belongs_to = signature.of_sources(prepared)
        nnx.update(prepared.model, placing.originals(prepared, self.frozen))
        processes.check_same("base or data", self.belongs_to)
        self.inputs = signature.of_inputs(prepared)
        self.start = self.reached = self._resume()

    @property
    def seconds(self) -> float:
        """The seconds spent on the run so far, including the time before it was last stopped."""
        return self.earlier + time.perf_counter() - self.began

    def train(self, asked: StopRequest) -> list[float]:
        """Takes the remaining steps and saves a checkpoint at the end.

        Args:
          asked: tells whether the run was asked to stop.

        Returns:
          The seconds of each step.

        Raises:
          Stopped: if the run was asked to stop; a checkpoint has been written.
          NonFiniteError: if a metric is not finite.
        """
        config, total = self.prepared.config, self.prepared.total_steps
        traced = config.profile_steps if self.folder.writes else 0
        trace = Trace(self.folder.path / "profile", self.start + _COMPILING, traced)
        task = self.prepared.task
        with Progress(self.log, config, self.start, total, task.counts) as progress, trace:
            for step in range(self.start, total):
                if number := asked.signal():
                    progress.flush()
                    self.save(step)
                    raise Stopped(number, step)
                if _due(step, config.eval_every_steps):
                    progress.flush()
                    self.evaluate(step)
                if self.best and self.best.exhausted:
                    say(self.best.told(step))
                    break
                if _due(step, config.checkpoint_every_steps):
                    progress.flush()
                    self.save(step)
                trace.before(step, progress.flush)
                progress.before()
                batch = next(self.batches)
                self.state, values = self.program.step(self.state, self.frozen, batch)
                self.reached = step + 1
                progress.step(self.reached, values, task.counted(batch) * self.program.share.count)
            progress.flush()
        if config.keep_best_checkpoints and not self.best:  # the last step may be the best
            self.evaluate(self.reached)
        self.save(self.reached)
        if self.best:  # after saving, because a longer run would not evaluate at this step
            self.evaluate(self.reached)
        if number := asked.signal():
            raise Stopped(number, self.reached)
        return progress.step_seconds

    def evaluate(self, step: int) -> Any:
        """Evaluates and logs the reported splits, or the validation split if the best step is chosen by it."""
        if self.best is None:
            values = self._measured(step, self.split, self.prepared.evaluation_batches, self.state)
        else:
            values = self._measured(step, "validation", {"": self.prepared.validation_batches}, self.state)
            self.best.take(step, values, lambda: self._taken(answering(self.state)))
        self.evaluated = step, values
        return values

    def end(self, step_seconds: list[float]) -> Trained:
        """Evaluates the last step, or the chosen best step, on the reported splits.

        Args:
          step_seconds: from `train`.

        Returns:
          The trained state with its metrics; the caller adds `overrides`.
        """
        if self.best is None:
            values, confusion = self.evaluate(self.reached), self._confusion(self.reached, self.state)
            return Trained(self._taken(self.state), values, confusion, step_seconds, self.seconds)
        state = meshes.put_everywhere(self.mesh, self.program.packing.pack({"trainable": self.best.arrays}))
        values = self._measured(self.best.step, self.split, self.prepared.evaluation_batches, state)
        confusion = self._confusion(self.best.step, state)
        chosen = Chosen(self.best.step, self.best.values, self.reached)
        return Trained({"trainable": self.best.arrays}, values, confusion, step_seconds, self.seconds, chosen)

    @property
    def chooses_by(self) -> Metric:
        """The metric that decides which step is best: the main metric of the task, or the loss."""
        every = self.prepared.task.metrics
        by_loss = self.prepared.config.eval.choose == "least_loss"
        return next(metric for metric in every if metric.name == "loss") if by_loss else every[0]

    def _measured(self, step: int, split: str, batches: dict[str, Any], state: TrainState) -> Any:
        """Evaluates a split and logs the metrics; takes them from the log if they are already there."""
        values = self.log.logged(step, split)  # by this run, before it was stopped
        if values is None:
            values = self._measure(batches, state)
            self.confused = step, split, values.pop(evaluate.CONFUSION, None)
            self.log.take(step, split, values)
        return values

    def _measure(self, batches: dict[str, Any], state: TrainState) -> dict[str, Any]:
        """The metrics of all splits by name; the suffix of each split is appended."""
        return {
            name + ending: value
            for ending, open_batches in batches.items()
            for name, value in self.program.measure(state, self.frozen, open_batches(self.program.share)).items()
            if not ending or name != evaluate.CONFUSION
        }

    def _confusion(self, step: int, state: TrainState) -> Any:
        """The confusion matrix of the reported split, evaluated again if its metrics came from the log.

        It is None for regression, for more than `MOST_CLASSES` classes, and for a task without classes.
        """
        if self.prepared.task.outputs is None:
            return None
        if self.confused[:2] != (step, self.split):
            values = self._measure(self.prepared.evaluation_batches, state)
            self.confused = step, self.split, values.get(evaluate.CONFUSION)
        return self.confused[2]

    def _first_best(self) -> choosing.Best:
        return choosing.Best(self.chooses_by, self.prepared.config.eval.patience, self._taken(answering(self.state)))

    def _taken(self, packed: Any) -> Any:
        """A copy of the state, or of a part of it, in this process's memory, with an array for every path."""
        return self.program.packing.unpack(meshes.take(self.mesh, packed))

    def save(self, step: int) -> None:
        """Writes a checkpoint in the background."""
        state = self._taken(self.state)
        self.log.flush()
        if self.saved is None:
            return
        notes = {"data": self.batches.get_state(), "log": self.log.notes, "seconds": self.seconds}
        notes |= {"inputs": self.inputs, **self.belongs_to}
        if self.best:
            state["best"], notes["best"] = self.best.arrays, self.best.notes
        (at, values), by = self.evaluated, self.chooses_by
        goodness = float(np.nanmax(by.goodness(values[by.name]))) if at == step else None
        self.saved.save(step, state, notes, goodness)

    def _resume(self) -> int:
        """Restores the newest checkpoint, if there is one; returns the number of finished steps."""
        shapes = jax.eval_shape(self.program.packing.unpack, self.state)
        state = jax.tree.map(lambda value: np.zeros(value.shape, value.dtype), shapes)
        state |= {"best": self.best.arrays} if self.best else {}

        def newest() -> tuple[int, dict[str, Any]] | None:
            nonlocal state
            if (found := self.saved.newest(state, self._check_belongs)) is None:
                return None
            step, state, notes = found
            return step, notes

        if (newest_of_first := processes.from_first(newest)) is None:
            processes.check_same("initial state", _digests(self.state))
            self.log.start(0, {})
            return 0
        step, notes = newest_of_first
        state = processes.copied_from_first(state)
        if self.best:
            self.best.restore(notes["best"], state.pop("best"))
        state = self.program.packing.pack(state)
        self.state = jax.tree.map(lambda now, value: meshes.put(now.sharding, value), self.state, state)
        say(f"going on after step {step}, from the checkpoint in {self.folder.checkpoints}")
        self.batches.set_state(notes["data"])
        self.earlier = notes["seconds"]
        self.log.start(step, notes["log"])
        return step

    def _check_belongs(self, notes: dict[str, Any]) -> None:
        other = signature.others(self.belongs_to, notes, self.prepared)
        if not other and not signature.same(notes.get("inputs", self.inputs), self.inputs):
            other = ["pixels or tokens"]
        if other:
            moved = "; ".join(str(change) for change in self.folder.changes if change.decision == "content")
            raise InputError(
                f"the checkpoint of {str(self.folder.path)!r} does not fit the config as it is now: they differ in the "
                f"{other[0]}{moved and f' ({moved})'}; name another workdir"
            )


def _digests(state: TrainState) -> dict[str, str]:
    """A hash of the trained arrays that every process holds, to compare processes; empty if there is only one."""
    if jax.process_count() == 1:
        return {}
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        if leaf.is_fully_replicated:  # members that are spread over devices exist once, and cannot differ
            found.update(np.asarray(leaf.addressable_data(0)).tobytes())
    return {"sha256": found.hexdigest()}


def _due(step: int, every: int) -> bool:
    return bool(every) and step > 0 and step % every == 0
