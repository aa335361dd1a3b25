"""Runs that differ in a few numbers, trained together as one program over one copy of the frozen base.

    python -m surm.train --config=configs/vit_digits.py --workdir=runs/grid \\
        --config.population='seed=0|1|2|3,learning_rate=2e-3|4e-3|8e-3|16e-3'

Every combination is a member. Adapters and optimiser states lie side by side on an axis of members, which the step is
mapped over; each member's numbers are those of its own run, up to rounding. The folder holds one result that sums up,
and of each member what a run's folder holds, but the checkpoints: those are of all members together.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from surm import config as configs
from surm import evaluate, optim, preparation, report, result, sweeps
from surm import mesh as meshes
from surm.errors import InputError, nearest
from surm.loop import Program, answer_of
from surm.optim import Hyperparameters
from surm.peft import store, surgery
from surm.preparation import Run
from surm.progress import NonFiniteError, Values, check_finite
from surm.step import Batch, TrainState, answering, initial_state, train_step
from surm.workdir import Workdir

KEYS = {
    "seed": int,
    "optim.learning_rate": float,
    "optim.head_learning_rate": float,
    "optim.weight_decay": float,
    "optim.head_weight_decay": float,
    "optim.momentum": float,
    "optim.warmup_fraction": float,
    "optim.schedule": str,
    "optim.gradient_clip": float,
    "optim.label_smoothing": float,
    "optim.ema_decay": float,
    "peft.scale": float,
}
"""What members may differ in: everything else would be another program."""


class Member(NamedTuple):
    """One run of a population: its folder's name, what sets it apart, by dotted key, and its configuration."""

    name: str
    overrides: dict[str, Any]
    config: ml_collections.ConfigDict


def members(config: ml_collections.ConfigDict) -> list[Member]:
    """The runs that `config.population` lists, the product of its lists.

    Args:
      config: with a population such as `seed=0|1|2,learning_rate=1e-3|3e-3`; keys may leave out `optim.` and `peft.`.

    Returns:
      A member for every combination, in order; none where there is no population.

    Raises:
      InputError: for a key that members cannot differ in, one named twice, or a value that is none of its kind.
    """
    lists: dict[str, list[Any]] = {}
    for part in filter(None, config.population.split(",")):
        name, _, values = part.partition("=")
        key = _key(name.strip())
        if key in lists:
            raise InputError(f"config.population={config.population!r} names {key} twice")
        lists[key] = [_value(key, text.strip()) for text in values.split("|")]
        if len({*lists[key]}) < len(lists[key]):
            raise InputError(f"config.population={config.population!r} names a value of {key} twice")
    if not lists:
        return []
    return [_member(config, dict(zip(lists, chosen, strict=True))) for chosen in itertools.product(*lists.values())]


def _key(name: str) -> str:
    found = [key for key in KEYS if name in (key, key.rpartition(".")[2])]
    if not found:
        raise InputError(
            f"config.population: members cannot differ in {name!r}; {nearest(name, KEYS)}; for anything else there is "
            "python -m surm.sweep"
        )
    return found[0]


def _value(key: str, text: str) -> Any:
    try:
        return KEYS[key](text)
    except ValueError as error:
        expected = "a whole number" if KEYS[key] is int else "a number"
        raise InputError(f"config.population: {key}={text!r}, expected {expected}") from error


def _member(config: ml_collections.ConfigDict, overrides: dict[str, Any]) -> Member:
    own = config.copy_and_resolve_references()
    own.update_from_flattened_dict({"population": "", "members_at_once": 0, "mesh.shard_members": False, **overrides})
    configs.check(own)
    return Member(sweeps.name(overrides), overrides, own)


class PopulationLog:
    """The log of every member, in its own folder; who fails is left behind, and the others go on."""

    def __init__(self, folders: Sequence[Workdir]):
        """Writes into the members' folders."""
        self._folders, self.failed = folders, {}

    @property
    def notes(self) -> dict[str, Any]:
        """Who has failed, by number, and why."""
        return {str(number): why for number, why in self.failed.items()}

    def take(self, step: int, split: str, values: Values, *, written: bool = True) -> None:
        """See `surm.progress.Log`; raises NonFiniteError when the last member has failed."""
        for number, folder in enumerate(self._folders):
            if number in self.failed:
                continue
            own = {name: float(value[number]) for name, value in values.items()}
            try:
                check_finite(step, own)
            except NonFiniteError as error:
                self.failed[number] = str(error)
                if len(self.failed) == len(self._folders):
                    raise NonFiniteError(f"every member has failed, the last at {error}") from error
                continue
            if written:
                folder.log(step, split, own)

    def logged(self, step: int, split: str) -> Values | None:
        """See `surm.progress.Log`."""
        found = [folder.logged(step, split) for folder in self._folders]
        there = [values for number, values in enumerate(found) if number not in self.failed]
        if any(values is None for values in there):
            return None
        lost = dict.fromkeys(there[0], math.nan)
        rows = [lost if number in self.failed else values for number, values in enumerate(found)]
        return {name: np.array([row[name] for row in rows]) for name in lost}

    def rewind(self, step: int, notes: dict[str, Any]) -> None:
        """See `surm.progress.Log`."""
        self.failed = {int(number): why for number, why in notes.items()}
        for folder in self._folders:
            folder.rewind(step)


