"""Tables in Markdown, and numbers as their cells show them."""

import statistics
from collections.abc import Iterable, Sequence

SPACED = ("| ", " | ")
"""The rule with spaces, as some of the pages have it."""


def markdown(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1, rule: Sequence[str] = ("|", "|")
) -> str:
    """A table whose first columns (`names` of them) are names and whose others are numbers, aligned to the right.

    `rule` is what stands around and between the dashes under the heads.
    """
    dashes = ["---"] * names + ["---:"] * (len(heads) - names)
    line = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    return "\n".join([line(heads), f"{rule[0]}{rule[1].join(dashes)}{rule[0][::-1]}", *map(line, rows)])


def percent(values: Sequence[float]) -> str:
    """The mean of shares in percent, with the standard deviation if there are several."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"
