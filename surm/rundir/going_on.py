"""What a run's folder may differ in from the config that goes on with it.

Every key is declared with a decision (`surm.machine.keys.Decision`); what follows from it is said here.
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
"""Of every key of `surm.config.default`, as it is declared."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A key in which the config that goes on differs from the one in the folder."""

    key: str
    before: object
    now: object
    decision: Decision

    def __str__(self) -> str:
        return f"{self.key} {quoted(self.before)} → {quoted(self.now)}"


def changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[Change]:
    """Where two configs differ, and what follows from it.

    Args:
      before: the folder's, by dotted key.
      now: the one that goes on.

    Returns:
      The changes, in order of their keys; a key that this version does not know decides.
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
    """Refuses changes that make another run of it.

    Args:
      found: from `changes`.
      config: the one that goes on, or what `surm.config.checked` has made of it.
      workdir: the run's folder, for the message.
      adapter: whether there is an adapter in it to start from elsewhere.

    Raises:
      InputError: for a key that decides, or another length where steps depend on it; the message says what else to do.
    """
    elsewhere = f"; there config.init_adapter={workdir!r} starts from this run's adapter" if adapter else ""
    decide = [one for one in found if one.decision == "decides"]
    if deciding := [f"{one.key}: {quoted(one.before)} against {quoted(one.now)}" for one in decide]:
        more = [f"and {len(deciding) - 5} more"] if len(deciding) > 5 else []
        raise InputError(
            f"workdir {workdir!r} holds the run of another config; they differ (there against here) "
            f"in {'; '.join([*deciding[:5], *more])}; name another workdir or remove this one{elsewhere}"
        )
    lengths = [one for one in found if one.decision == "length"]
    if lengths and (why := bound_to_length(configs.checked(config))):
        raise InputError(
            f"workdir {workdir!r} holds a run of another length ({', '.join(map(str, lengths))}), and {why}: another "
            f"length is another run from the first step on; name another workdir{elsewhere}"
        )


def check_length(finished: Mapping[str, object] | None, reached: int | None, total: int, workdir: str) -> None:
    """Refuses a length that is behind the run already.

    Args:
      finished: what `result.json` holds, None if the run has not finished.
      reached: the step of its newest checkpoint, None if there is none.
      total: how long it shall be.
      workdir: the run's folder, for the message.

    Raises:
      InputError: if it has gone further, or has finished and its checkpoints are gone.
    """
    if finished is not None and reached is None:
        raise InputError(
            f"workdir {workdir!r} holds a finished run whose checkpoints are gone, so it cannot go on; name another "
            f"workdir; there config.init_adapter={workdir!r} starts from this run's adapter"
        )
    if (reached or 0) > total:
        raise InputError(
            f"workdir {workdir!r} holds a run that has taken {reached} steps, expected {total} or fewer; make "
            "config.optim.steps larger, or name another workdir"
        )


def bound_to_length(plan: Plan) -> str:
    """Why a run cannot be made longer or shorter: what in it depends on how many steps there are; empty if nothing.

    Args:
      plan: of the run.

    Returns:
      The reason, as a part of a sentence.
    """
    optim, spec, filtered = plan.config.optim, plan.spec, plan.optimizer == "loko"
    if optim.schedule != "constant" and not filtered:
        return f"the {optim.schedule} schedule falls to 0 at the last step"
    if optim.warmup_fraction and not filtered:
        return f"the warm-up is a share of the steps (config.optim.warmup_fraction={optim.warmup_fraction:g})"
    if plan.head_first_fraction:
        return f"the head trains alone for a share of the steps ({plan.head_first_fraction:g})"
    if spec.position in ("update", "adapter"):
        for own in (spec, *spec.ruled()):
            if matrices.FAMILIES[own.family].gate:
                return f"the rank budget of {own.family} ends at a share of the steps"
            if own.training.get("penalty") and own.training.get("penalty_until", 1) < 1:
                return f"the penalty of {own.family} ends at a share of the steps"
    return ""