class SeedBatches:
    """The next batch of every order: members with the same seed see the same one."""

    def __init__(self, each: Sequence[grain.DatasetIterator]):
        """Takes an iterator for every seed."""
        self._each = each

    def __next__(self) -> Batch:
        """Batches side by side; texts filled up to the longest."""
        batches = [next(batches) for batches in self._each]
        return {name: _stack([batch[name] for batch in batches]) for name in batches[0]}

    def get_state(self) -> list[Any]:
        """The positions."""
        return [batches.get_state() for batches in self._each]

    def set_state(self, state: list[Any]) -> None:
        """Goes to positions."""
        for batches, position in zip(self._each, state, strict=True):
            batches.set_state(position)


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays that may differ in the length of their second axis, filled up with zeros."""
    if arrays[0].ndim == 2:
        longest = max(array.shape[1] for array in arrays)
        arrays = [np.pad(array, [(0, 0), (0, longest - array.shape[1])]) for array in arrays]
    return np.stack(arrays)


def program(prepared: Run, every: Sequence[Member], log: PopulationLog, mesh: jax.sharding.Mesh) -> Program:
    """That of all members together.

    Args:
      prepared: the run, its config that of the population.
      every: from `members`.
      log: of their metrics.
      mesh: from `surm.mesh.mesh_of`.

    Returns:
      The program; its state has an axis of members in front.

    Raises:
      InputError: if the members' frozen bases differ, as random ones do, or the mesh does not divide them.
    """
    config, share = prepared.config, meshes.share_of(mesh)
    spread = config.mesh.shard_members
    if spread and len(every) % mesh.shape["data"]:
        raise InputError(
            f"{len(every)} members do not divide among config.mesh.data={mesh.shape['data']} devices "
            "(config.mesh.shard_members)"
        )
    seeds = list(dict.fromkeys(member.config.seed for member in every))
    of_members = meshes.over_data(mesh) if spread else meshes.replicated(mesh)
    at_once = config.members_at_once or (1 if jax.default_backend() == "cpu" and not spread else len(every))
    slots = jnp.array([seeds.index(member.config.seed) for member in every])
    numbers = jax.device_put(_numbers(every, prepared.total_steps), of_members)
    one_step, one_answer = train_step(prepared), answer_of(prepared)

    def step_of_one(of_one: tuple[TrainState, Hyperparameters, jax.Array], frozen: nnx.State, batches: Batch) -> Any:
        state, numbers, slot = of_one
        batch = jax.tree.map(lambda batch: batch[slot], batches)
        return one_step(state, frozen, batch, numbers)

    def answer_of_one(of_one: tuple[TrainState, Hyperparameters], frozen: nnx.State, batch: Batch) -> Any:
        state, numbers = of_one
        found = one_answer(answering(state), frozen, batch, numbers.scale)
        return {name: found[name] for name in ("loss", "predicted")}

    def steps(states: TrainState, numbers: Hyperparameters, frozen: nnx.State, batches: Batch) -> Any:
        return _mapped(lambda of_one: step_of_one(of_one, frozen, batches), (states, numbers, slots), at_once)

    def answers(states: TrainState, numbers: Hyperparameters, frozen: nnx.State, batch: Batch) -> Any:
        found = _mapped(lambda of_one: answer_of_one(of_one, frozen, batch), (states, numbers), at_once)
        return found | {"label": batch["label"], "mask": batch["mask"]}

    all_steps = jax.jit(steps, donate_argnums=0, out_shardings=(of_members, meshes.replicated(mesh)))
    all_answers = jax.jit(answers, out_shardings=meshes.replicated(mesh))

    def put(batch: Batch, axis: int = 0) -> Batch:
        return meshes.put_everywhere(mesh, batch) if spread else meshes.put_batch(mesh, batch, axis)

    def measure(states: TrainState, frozen: nnx.State, batches: Iterator[Batch]) -> Values:
        found = (all_answers(states, numbers, frozen, put(batch)) for batch in batches)
        each = evaluate.measured(found, prepared.data.metrics)
        return {name: np.array([values[name] for values in each]) for name in each[0]}

    return Program(
        state=jax.device_put(_states(prepared, every), of_members),
        step=lambda states, frozen, batch: all_steps(states, numbers, frozen, put(batch, axis=1)),
        measure=measure,
        batches=SeedBatches([prepared.training_batches(seed, meshes.Share() if spread else share) for seed in seeds]),
        log=log,
    )


def _mapped(function: Any, each: Any, at_once: int) -> Any:
    """A function of every member; so many of them side by side, the others after one another."""
    count = len(jax.tree.leaves(each)[0])
    if at_once >= count:
        return jax.vmap(function)(each)
    return jax.lax.map(function, each, batch_size=at_once if at_once > 1 else None)


def _numbers(every: Sequence[Member], steps: int) -> Hyperparameters:
    """What the members go by, side by side."""
    own_scale = len({member.config.peft.scale for member in every}) > 1
    each = [
        optim.hyperparameters(member.config.optim, configs.spec(member.config), steps)._replace(
            scale=np.float32(member.config.peft.scale) if own_scale else None
        )
        for member in every
    ]
    return jax.tree.map(lambda *values: np.stack(values), *each)


def _states(prepared: Run, every: Sequence[Member]) -> TrainState:
    """The members' states before the first step, side by side; each is that of its own run."""
    averaged = any(member.config.optim.ema_decay for member in every)
    weights, base = preparation.weights_of(prepared.config), store.base_hash(prepared.model)
    of_seed: dict[int, TrainState] = {}
    for member in every:
        if member.config.seed not in of_seed:
            model = preparation.adapted(member.config, weights, prepared.data)
            if store.base_hash(model) != base:
                raise InputError(
                    f"config.population: seed={member.config.seed} has another frozen base than seed="
                    f"{prepared.config.seed}, as config.model.weights={member.config.model.weights!r} start at random; "
                    "name pretrained weights"
                )
            name, seed = member.config.optim.name, member.config.seed
            of_seed[seed] = jax.tree.map(np.asarray, initial_state(model, name, seed, averaged=averaged))
    return jax.tree.map(lambda *values: np.stack(values), *[of_seed[member.config.seed] for member in every])


