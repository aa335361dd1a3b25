"""The compiled functions of one run; `surm.training.population` has those of a population."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx

from surm.data.share import Share
from surm.machine import mesh as meshes
from surm.models import scanned
from surm.models.scanned import Layout
from surm.ops.spread import spread
from surm.peft import surgery
from surm.tasks.task import Answers, Batch
from surm.training import optim, placing, writing
from surm.training.prepared import Run
from surm.training.stacking import Packing
from surm.training.step import TrainState, answering, initial_state, packed_step, packing_of


@runtime_checkable
class Batches(Protocol):
    """An endless iterator over batches whose position can be saved."""

    def __next__(self) -> Batch:
        """The next batch, as numpy arrays."""

    def get_state(self) -> Any:
        """The position, as JSON values."""

    def set_state(self, state: Any) -> None:
        """Moves to a position from `get_state`."""


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions that the training loop calls, for one run or for all members of a population together.

    Attributes:
      initial: returns the state before the first step. It is packed (`surm.training.step.TrainState`), and so is the
        state that the other functions take and return; that of a population is by path.
      step: a compiled function (state, frozen, batch) -> (state, metrics). It donates the given state, so that state
        must not be used afterwards.
      trace: a function of the same arguments that traces the step without compiling it.
      measure: a function (state, frozen, batches of one pass) -> metrics.
      packing: the functions between this form of the state and that by path.
      batches: the training batches.
      share: the part of every batch that this process reads.
    """

    initial: Callable[[], TrainState]
    step: Callable[[TrainState, nnx.State, Batch], tuple[TrainState, dict[str, jax.Array]]]
    trace: Callable[[TrainState, nnx.State, Batch], jax.stages.Traced]
    measure: Callable[[TrainState, nnx.State, Iterator[Batch]], dict[str, Any]]
    packing: Packing
    batches: Batches
    share: Share


def of_run(prepared: Run, mesh: jax.sharding.Mesh) -> Program:
    """Builds the program of one run on a mesh.

    Args:
      prepared: the prepared run.
      mesh: from `surm.machine.mesh.mesh_of`.

    Returns:
      The program.
    """
    config, share, everywhere = prepared.config, placing.share_of(mesh), meshes.replicated(mesh)
    numbers = optim.hyperparameters(config.optim, prepared.plan.spec, prepared.total_steps)
    numbers = meshes.put_everywhere(mesh, numbers)
    averaged = bool(config.optim.ema_decay)
    on_mesh = spread(rows=True, kernels=config.mesh.shard_base)
    one_step = jax.jit(on_mesh(packed_step(prepared)), donate_argnums=0, out_shardings=everywhere)
    packing, task = packing_of(prepared), prepared.task
    one_answer = answer_of(prepared, packing.layout)
    answer = jax.jit(
        on_mesh(lambda trainable, frozen, batch: one_answer(trainable, frozen, batch) | task.known(batch)),
        out_shardings=everywhere,
    )

    def measure(state: TrainState, frozen: nnx.State, batches: Iterator[Batch]) -> dict[str, Any]:
        batches, writes = kept_to_write(prepared, batches)
        found = (answer(answering(state), frozen, meshes.put_batch(mesh, batch)) for batch in batches)
        values = task.measured(found)[0]
        return values | (writing.exact_match(prepared, batches, packing.unpack(answering(state))) if writes else {})

    def initial() -> TrainState:
        return meshes.put_everywhere(mesh, packing.pack(initial_state(prepared, config.seed, averaged=averaged)))

    return Program(
        initial=initial,
        step=lambda state, frozen, batch: one_step(state, frozen, meshes.put_batch(mesh, batch), numbers),
        trace=lambda state, frozen, batch: one_step.trace(state, frozen, meshes.put_batch(mesh, batch), numbers),
        measure=measure,
        packing=packing,
        batches=prepared.training_batches(config.seed, share),
        share=share,
    )


def kept_to_write(prepared: Run, batches: Iterator[Batch]) -> tuple[Iterable[Batch], bool]:
    """The batches of one pass, as a list if a language model then writes their answers, and whether it does."""
    writes = getattr(prepared.task, "writes", False)
    return ([*batches] if writes else batches), writes


def answer_of(prepared: Run, layout: Layout | None = None) -> Callable[..., Answers]:
    """The evaluation of a run's model on a batch, not compiled.

    Args:
      prepared: the prepared run.
      layout: which of the trained arrays are stacked; None if none are.

    Returns:
      A function (trainable, frozen, batch, scale) -> answers of the task; `scale` replaces the model's scale of updates
      unless it is None.
    """
    prepared.model.eval()
    graphdef, task = surgery.split(prepared.model)[0], prepared.task

    def answer(
        trainable: dict[str, jax.Array], frozen: nnx.State, batch: Batch, scale: jax.Array | None = None
    ) -> Answers:
        model = surgery.join(graphdef, scanned.spread(trainable, layout or {}), frozen, scale=scale)
        return task.answers(model(**task.inputs(batch)), batch)

    return answer
