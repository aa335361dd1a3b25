"""A metric's name, direction and unit. This module does not import jax, because reports use it."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from surm.errors import InputError


class Metric(NamedTuple):
    """One metric of a task.

    Attributes:
      name: its name in `metrics.jsonl` and `result.json`.
      better: whether more or less of it is better.
      unit: `%` for a fraction that is shown as a percentage; any other unit, such as `nats`, is shown beside the
        unchanged number; empty for no unit.
    """

    name: str
    better: Literal["more", "less"] = "more"
    unit: str = "%"

    def goodness(self, value: Any) -> Any:
        """The value, negated if less is better, so that more of the result is always better."""
        return value if self.better == "more" else -value

    @property
    def factor(self) -> int:
        """The factor by which a value is multiplied before it is shown."""
        return 100 if self.unit == "%" else 1

    @property
    def heading(self) -> str:
        """Name and unit, as the label of an axis.

        Examples:
          >>> Metric("accuracy").heading, Metric("loss", "less", "nats").heading, Metric("error", "less", "").heading
          ('accuracy (%)', 'loss (nats)', 'error')
        """
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def to_json(self) -> dict[str, str]:
        """The entry of `result.json` under the metric's name."""
        return {"better": self.better, "unit": self.unit}


def of_result(result: Mapping[str, Any], name: str) -> Metric:
    """Looks up a metric of a result.

    Args:
      result: the contents of `result.json`.
      name: the name of a metric.

    Returns:
      The metric as the result describes it under `metrics`. Results of 0.1.0 describe none; there, less is better for
      names that begin with `loss`, and every other metric is a fraction of which more is better.

    Raises:
      InputError: if the entry is not a direction and a unit.

    Examples:
      >>> of_result({"metrics": {"perplexity": {"better": "less", "unit": ""}}}, "perplexity")
      Metric(name='perplexity', better='less', unit='')
      >>> of_result({}, "f1")
      Metric(name='f1', better='more', unit='%')
    """
    said = result.get("metrics", {})
    if not isinstance(said, Mapping) or name not in said:
        return Metric(name, "less", "") if name.partition("_")[0] == "loss" else Metric(name)
    match said[name]:
        case {"better": "more" | "less" as better, "unit": str(unit)}:
            return Metric(name, better, unit)
    raise InputError(
        f"metrics.{name} must be an object with 'better', more or less, and 'unit', a text; got {said[name]!r}"
    )