def finish(
    prepared: Run, folder: Workdir, every: Sequence[Member], log: PopulationLog, state: TrainState, measured: dict
) -> dict[str, Any]:
    """Writes what every member leaves, and a result that sums up.

    Args:
      prepared: as for `program`.
      folder: of the population.
      every: from `members`.
      log: of their metrics.
      state: after the last step.
      measured: as for `surm.result.finish`, each value of `eval` one number for every member.

    Returns:
      What `result.json` holds: that of the best member, and `population`, what is known of each.
    """
    results: list[dict[str, Any] | None] = []
    for number, (member, own) in enumerate(zip(every, members_folders(folder, every), strict=True)):
        if number in log.failed:
            results.append(None)
            continue
        run = dataclasses.replace(
            prepared, config=member.config, model=surgery.with_scale(prepared.model, member.config.peft.scale)
        )
        trainable = {path: value[number] for path, value in answering(state).items()}
        evaluated = {name: float(value[number]) for name, value in measured["eval"].items()}
        more = {"overrides": measured["overrides"] | member.overrides, "members": len(every)}
        own.write_json("config.json", member.config.to_dict())
        results.append(result.finish(run, own, trainable, measured | {"eval": evaluated} | more))
    best = min((found for found in results if found), key=report.place)
    found = best | {
        "overrides": measured["overrides"],
        "seed": prepared.config.seed,
        "config": prepared.config.to_dict(),
        "population": [
            {"member": member.name, "overrides": member.overrides, "eval": own["eval"] if own else None}
            | ({"failed": log.failed[number]} if number in log.failed else {})
            for number, (member, own) in enumerate(zip(every, results, strict=True))
        ],
        "best": every[results.index(best)].name,
        "settings": _settings(every, results),
    }
    folder.write_json("result.json", found)
    return found


def _settings(every: Sequence[Member], results: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of every setting."""
    found = []
    for overrides in map(dict, dict.fromkeys(tuple(_but_seed(member).items()) for member in every)):
        of = [own for member, own in zip(every, results, strict=True) if own and _but_seed(member) == overrides]
        values = {name: [own["eval"][name] for own in of] for name in (of[0]["eval"] if of else ())}
        found.append(
            {
                "overrides": overrides,
                "members": len(of),
                "mean": {name: statistics.fmean(each) for name, each in values.items()},
                "std": {name: statistics.stdev(each) if len(each) > 1 else None for name, each in values.items()},
            }
        )
    return found


def _but_seed(member: Member) -> dict[str, Any]:
    return {key: value for key, value in member.overrides.items() if key != "seed"}


def members_folders(folder: Workdir, every: Sequence[Member]) -> list[Workdir]:
    """Where each member's log, adapter and result lie; made if absent."""
    found = []
    for member in every:
        path = folder.path / "members" / member.name
        path.mkdir(parents=True, exist_ok=True)
        found.append(Workdir(path, member.config))
    return found
