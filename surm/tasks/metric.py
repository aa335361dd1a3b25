"""What a metric is: its name, its direction and its unit; without jax, as reports use it."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from surm.errors import InputError


class Metric(NamedTuple):
    """One metric of a task.

    Attributes:
      name: as in `metrics.jsonl` and `result.json`.
      better: whether more or less of it is better.
      unit: `%` for a number that is shown a hundred times as large, with a percent sign; any other unit, such as
        `nats`, is shown with the number as it is, and an empty one is no unit.
    """

    name: str
    better: Literal["more", "less"] = "more"
    unit: str = "%"

    def goodness(self, value: Any) -> Any:
        """The value, its sign turned where less is better: of the result more is better for every metric."""
        return value if self.better == "more" else -value

    @property
    def factor(self) -> int:
        """What a value is multiplied by before it is shown."""
        return 100 if self.unit == "%" else 1

    @property
    def heading(self) -> str:
        """Name and unit, as at an axis.

        Examples:
          >>> Metric("accuracy").heading, Metric("loss", "less", "nats").heading, Metric("error", "less", "").heading
          ('accuracy (%)', 'loss (nats)', 'error')
        """
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def to_json(self) -> dict[str, str]:
        """What `result.json` says of it, under its name."""
        return {"better": self.better, "unit": self.unit}


def of_result(result: Mapping[str, Any], name: str) -> Metric:
    """The metric of a result.

    Args:
      result: what `result.json` holds.
      name: of one of its metrics.

    Returns:
      What the result says of it under `metrics`. Results of 0.1.0 say nothing: less is better of their losses, which
      begin with `loss`, and more is better of everything else, a share of one.

    Raises:
      InputError: if the result says something else there than a metric's direction and unit.

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
