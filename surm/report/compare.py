"""Compares the results of one task, with seeds grouped and the best first."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from surm.report.collect import Result
from surm.tasks.metric import Metric, of_result

IN_LABEL = ("peft.method", "peft.family", "peft.options", "peft.magnitude", "peft.rules")
NEVER_TOLD = ("seed", "data.source", "data.data_dir", "init_adapter", "population")
"""Keys of a config that only name a place, or that are averaged over."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Results that differ only in the seed.

    Attributes:
      label: method, family and options, or the name that an experiment gave.
      results: the results, at least one.
      config: the config by dotted key, without `NEVER_TOLD`.
    """

    label: str
    results: tuple[Result, ...]
    config: dict[str, str]

    @property
    def parameters(self) -> int:
        """The number of trained parameters, without the head."""
        return self.results[0].data["adapter_parameters"]

    def values(self, metric: str) -> list[float]:
        """The values of a metric, one number for each seed."""
        return [value for result in self.results for value in result.values.get(metric, ())]

    def mean(self, metric: str) -> float:
        """The mean of a metric over seeds."""
        return statistics.fmean(self.values(metric))

    def deviation(self, metric: str) -> float | None:
        """The standard deviation over seeds, with n - 1; None for one seed."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def step_seconds(self) -> float | None:
        """The median step time over results, for a member of a population its share; None if no result has it."""
        steps = ((result.data.get("step_seconds_median"), result.data.get("members", 1)) for result in self.results)
        known = [seconds / members for seconds, members in steps if seconds]
        return statistics.median(known) if known else None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of one task, the best first.

    Attributes:
      task: the data and the main metric.
      metrics: the main metric, then the others.
      rows: the rows, sorted by the mean of the main metric.
      differing: the keys of the config that differ between rows, except those that the labels show and those that
        only one version's configs have.
    """

    task: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    differing: tuple[str, ...]

    def metric(self, name: str) -> Metric:
        """The direction and the unit of one of the metrics, by the first result that has it."""
        of_all = (result.data for row in self.rows for result in row.results)
        return of_result(next((data for data in of_all if name in data.get("eval", ())), {}), name)

    def names(self) -> list[str]:
        """A unique name for each row: its label, with a few settings where several rows share the label."""
        names = [", ".join([row.label, *self._telling(row)]) for row in self.rows]
        alike = [names[:place].count(name) for place, name in enumerate(names)]
        return [f"{name} ({before + 1})" if before else name for name, before in zip(names, alike, strict=True)]

    def _telling(self, row: Row) -> list[str]:
        """The settings that tell a row from others of the same label; each tells it from as many as possible."""
        others, told = [one for one in self.rows if one.label == row.label and one is not row], []
        own = row.config.get
        while others:
            unlike = {key: [one for one in others if one.config.get(key) != own(key)] for key in self.differing}
            key = max(unlike, key=lambda key: len(unlike[key]), default="")
            if not unlike.get(key):
                break
            told.append(f"{key.rpartition('.')[2]} {own(key, '–')}")
            others = [one for one in others if one not in unlike[key]]
        return told

    def p_values(self) -> list[float | None]:
        """The p-value of each row against the best by Welch's two-sided t-test; None for the best and single seeds."""
        best = self.rows[0].values(self.metrics[0])
        return [None, *(welch(row.values(self.metrics[0]), best) for row in self.rows[1:])]


def tables(results: Sequence[Result]) -> list[Table]:
    """One table for every task.

    Args:
      results: the collected results.

    Returns:
      The tables, in the order in which their tasks appear.
    """
    by_task: dict[str, list[Result]] = {}
    for result in results:
        by_task.setdefault(result.task, []).append(result)
    return [_table(task, of_task) for task, of_task in by_task.items()]


def _table(task: str, results: Sequence[Result]) -> Table:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(json.dumps([label(result.data), settings(result.data)]), []).append(result)
    rows = [Row(label(group[0].data), tuple(group), settings(group[0].data)) for group in groups.values()]
    main = results[0].data["metric"]
    goodness = of_result(results[0].data, main).goodness
    others = dict.fromkeys(name for result in results for name in result.data["eval"] if name not in (main, "loss"))
    rows.sort(key=lambda row: (-goodness(row.mean(main)), row.parameters, row.label))
    keys = dict.fromkeys(key for row in rows for key in row.config if key not in IN_LABEL)
    differing = [key for key in keys if len({row.config[key] for row in rows if key in row.config}) > 1]
    return Table(task, (main, *others), tuple(rows), tuple(differing))


def label(data: Mapping[str, Any]) -> str:
    """A short name of a result: the one that its experiment gave, or method, family and options.

    Args:
      data: the data of a result.

    Returns:
      A few words.

    Examples:
      >>> label({"method": "update", "family": "low_rank", "config": {"peft": {"options": "rank=8"}}})
      'low_rank rank=8'
    """
    if data.get("name"):
        return str(data["name"])
    peft = data["config"].get("peft", {})
    words = [] if data["method"] == "update" else [data["method"]]
    words += [data.get("family"), peft.get("options"), peft.get("magnitude") and "with magnitude"]
    words += [f"by rules {peft['rules']}"] if peft.get("rules") else []
    return " ".join(str(word) for word in words if word)


def settings(data: Mapping[str, Any]) -> dict[str, str]:
    """The config of a result by dotted key, with the rate and the steps that were actually used.

    Args:
      data: the data of a result.

    Returns:
      The keys and values, values as text.

    Examples:
      >>> config = {"optim": {"learning_rate": None, "epochs": 2, "steps": 0}}
      >>> settings({"method": "update", "config": config, "learning_rate": 0.004, "steps": 12})
      {'optim.learning_rate': '0.004', 'optim.steps': '12'}
    """
    found = flat(data["config"])
    if "optim.learning_rate" in found:
        if data["method"] == "head":
            found["optim.learning_rate"] = "–"  # no variable is trained at this rate
        elif data.get("learning_rate") is not None:
            found["optim.learning_rate"] = f"{data['learning_rate']:g}"
    if "optim.steps" in found and "steps" in data:
        found.pop("optim.epochs", None)
        found["optim.steps"] = str(data["steps"])
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A config by dotted key, with values as text, without the keys that are never shown.

    Args:
      config: the nested config.
      prefix: the prefix of the keys.

    Returns:
      The keys and values.
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        name = prefix + key
        if name in NEVER_TOLD:
            continue
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = f"{value:g}" if isinstance(value, float) else str(value)
    return found


def welch(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Compares two means by Welch's two-sided t-test.

    Args:
      one: the first sample.
      other: the second sample.

    Returns:
      The p-value; None if a sample has fewer than two values, or neither varies.

    Examples:
      >>> round(welch([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]), 3)
      0.288
    """
    import scipy.stats

    if min(len(one), len(other)) < 2 or statistics.pstdev(one) == statistics.pstdev(other) == 0:
        return None
    return float(scipy.stats.ttest_ind(one, other, equal_var=False).pvalue)
