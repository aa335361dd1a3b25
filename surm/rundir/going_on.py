"""Decides whether a run can be continued with a config that differs from the one in its folder.

The declaration of every key says whether another value is allowed (`surm.machine.keys.Decision`).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import ml_collections

from surm import config as configs
from surm import matrices
from surm.config import Plan
from surm.errors import InputError, quoted
from surm.machine.keys import Decision

DECISIONS: dict[str, Decision] = {name: key.decision for name, key in configs.KEYS.items()}
"""The declared decision of every key of `surm.config.default`."""

_FIRST = ("data.source", "data.task", "model.weights", "model.name", "peft.method", "peft.family")
"""The keys that tell most about a run; messages name them first."""

_OF_ADAPTER = ("data.task", "model.weights", "model.name", "peft.method", "peft.family", "peft.options")
"""Keys whose change makes an adapter unlikely to fit, so that no message proposes to start from it."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A key whose value in the new config differs from the one in the folder."""

    key: str
    before: object
    now: object
    decision: Decision

    def __str__(self) -> str:
        return f"{self.key} {quoted(self.before)} → {quoted(self.now)}"


def changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[Change]:
    """The differences between the config in a folder and a new one.

    Args:
      before: the values of the config in the folder, by dotted key.
      now: the values of the new config.

    Returns:
      The changes in the order of their keys, each with its decision; `decides` for a key that this version of surm does
      not know.
    """
    found = []
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            decision = DECISIONS.get(key, "decides")
            if decision == "choice":
                decision = "decides" if now.get("eval.choose") != "last" else "free"
            found.append(Change(key, before.get(key), now.get(key), decision))
    return found


def check(
    found: Sequence[Change], config: ml_collections.ConfigDict | Plan, workdir: str, *, adapter: bool = False
) -> None:
    """Refuses changes with which a continued run would not end like a run that had the new config from the start.

    Args:
      found: from `changes`.
      config: the new config, or what `surm.config.checked` has made of it.
      workdir: the run's folder, for the message.
      adapter: whether the folder holds an adapter, from which a new run could start.

    Raises:
      InputError: if a key changes the result, or if the length changes and steps depend on it; the message says what to
        do instead.
    """
    fits = adapter and not any(one.key in _OF_ADAPTER for one in found)
    elsewhere = f"; there config.init_adapter={workdir!r} starts from this run's adapter" if fits else ""
    if any(one.decision == "decides" for one in found):
        told = sorted((one for one in found if one.decision in ("decides", "content")), key=_place)
        deciding = [f"{one.key}: {quoted(one.before)} against {quoted(one.now)}" for one in told]
        more = [f"and {len(deciding) - 5} more"] if len(deciding) > 5 else []
        raise InputError(
            f"workdir {workdir!r} holds the run of another config; they differ (there against here) "
            f"in {'; '.join([*deciding[:5], *more])}; name another workdir or remove this one{elsewhere}"
        )
    lengths = [one for one in found if one.decision == "length"]
    if lengths and (why := bound_to_length(configs.checked(config))):
        raise InputError(
            f"workdir {workdir!r} holds a run of another length ({', '.join(map(str, lengths))}), and {why}: the steps "
            f"of a longer or shorter run differ from the first one on; name another workdir{elsewhere}"
        )


def _place(change: Change) -> int:
    """The place of a change in a message; others than these come last, in the order of their keys."""
    return _FIRST.index(change.key) if change.key in _FIRST else len(_FIRST)


def check_length(finished: Mapping[str, object] | None, reached: int | None, total: int, workdir: str) -> None:
    """Refuses a new length that a run has already exceeded.

    Args:
      finished: the contents of `result.json`; None if the run has not finished.
      reached: the step of the newest checkpoint; None if there is none.
      total: the new number of steps.
      workdir: the run's folder, for the message.

    Raises:
      InputError: if the run has taken more steps, or has finished and its checkpoints are gone.
    """
    if finished is not None and reached is None:
        raise InputError(
            f"workdir {workdir!r} holds a finished run whose checkpoints are gone, so it cannot be continued; name "
            f"another workdir; there config.init_adapter={workdir!r} starts from this run's adapter"
        )
    if (reached or 0) > total:
        raise InputError(
            f"workdir {workdir!r} holds a run that has taken {reached} steps, expected {total} or fewer; increase "
            "config.optim.steps, or name another workdir"
        )


def bound_to_length(plan: Plan) -> str:
    """The reason why the length of a run cannot be changed: a part of it that depends on the total number of steps.

    Args:
      plan: the run's plan.

    Returns:
      The reason as a clause; empty if the length can be changed.
    """
    optim, spec, filtered = plan.config.optim, plan.spec, plan.optimizer == "loko"
    if optim.schedule != "constant" and not filtered:
        return f"the {optim.schedule} schedule falls to 0 at the last step"
    if optim.warmup_fraction and not filtered:
        return f"the warm-up is a fraction of the steps (config.optim.warmup_fraction={optim.warmup_fraction:g})"
    if plan.head_first_fraction:
        return f"the head trains alone for a fraction of the steps ({plan.head_first_fraction:g})"
    if spec.position in ("update", "adapter"):
        for own in (spec, *spec.ruled()):
            if matrices.FAMILIES[own.family].gate:
                return f"the rank budget of {own.family} ends at a fraction of the steps"
            if own.training.get("penalty") and own.training.get("penalty_until", 1) < 1:
                return f"the penalty of {own.family} ends at a fraction of the steps"
    return ""
