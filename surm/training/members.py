"""The members of a population: the runs that `config.population` lists, their logs and their results."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from surm import config as configs
from surm import report
from surm.errors import InputError, nearest
from surm.peft import surgery
from surm.rundir import names
from surm.rundir.log import NonFiniteError, RunLog, Values
from surm.rundir.workdir import Workdir
from surm.training import result
from surm.training.prepared import Run
from surm.training.step import answering
from surm.training.trained import Trained

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
"""The keys in which members may differ, with the types of their values; any other key would change the program."""


class Member(NamedTuple):
    """One run of a population.

    Attributes:
      name: the name of its folder.
      overrides: the values in which it differs from the population's config, by dotted key.
      plan: its config, checked and parsed.
    """

    name: str
    overrides: dict[str, Any]
    plan: configs.Plan

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The member's configuration."""
        return self.plan.config


def listed(plan: configs.Plan) -> list[Member]:
    """The members of a population: one for every combination of the values that `config.population` lists.

    Args:
      plan: of a config with a population such as `seed=0|1|2,learning_rate=1e-3|3e-3`. The prefixes `optim.` and
        `peft.` of keys may be omitted.

    Returns:
      The members, in the order of `itertools.product`; empty if the config names no population.

    Raises:
      InputError: if members cannot differ in a key, a key or value occurs twice, or a value has the wrong type.
    """
    config, lists = plan.config, {}
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
    if "peft.scale" in lists and (
        ruled := [rule for rule, change in plan.spec.rules.items() if change and "scale" in change]
    ):
        raise InputError(
            f"config.population: members differ in peft.scale, but the rule {ruled[0]!r} gives a scale of its own"
        )
    return [_member(config, dict(zip(lists, chosen, strict=True))) for chosen in itertools.product(*lists.values())]


def _key(name: str) -> str:
    found = [key for key in KEYS if name in (key, key.rpartition(".")[2])]
    if not found:
        raise InputError(
            f"config.population: members cannot differ in {name!r}; {nearest(name, KEYS)}; python -m surm.sweep can "
            "vary every key"
        )
    return found[0]


def _value(key: str, text: str) -> Any:
    try:
        return KEYS[key](text)
    except ValueError as error:
        expected = f"{'whole numbers' if KEYS[key] is int else 'numbers'} separated by |"
        raise InputError(f"config.population: {key}={text!r}, expected {expected}") from error


def _member(config: ml_collections.ConfigDict, overrides: dict[str, Any]) -> Member:
    own = config.copy_and_resolve_references()
    own.update_from_flattened_dict({"population": "", "members_at_once": 0, "mesh.shard_members": False, **overrides})
    return Member(names.name(overrides), overrides, configs.checked(own))


class PopulationLog:
    """The logs of all members, each in its own folder; a member that fails is dropped, and the others continue."""

    def __init__(self, folders: Sequence[Workdir]):
        """Creates the logs in the members' folders."""
        self._logs, self.failed = [RunLog(folder) for folder in folders], {}

    @property
    def notes(self) -> dict[str, Any]:
        """The members that have failed, by index, each with the reason."""
        return {str(number): why for number, why in self.failed.items()}

    def take(self, step: int, split: str, values: Values, *, written: bool = True) -> None:
        """See `surm.rundir.log.Log`; raises NonFiniteError when the last member has failed."""
        for number, log in enumerate(self._logs):
            if number in self.failed:
                continue
            try:
                log.take(step, split, {name: value[number] for name, value in values.items()}, written=written)
            except NonFiniteError as error:
                self.failed[number] = str(error)
                if len(self.failed) == len(self._logs):
                    raise NonFiniteError(f"every member has failed, the last at {error}") from error

    def logged(self, step: int, split: str) -> Values | None:
        """See `surm.rundir.log.Log`."""
        found = [log.logged(step, split) for log in self._logs]
        there = [values for number, values in enumerate(found) if number not in self.failed]
        if any(values is None for values in there):
            return None
        lost = dict.fromkeys(there[0], math.nan)
        rows = [lost if number in self.failed else values for number, values in enumerate(found)]
        return {name: np.array([row[name] for row in rows]) for name in lost}

    def start(self, step: int, notes: dict[str, Any]) -> None:
        """See `surm.rundir.log.Log`."""
        self.failed = {int(number): why for number, why in notes.items()}
        for log in self._logs:
            log.start(step, {})

    def flush(self) -> None:
        """See `surm.rundir.log.Log`."""
        for log in self._logs:
            log.flush()

    def close(self) -> None:
        """See `surm.rundir.log.Log`."""
        for log in self._logs:
            log.close()


def finish(
    prepared: Run, folder: Workdir, every: Sequence[Member], log: PopulationLog, trained: Trained
) -> dict[str, Any]:
    """Writes the results of all members, and one result that summarises the population.

    Args:
      prepared: the run; its config is that of the population.
      folder: the population's folder.
      every: the members, from `listed`.
      log: the log of their metrics.
      trained: the trained state and metrics, with a first axis of members.

    Returns:
      The contents of the population's `result.json`: the result of the best member, whose name is `best`, with
      `population` (overrides and metrics of every member) and `settings` (mean and standard deviation over seeds).
    """
    results: list[dict[str, Any] | None] = []
    for number, (member, own) in enumerate(zip(every, folders_of(folder, every), strict=True)):
        if number in log.failed:
            results.append(None)
            continue
        run = dataclasses.replace(
            prepared, plan=member.plan, model=surgery.with_scale(prepared.model, member.config.peft.scale)
        )
        of_member = dataclasses.replace(
            trained,
            state={"trainable": {path: value[number] for path, value in answering(trained.state).items()}},
            eval={name: float(value[number]) for name, value in trained.eval.items()},
            confusion=None if trained.confusion is None else trained.confusion[number],
            overrides={**trained.overrides, **member.overrides},
        )
        own.write_json("config.json", member.config.to_dict())
        results.append(result.finish(run, own, of_member, members=len(every)))
    best = min((found for found in results if found), key=report.place)
    found = best | {
        "overrides": dict(trained.overrides),
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
    """Mean and standard deviation of the metrics over seeds, for every combination of the other keys."""
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


def folders_of(folder: Workdir, every: Sequence[Member]) -> list[Workdir]:
    """The folders of the members' logs, adapters and results; created if absent."""
    found = []
    for member in every:
        path = folder.path / "members" / member.name
        if folder.writes:
            path.mkdir(parents=True, exist_ok=True)
        found.append(Workdir(path, member.config, writes=folder.writes))
        found[-1].lock = folder.lock  # the population has one lock for all its members
    return found
