"""The training loop: its order, and how it goes on after it was stopped.

The order is fixed: stop? -> eval? -> save? -> next batch -> step -> log, one step late -> stop on a non-finite loss.
Stopped and started again a run ends exactly as if it had never stopped.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from surm import checkpoint, evaluate, optim, processes
from surm import config as configs
from surm import mesh as meshes
from surm.data.share import Share
from surm.errors import InputError
from surm.peft import store, surgery
from surm.peft.variables import FixedParam
from surm.preparation import Run
from surm.processes import StopRequest
from surm.progress import Log, Progress, Trace
from surm.step import Batch, TrainState, answering, initial_state, train_step
from surm.stopping import Stopped
from surm.workdir import Workdir

_COMPILING = 3  # steps that wait for the compiler or for memory


class Batches(Protocol):
    """An endless iterator over batches whose position can be saved."""

    def __next__(self) -> Batch:
        """The next batch, on the devices' host."""

    def get_state(self) -> Any:
        """The position, as JSON values."""

    def set_state(self, state: Any) -> None:
        """Goes to a position."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What a loop does at every step: of one run, or of the members of a population together.

    Attributes:
      initial: makes the state before the first step.
      step: compiled; a function (state, frozen, batch) -> (state, metrics) that reuses the given state's buffers.
      lower: the same, taken only to where it can be compiled and looked at.
      measure: a function (state, frozen, one pass of batches) -> metrics.
      batches: what is trained on.
      share: the part of every batch that this process reads.
    """

    initial: Callable[[], TrainState]
    step: Callable[[TrainState, nnx.State, Batch], tuple[TrainState, dict[str, jax.Array]]]
    lower: Callable[[TrainState, nnx.State, Batch], jax.stages.Lowered]
    measure: Callable[[TrainState, nnx.State, Iterator[Batch]], dict[str, Any]]
    batches: Batches
    share: Share


def program(prepared: Run, mesh: jax.sharding.Mesh) -> Program:
    """That of one run, on a mesh.

    Args:
      prepared: the run.
      mesh: from `surm.mesh.mesh_of`.

    Returns:
      The program.
    """
    config, share, everywhere = prepared.config, meshes.share_of(mesh), meshes.replicated(mesh)
    numbers = optim.hyperparameters(config.optim, configs.spec(config), prepared.total_steps)
    numbers = meshes.put_everywhere(mesh, numbers)
    averaged = bool(config.optim.ema_decay)
    one_step = jax.jit(train_step(prepared), donate_argnums=0, out_shardings=everywhere)
    answer = jax.jit(answer_of(prepared), out_shardings=everywhere)

    def measure(state: TrainState, frozen: nnx.State, batches: Iterator[Batch]) -> dict[str, float]:
        found = (answer(answering(state), frozen, meshes.put_batch(mesh, batch)) for batch in batches)
        return evaluate.measured(found, prepared.data.metrics)[0]

    return Program(
        initial=lambda: meshes.put_everywhere(mesh, initial_state(prepared, config.seed, averaged=averaged)),
        step=lambda state, frozen, batch: one_step(state, frozen, meshes.put_batch(mesh, batch), numbers),
        lower=lambda state, frozen, batch: one_step.lower(state, frozen, meshes.put_batch(mesh, batch), numbers),
        measure=measure,
        batches=prepared.training_batches(config.seed, share),
        share=share,
    )


def answer_of(prepared: Run) -> Callable[..., evaluate.Answers]:
    """What a run's model says to a batch; see `surm.evaluate.answer`."""
    prepared.model.eval()
    graphdef = surgery.split(prepared.model)[0]
    return evaluate.answer(graphdef, prepared.inputs, regression=prepared.data.regression)


def narrowed(frozen: nnx.State, dtype: jax.typing.DTypeLike) -> nnx.State:
    """The frozen part of a model with its matrices in the dtype that the model computes in.

    Every use would round them so anyway: results are the same, bit for bit. Vectors stay as they are, norms need them;
    so do a method's own fixed matrices.

    Args:
      frozen: from `surgery.split`.
      dtype: of all of the model's computations; any other would change results.

    Returns:
      The same, narrower.
    """

    def rounded(leaf: jax.Array | FixedParam) -> jax.Array | FixedParam:
        if isinstance(leaf, FixedParam) or leaf.ndim <= 1 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.astype(dtype)

    return jax.tree.map(rounded, frozen, is_leaf=lambda node: isinstance(node, FixedParam))


def placed(prepared: Run, mesh: jax.sharding.Mesh) -> nnx.State:
    """The frozen part of a run's model on its devices, in the type that it computes in."""
    frozen = narrowed(surgery.split(prepared.model)[2], prepared.config.model.dtype)
    return meshes.put_base(mesh, frozen, sharded=prepared.config.mesh.shard_base)


