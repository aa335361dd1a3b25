"""Learning rates chosen among a few tries, each a run in a folder of its own, so that an experiment can be stopped."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from surm.rundir.log import NonFiniteError

Metrics = dict[str, float]


def folder_for(changes: Mapping[str, Any], stage: pathlib.Path) -> pathlib.Path:
    """The folder of the run with these changes of a config, beside `stage` and named after it."""
    digest = hashlib.sha256(json.dumps(changes, default=str).encode()).hexdigest()
    return stage.with_name(f"{stage.name}_{digest[:12]}")


def try_rates(rates: tuple[float, ...], train: Callable[[float], dict[str, Any]]) -> dict[float, Metrics | None]:
    """The metrics of a run at every rate; None if the loss did not stay finite."""
    found: dict[float, Metrics | None] = {}
    for rate in rates:
        try:
            found[rate] = train(rate)["eval"]
        except NonFiniteError:
            found[rate] = None
    return found


def try_rates_and_beyond(
    rates: tuple[float, ...], train: Callable[[float], dict[str, Any]]
) -> dict[float, Metrics | None]:
    """As `try_rates`; and if the first or the last rate has the lowest loss, one more beyond it, at the same ratio."""
    tried = try_rates(rates, train)
    chosen = best(tried)
    if chosen in (rates[0], rates[-1]):
        beside = rates[1] if chosen == rates[0] else rates[-2]
        tried |= try_rates((float(f"{chosen * chosen / beside:.2g}"),), train)
    return tried


def best(tried: Mapping[float, Metrics | None], metric: str | None = None) -> float:
    """The rate with the highest metric, of equal ones that with the lowest loss; without a metric the latter alone."""
    finite = {rate: values for rate, values in tried.items() if values is not None}
    if not finite:
        raise NonFiniteError(f"at none of the rates {', '.join(map(str, tried))} did the loss stay finite")
    return max(finite, key=lambda rate: (finite[rate][metric] if metric else 0, -finite[rate]["loss"]))


def as_json(tried: Mapping[float, Metrics | None]) -> dict[str, Metrics | None]:
    """The same with rates as texts."""
    return {f"{rate:g}": values for rate, values in tried.items()}
