"""Figures of a table, as SVG: metric against trained parameters, and metric against step."""

import io
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from surm.report.compare import Row, Table
from surm.tasks.metric import of_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CURVES = 12
_POINT = 5
"""The width of a point in pixels."""
_BESIDE = ((7, 0), (-7, 0), (7, 8), (7, -8), (-7, 8), (-7, -8), (7, 16), (7, -16))
"""The positions that are tried for a name, in points to the right of its mark and above it."""


def pareto(table: Table) -> str:
    """Draws the main metric against the trained parameters, with deviations over seeds and the Pareto front.

    Args:
      table: the table of one task.

    Returns:
      SVG.
    """
    metric, front = table.metric(table.metrics[0]), best_at_their_size(table)
    shown = {id(row): metric.factor * row.mean(metric.name) for row in table.rows}
    of_front = {id(row) for row in front}
    figure, axes = _figure(height=4.2)
    for row in sorted(table.rows, key=lambda row: row.parameters):
        on = id(row) in of_front
        axes.errorbar(
            [row.parameters], [shown[id(row)]], yerr=[metric.factor * (row.deviation(metric.name) or 0)],
            fmt="o" if on else "s", color="C0" if on else "0.55", capsize=3, markersize=6 if on else 4,
        )  # fmt: skip
    axes.plot([row.parameters for row in front], [shown[id(row)] for row in front], color="C0", alpha=0.4)
    positive = [row.parameters for row in table.rows if row.parameters]
    axes.set_xscale("symlog", linthresh=min(positive, default=1))
    axes.set(xlabel="trained parameters beside the head", ylabel=metric.heading, title=table.task)
    axes.margins(x=0.12)
    if len({row.parameters for row in table.rows}) == 1:  # the range is too narrow for automatic ticks
        axes.set_xticks([table.rows[0].parameters], [f"{table.rows[0].parameters:,}"])
    figure.draw_without_rendering()  # fixes the scales, which the placing of labels needs
    named = zip(table.names(), table.rows, strict=True)
    front_first = sorted(named, key=lambda pair: id(pair[1]) not in of_front)
    _label(axes, [(name, row.parameters, shown[id(row)]) for name, row in front_first])
    return _svg(figure)


def _label(axes: "Axes", points: Sequence[tuple[str, float, float]]) -> None:
    """Writes names beside points, in their order; a name that would cover another name or point is left out."""
    from matplotlib.transforms import Bbox

    places = [axes.transData.transform((x, y)) for _, x, y in points]
    taken = [Bbox.from_bounds(x - _POINT / 2, y - _POINT / 2, _POINT, _POINT) for x, y in places]
    for name, x, y in points:
        for right, up in _BESIDE:
            text = axes.annotate(
                name, (x, y), xytext=(right, up), textcoords="offset points", fontsize=7, in_layout=False,
                verticalalignment="center", horizontalalignment="left" if right > 0 else "right",
            )  # fmt: skip
            box = text.get_window_extent()
            if axes.bbox.containsx(box.x1) and axes.bbox.containsx(box.x0) and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()


def best_at_their_size(table: Table) -> list[Row]:
    """The Pareto front: the rows that no other row with as many parameters or fewer equals or beats.

    Args:
      table: the table of one task.

    Returns:
      The rows, those with the fewest parameters first.
    """
    metric, front = table.metric(table.metrics[0]), []
    goodness = {id(row): metric.goodness(row.mean(metric.name)) for row in table.rows}
    for row in sorted(table.rows, key=lambda row: (row.parameters, -goodness[id(row)])):
        if not front or goodness[id(row)] > goodness[id(front[-1])]:
            front.append(row)
    return front


def curves(table: Table) -> str | None:
    """Draws the held-out main metric against the step, with mean and spread over seeds, for the best rows.

    Args:
      table: the table of one task.

    Returns:
      SVG; None if no run of the table has such a curve.
    """
    found = _held_out(table)
    if not found:
        return None
    figure, axes = _figure(height=3.6)
    for label, points in [*found.items()][:_MOST_CURVES]:
        steps = sorted(points)
        means = [statistics.fmean(points[step]) for step in steps]
        (line,) = axes.plot(steps, means, marker="." if len(steps) < 30 else "", linewidth=1.2, label=label)
        if any(len(points[step]) > 1 for step in steps):
            low, high = ([extreme(points[step]) for step in steps] for extreme in (min, max))
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    more = f", the best {_MOST_CURVES} of {len(found)}" if len(found) > _MOST_CURVES else ""
    axes.set(xlabel="step", ylabel=table.metric(table.metrics[0]).heading, title=f"{table.task}{more}")
    axes.set_xlim(left=0)
    axes.legend(fontsize=7)
    return _svg(figure)


def _held_out(table: Table) -> dict[str, dict[int, list[float]]]:
    """The points of every row that has some, by a unique name."""
    of_rows = ((name, _points(row, table.metrics[0])) for name, row in zip(table.names(), table.rows, strict=True))
    return {name: points for name, points in of_rows if points}


def _points(row: Row, metric: str) -> dict[int, list[float]]:
    """The values of a metric over all seeds, by step, in the unit in which they are shown."""
    points: dict[int, list[float]] = {}
    factor = of_result(row.results[0].data, metric).factor
    for result in row.results:
        watched = "validation" if any(line["split"] == "validation" for line in result.curves) else "test"
        for line in result.curves:  # a run that chooses its best step also has one point of the test split
            if line["split"] == watched and metric in line["values"]:
                points.setdefault(line["step"], []).append(factor * line["values"][metric])
    return points


def _figure(height: float) -> "tuple[Any, Axes]":
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Any) -> str:
    """The figure as SVG that scales with the page; the same figure gives the same bytes."""
    import matplotlib

    picture = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "surm", "svg.fonttype": "path"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()[picture.getvalue().index("<svg") :]