class Loop:
    """A run while it trains: its state between two steps, and what is done with it there."""

    def __init__(
        self,
        prepared: Run,
        folder: Workdir,
        saved: checkpoint.Checkpoints | None,
        program: Program,
        log: Log,
        mesh: jax.sharding.Mesh,
    ):
        """Starts afresh or from the newest checkpoint; those are of the first process, None in the others.

        Raises:
          InputError: if that checkpoint is damaged, or belongs to other weights or examples.
        """
        self.began, self.earlier = time.perf_counter(), 0.0
        self.prepared, self.folder, self.saved, self.program, self.log = prepared, folder, saved, program, log
        self.state, self.batches = program.initial(), program.batches
        self.evaluated: tuple[int, dict[str, Any]] = (-1, {})  # at which step last, and what was found
        self.frozen = placed(prepared, mesh)
        self.mesh = mesh
        self.belongs_to = {"weights": store.base_hash(prepared.model), "examples": prepared.data.fingerprint()}
        self.belongs_to |= {"preparation of images": prepared.processor.to_json()} if prepared.processor else {}
        nnx.update(prepared.model, jax.tree.map(_off_device, surgery.split(prepared.model)[2], self.frozen))
        processes.check_same("base or data", self.belongs_to)
        self.start = self._resume()

    @property
    def seconds(self) -> float:
        """Spent on the run so far, before it was stopped included."""
        return self.earlier + time.perf_counter() - self.began

    def train(self, asked: StopRequest) -> list[float]:
        """Takes the steps that are left, saves at the end; seconds of each step. Raises Stopped if asked to stop."""
        config, total = self.prepared.config, self.prepared.total_steps
        traced = config.profile_steps if self.folder.writes else 0
        trace = Trace(self.folder.path / "profile", self.start + _COMPILING, traced)
        with Progress(self.log, config, self.start, total) as progress, trace:
            for step in range(self.start, total):
                if number := asked.signal():
                    progress.flush()
                    self.save(step)
                    raise Stopped(number, step)
                if _due(step, config.eval_every_steps):
                    progress.flush()
                    self.evaluate(step)
                if _due(step, config.checkpoint_every_steps):
                    progress.flush()
                    self.save(step)
                trace.before(step, progress.flush)
                progress.before()
                self.state, values = self.program.step(self.state, self.frozen, next(self.batches))
                progress.step(step + 1, values)
            progress.flush()
        self.save(total)
        if number := asked.signal():
            raise Stopped(number, total)
        return progress.step_seconds

    def evaluate(self, step: int) -> Any:
        """The metrics on all held-out splits, logged; read from the log where they are there already."""
        split = self.prepared.config.data.eval_split
        values = self.log.logged(step, split)  # by this run, before it was stopped
        if values is None:
            share, measure = self.program.share, self.program.measure
            values = {
                name + ending: value
                for ending, open_batches in self.prepared.evaluation_batches.items()
                for name, value in measure(self.state, self.frozen, open_batches(share)).items()
            }
            self.log.take(step, split, values)
        self.evaluated = step, values
        return values

    def save(self, step: int) -> None:
        """Writes a checkpoint in the background."""
        state = meshes.take(self.mesh, self.state)
        self.log.flush()
        if self.saved is None:
            return
        notes = {"data": self.batches.get_state(), "log": self.log.notes, "seconds": self.seconds, **self.belongs_to}
        evaluated_at, values = self.evaluated
        metric = float(np.nanmax(values[self.prepared.data.metrics[0]])) if evaluated_at == step else None
        self.saved.save(step, state, notes, metric)

    def _resume(self) -> int:
        """Takes over what the newest checkpoint holds; the number of steps taken before."""
        state = jax.tree.map(lambda value: np.zeros(value.shape, value.dtype), self.state)

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
        self.state = jax.tree.map(lambda now, value: meshes.put(now.sharding, value), self.state, state)
        print(f"going on after step {step}, from the checkpoint in {self.folder.checkpoints}", flush=True)
        self.batches.set_state(notes["data"])
        self.earlier = notes["seconds"]
        self.log.start(step, notes["log"])
        return step

    def _check_belongs(self, notes: dict[str, Any]) -> None:
        for what, expected in self.belongs_to.items():
            if what not in notes and self.prepared.processor and self.prepared.processor.squashes:
                continue  # checkpoints of 0.1.0 do not say how images were prepared: they were squashed
            same = notes.get(what) == expected or (what == "examples" and self.prepared.data.is_of(notes[what]))
            if not same:
                raise InputError(
                    f"the checkpoint of {str(self.folder.path)!r} belongs to other {what} than the config's are now; "
                    "name another workdir"
                )


def _off_device(original: jax.Array, used: jax.Array) -> jax.Array | np.ndarray:
    """What has a copy on the devices waits in the host's memory for the end of the run: its hash is of the original."""
    if used is original or jax.dtypes.issubdtype(original.dtype, jax.dtypes.prng_key):
        return original
    return np.asarray(original)


def _digests(state: TrainState) -> dict[str, str]:
    """Of what trains and every process holds, to compare processes by; nothing where there is one."""
    if jax.process_count() == 1:
        return {}
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        if leaf.is_fully_replicated:  # of a member that is spread there is only one, which nothing can contradict
            found.update(np.asarray(leaf.addressable_data(0)).tobytes())
    return {"sha256": found.hexdigest()}


def _due(step: int, every: int) -> bool:
    return bool(every) and step > 0 and step % every == 0
