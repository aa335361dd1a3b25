"""The members of a population: which runs `config.population` lists, their logs, and what each leaves."""

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
"""What members may differ in: everything else would be another program."""


class Member(NamedTuple):
    """One run of a population: its folder's name, what sets it apart, by dotted key, and what its config comes to."""

    name: str
    overrides: dict[str, Any]
    plan: configs.Plan

    @property
    def config(self) -> ml_collections.ConfigDict:
        """Its configuration."""
        return self.plan.config


def listed(plan: configs.Plan) -> list[Member]:
    """The runs that `config.population` lists, the product of its lists.

    Args:
      plan: of a config with a population such as `seed=0|1|2,learning_rate=1e-3|3e-3`; keys may leave out `optim.` and
        `peft.`.

    Returns:
      A member for every combination, in order; none where there is no population.

    Raises:
      InputError: for a key that members cannot differ in, one named twice, or a value that is none of its kind.
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
            f"config.population: members cannot differ in {name!r}; {nearest(name, KEYS)}; for anything else there is "
            "python -m surm.sweep"
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
    """The log of every member, in its own folder; who fails is left behind, and the others go on."""

    def __init__(self, folders: Sequence[Workdir]):
        """Writes into the members' folders."""
        self._logs, self.failed = [RunLog(folder) for folder in folders], {}

    @property
    def notes(self) -> dict[str, Any]:
        """Who has failed, by number, and why."""
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
    """Writes what every member leaves, and a result that sums up.

    Args:
      prepared: as for `program`.
      folder: of the population.
      every: from `listed`.
      log: of their metrics.
      trained: all members together.

    Returns:
      What `result.json` holds: that of the best member, and `population`, what is known of each.
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


def folders_of(folder: Workdir, every: Sequence[Member]) -> list[Workdir]:
    """Where each member's log, adapter and result lie; made if absent."""
    found = []
    for member in every:
        path = folder.path / "members" / member.name
        if folder.writes:
            path.mkdir(parents=True, exist_ok=True)
        found.append(Workdir(path, member.config, writes=folder.writes))
        found[-1].lock = folder.lock  # of the population: it is held, or lost, for all
    return found
