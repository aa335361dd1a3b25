"""Populations: runs that differ in a few numbers, trained together as one program with one copy of the frozen base.

    python -m surm.train --config=configs/vit_digits.py --workdir=runs/grid \\
        --config.population='seed=0|1|2|3,learning_rate=2e-3|4e-3|8e-3|16e-3'

Every combination of the values is a member. Adapters and optimiser states have a first axis of members, over which the
step is mapped. Up to rounding, every member ends with the numbers of the same run trained alone. The folder holds a
result that summarises the population, and for every member a folder like that of a run, but without checkpoints, which
hold all members together.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from surm.data.share import WHOLE
from surm.errors import InputError
from surm.machine import mesh as meshes
from surm.matrices.algebra.platforms import platform_of
from surm.ops.spread import spread
from surm.peft import store
from surm.rundir.log import Values
from surm.tasks.task import Batch
from surm.training import optim, placing, preparation, read_keys, stacking, writing
from surm.training.members import Member
from surm.training.optim import Hyperparameters
from surm.training.prepared import Run
from surm.training.program import Program, answer_of, kept_to_write
from surm.training.step import TrainState, answering, initial_state, train_step


class SeedBatches:
    """An iterator over stacked batches, one for each seed of a population; members with the same seed share one."""

    def __init__(self, each: Sequence[grain.DatasetIterator]):
        """Takes one iterator per seed."""
        self._each = each

    def __next__(self) -> Batch:
        """The next batches, stacked along a new first axis of seeds; texts are padded to the longest."""
        batches = [next(batches) for batches in self._each]
        return {name: _stack([batch[name] for batch in batches]) for name in batches[0]}

    def get_state(self) -> list[Any]:
        """The positions of all iterators."""
        return [batches.get_state() for batches in self._each]

    def set_state(self, state: list[Any]) -> None:
        """Moves all iterators to positions from `get_state`."""
        for batches, position in zip(self._each, state, strict=True):
            batches.set_state(position)


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks arrays whose second axes may differ in length; shorter ones are padded with zeros, which weigh nothing."""
    if arrays[0].ndim == 2:
        longest = max(array.shape[1] for array in arrays)
        arrays = [np.pad(array, [(0, 0), (0, longest - array.shape[1])]) for array in arrays]
    return np.stack(arrays)


def _check_spread(config: ml_collections.ConfigDict, members: int, mesh: jax.sharding.Mesh) -> None:
    """Refuses a population that cannot be spread over the devices of the data axis."""
    if members % mesh.shape["data"]:
        raise InputError(
            f"{members} members do not divide among config.mesh.data={mesh.shape['data']} devices "
            "(config.mesh.shard_members)"
        )
    if config.members_at_once:
        raise InputError(
            "config.members_at_once and config.mesh.shard_members exclude each other: every device computes all its "
            "members at once"
        )


