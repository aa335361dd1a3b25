"""Tables in Markdown, for READMEs, and in LaTeX, for papers."""

from collections.abc import Sequence

from surm.report.compare import Row, Table
from surm.tasks.metric import Metric, of_result

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--",
}  # fmt: skip
P_VALUE = 0.05
"""Below this p-value, a row's mean counts as different from the best one."""
KEY = (
    "Means ± standard deviations over seeds. p is the p-value for the difference from the first row in the mean of the "
    "first metric (Welch's two-sided t-test); a dash stands for fewer than two seeds. The time of a step was measured "
    "on the run's own machine, where other programs may have run; a member of a population has its share of it."
)


def headings(table: Table) -> list[str]:
    """The headings of the columns."""
    lasts = [key.rpartition(".")[2] for key in table.differing]
    short = [last if lasts.count(last) == 1 else key for key, last in zip(table.differing, lasts, strict=True)]
    return ["method", *map(_named, map(table.metric, table.metrics)), "p", "trained", "seeds", "step (ms)", *short]


def cells(table: Table) -> list[list[str]]:
    """The rows as text, in the order of the headings."""
    rows = zip(table.rows, table.p_values(), strict=True)
    return [
        [
            row.label,
            *(measured(row, metric) for metric in table.metrics),
            "" if row is table.rows[0] else "–" if p is None else f"{p:.3f}" if p >= 1e-3 else "<0.001",
            f"{row.parameters:,}",
            str(len(row.values(table.metrics[0]))),
            "–" if row.step_seconds is None else f"{1000 * row.step_seconds:.0f}",
            *(row.config.get(key, "") for key in table.differing),
        ]
        for row, p in rows
    ]


def measured(row: Row, metric: str) -> str:
    """A metric's mean, with its standard deviation if there are several seeds, in the metric's unit.

    Args:
      row: a row of a table.
      metric: the name of the metric.

    Returns:
      A text such as `83.1 ± 0.8`; a dash if the row has no such metric.
    """
    if not row.values(metric):
        return "–"
    own, deviation = of_result(row.results[0].data, metric), row.deviation(metric)
    return _shown(own, row.mean(metric)) + ("" if deviation is None else f" ± {_shown(own, deviation)}")


def _shown(metric: Metric, value: float) -> str:
    return f"{metric.factor * value:.1f}" if metric.unit == "%" else f"{value:.4g}"


def _named(metric: Metric) -> str:
    """The heading of a metric, without percent signs, which a sentence below the tables replaces."""
    return metric.name if metric.unit == "%" else metric.heading


def _units(tables: Sequence[Table]) -> str:
    """A sentence that says which metrics are in percent."""
    every = dict.fromkeys(table.metric(name) for table in tables for name in table.metrics)
    others = [metric.name for metric in every if metric.unit != "%"]
    return f"Metrics are in percent{', except ' + ', '.join(others) if others else ''}."


def markdown(tables: Sequence[Table]) -> str:
    """All tables in Markdown, with headings."""
    parts = []
    for table in tables:
        numeric = ["---", *["---:"] * (len(headings(table)) - 1)]
        lines = [headings(table), numeric, *([_escaped(cell) for cell in row] for row in cells(table))]
        parts.append(f"## {table.task}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join([*parts, f"{KEY} {_units(tables)}\n"])


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|").replace("\n", " ")


def latex(tables: Sequence[Table]) -> str:
    """All tables in LaTeX, for the package booktabs; the best mean, and means that do not differ from it, are bold."""
    return "\n\n".join(_tabular(table) for table in tables) + "\n"


def _tabular(table: Table) -> str:
    lines = [rf"% {table.task}", rf"\begin{{tabular}}{{l{'r' * (len(headings(table)) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(_tex, headings(table))) + r" \\", r"\midrule"]
    for place, (row, p) in enumerate(zip(cells(table), table.p_values(), strict=True)):
        written = [_tex(cell) for cell in row]
        if place == 0 or (p is not None and p >= P_VALUE):
            written[1] = rf"\textbf{{{written[1]}}}"
        lines.append(" & ".join(written) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
