"""Shows runs, populations and sweeps in a few lines of text."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from surm.tasks.metric import of_result


def summary(result: dict[str, Any], folder: str | os.PathLike) -> str:
    """Describes a finished run in a few lines: metric, parameters, time, place."""
    values = ", ".join(f"{name} {value:.4f}" for name, value in result["eval"].items())
    what = result["family"] or ""
    return "\n".join(
        [
            f"{result['method']} {what}".strip() + f": held-out {values}",
            f"trained {result['trainable_parameters']:,} of {result['total_parameters']:,} parameters, "
            f"{result['adapter_parameters']:,} of them the adapter's",
            *_chosen(result),
            f"{result['steps']} steps in {result['seconds']:.0f} s; results in {folder}",
        ]
    )


def _chosen(result: Mapping[str, Any]) -> list[str]:
    """The step that a run chose as its best, and the metric that it was chosen by."""
    if "chosen_step" not in result:
        return []
    values = ", ".join(f"{name} {value:.4f}" for name, value in result["validation"].items())
    return [f"measured at step {result['chosen_step']}, the best on the validation split: {values}"]


def of_population(result: dict[str, Any], folder: str | os.PathLike) -> str:
    """Describes a finished population: a table with the best member first, and means over seeds."""
    members = result["population"]
    results = [own["eval"] and {**result, "eval": own["eval"]} for own in members]
    settings = [{key: str(value) for key, value in own["overrides"].items()} for own in members]
    lines = [sweep_table(settings, results, ["failed" if "failed" in own else "finished" for own in members])]
    for own in result["settings"]:
        if own["members"] > 1:
            what = ", ".join(f"{key}={value}" for key, value in own["overrides"].items())
            values = ", ".join(f"{name} {mean:.4f} ± {own['std'][name]:.4f}" for name, mean in own["mean"].items())
            lines.append(f"{what or 'all'}: {values} (mean and deviation of {own['members']} seeds)")
    lines += [f"failed: {own['member']}: {own['failed']}" for own in members if "failed" in own]
    lines.append(f"the best: {os.path.join(folder, 'members', result['best'])}; {result['seconds']:.0f} s for all")
    return "\n".join(lines)


def sweep_table(
    settings: Sequence[Mapping[str, str]], results: Sequence[Mapping[str, Any] | None], states: Sequence[str]
) -> str:
    """Shows the runs of a sweep in aligned columns, the best by its main metric first, those without a result last.

    Args:
      settings: the settings that differ among the runs, with the same keys for each.
      results: the contents of `result.json`; None for a run without one.
      states: a word for each run.

    Returns:
      One line of headings, and one for every run: rank, settings, metrics, trained parameters, seconds, state.
    """
    metrics = dict.fromkeys(result["metric"] for result in results if result)  # the main ones come first
    metrics |= dict.fromkeys(name for result in results if result for name in result["eval"])
    rows = [["rank", *settings[0], *metrics, "trained", "seconds", "state"]]
    for rank, index in enumerate(sorted(range(len(results)), key=lambda index: place(results[index], [*metrics])), 1):
        result = results[index]
        measured = ["-"] * (len(metrics) + 2)
        if result:
            values = [f"{result['eval'][name]:.4f}" if name in result["eval"] else "-" for name in metrics]
            measured = [*values, f"{result['trainable_parameters']:,}", f"{result['seconds']:.0f}"]
        rows.append([str(rank) if result else "-", *settings[index].values(), *measured, states[index]])
    return aligned(rows, {*range(1, len(settings[0]) + 1), len(rows[0]) - 1})


def aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> str:
    """A table as text.

    Args:
      rows: the cells, those of the headings first.
      left: the columns that hold words; the others hold numbers, which are flush right.

    Returns:
      A line for every row.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def place(result: Mapping[str, Any] | None, metrics: Sequence[str] = ()) -> tuple[float, ...]:
    """The sorting key of a run; the best run comes first.

    Args:
      result: the contents of `result.json`; None for a run without one, which comes last.
      metrics: main metrics; runs with the first one come first.

    Returns:
      The index of its main metric in `metrics`, then minus the goodness of that metric, then the loss.
    """
    if result is None:
        return (float("inf"),)
    main, values = of_result(result, result["metric"]), result["eval"]
    first = metrics.index(main.name) if main.name in metrics else 0
    return first, -main.goodness(values[main.name]), values["loss"]