def program(prepared: Run, every: Sequence[Member], mesh: jax.sharding.Mesh) -> Program:
    """The program that trains all members of a population together.

    Args:
      prepared: the run; its config is that of the population.
      every: the members, from `surm.training.members.listed`.
      mesh: from `surm.machine.mesh.mesh_of`.

    Returns:
      The program; its state and metrics have a first axis of members.

    Raises:
      InputError: if the members do not divide among the devices, or the config of a member does not fit the data.
        `initial` raises it if the members have different frozen bases, as random bases with different seeds are.
    """
    config, apart = prepared.config, prepared.config.mesh.shard_members
    share = WHOLE if apart else placing.share_of(mesh)
    if apart:
        _check_spread(config, len(every), mesh)
    seeds = list(dict.fromkeys(member.config.seed for member in every))
    for member in every:
        read_keys.check(member.config, prepared.data)
    of_members = meshes.over_data(mesh) if apart else meshes.replicated(mesh)
    at_once = config.members_at_once or (1 if platform_of() == "cpu" and not apart else len(every))
    slots = jnp.array([seeds.index(member.config.seed) for member in every])
    numbers = meshes.put(of_members, _numbers(prepared, every))
    on_mesh = spread(rows=not apart, kernels=config.mesh.shard_base)
    one_step, one_answer = on_mesh(train_step(prepared)), on_mesh(answer_of(prepared))

    def step_of_one(of_one: tuple[TrainState, Hyperparameters, jax.Array], frozen: nnx.State, batches: Batch) -> Any:
        state, numbers, slot = of_one
        batch = jax.tree.map(lambda batch: batch[slot], batches)
        return one_step(state, frozen, batch, numbers)

    def answer_of_one(of_one: tuple[TrainState, Hyperparameters], frozen: nnx.State, batch: Batch) -> Any:
        state, numbers = of_one
        return one_answer(answering(state), frozen, batch, numbers.scale)

    def steps(states: TrainState, numbers: Hyperparameters, frozen: nnx.State, batches: Batch) -> Any:
        return _mapped(lambda of_one: step_of_one(of_one, frozen, batches), (states, numbers, slots), at_once)

    def answers(states: TrainState, numbers: Hyperparameters, frozen: nnx.State, batch: Batch) -> Any:
        found = _mapped(lambda of_one: answer_of_one(of_one, frozen, batch), (states, numbers), at_once)
        return found | prepared.task.known(batch)

    all_steps = jax.jit(steps, donate_argnums=0, out_shardings=(of_members, meshes.replicated(mesh)))
    all_answers = jax.jit(answers, out_shardings=meshes.replicated(mesh))

    def put(batch: Batch, axis: int = 0) -> Batch:
        return meshes.put_everywhere(mesh, batch) if apart else meshes.put_batch(mesh, batch, axis)

    def measure(states: TrainState, frozen: nnx.State, batches: Iterator[Batch]) -> Values:
        batches, writes = kept_to_write(prepared, batches)
        found = (all_answers(states, numbers, frozen, put(batch)) for batch in batches)
        each = prepared.task.measured(found, members=len(every))
        for member, values in enumerate(each if writes else ()):
            own = jax.tree.map(lambda leaf, at=member: leaf[at], answering(states))
            scale = None if numbers.scale is None else float(numbers.scale[member])
            values |= writing.exact_match(prepared, batches, own, scale)
        return {name: np.array([values[name] for values in each]) for name in each[0]}

    return Program(
        initial=lambda: meshes.put(of_members, _states(prepared, every)),
        step=lambda states, frozen, batch: all_steps(states, numbers, frozen, put(batch, axis=1)),
        trace=lambda states, frozen, batch: all_steps.trace(states, numbers, frozen, put(batch, axis=1)),
        measure=measure,
        packing=stacking.packing({}, frozenset()),
        batches=SeedBatches([prepared.training_batches(seed, share) for seed in seeds]),
        share=share,
    )


def _mapped(function: Any, each: Any, at_once: int) -> Any:
    """Maps a function over members in groups of `at_once`; a group is vectorised, and groups run one after another."""
    count = len(jax.tree.leaves(each)[0])
    if at_once >= count:
        return jax.vmap(function)(each)
    return jax.lax.map(function, each, batch_size=at_once if at_once > 1 else None)


def _numbers(prepared: Run, every: Sequence[Member]) -> Hyperparameters:
    """The members' hyperparameters, stacked."""
    scales = [member.config.peft.scale for member in every]
    each = [optim.hyperparameters(member.config.optim, member.plan.spec, prepared.total_steps) for member in every]
    if any(scale != prepared.config.peft.scale for scale in scales):  # otherwise the model's own, a constant
        each = [numbers._replace(scale=np.float32(scale)) for numbers, scale in zip(each, scales, strict=True)]
    return jax.tree.map(lambda *values: np.stack(values), *each)


def _states(prepared: Run, every: Sequence[Member]) -> TrainState:
    """The members' states before the first step, stacked; each is the initial state of that run trained alone."""
    averaged = any(member.config.optim.ema_decay for member in every)
    weights, base = preparation.weights_of(prepared.config), store.base_hash(prepared.model)
    of_seed: dict[int, TrainState] = {}
    for member in every:
        if member.config.seed not in of_seed:
            model = preparation.adapted(
                member.plan, weights, prepared.data, resumed=prepared.resumed, saved=prepared.saved, quiet=True
            )
            if store.base_hash(model) != base:
                raise InputError(
                    f"config.population: seed={member.config.seed} has another frozen base than seed="
                    f"{prepared.config.seed}, because the weights {member.config.model.weights!r} are random; name "
                    "pretrained ones in config.model.weights"
                )
            seed = member.config.seed
            of_seed[seed] = jax.tree.map(np.asarray, initial_state(prepared, seed, averaged=averaged, model=model))
    return jax.tree.map(lambda *values: np.stack(values), *[of_seed[member.config.seed] for member in every])
