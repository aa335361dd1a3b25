"""Accuracy against trained parameters, every method: from few images, from all of them, and on texts.

    python experiments/pareto/run.py --source=cifar10.npz
    python experiments/pareto/run.py --figure

Trains with 10, 50 and 200 images a class of CIFAR-10 (shipped backbone; the methods of `vit_families` but LoKO, whose
step takes nine times as long, and a bottleneck and full fine-tuning). The budget is the same for every method: five
learning rates as one population, the three that `vit_families` tries and one to each side, a factor of four apart; the
best is chosen on 4,000 training images kept apart; then three seeds as another, at that rate, measured once on the
1,000 test images. All seeds train on the same images. `--figure` draws what is committed, beside what `vit_families`
measured with 10,000 images and `glue_methods` on MRPC, and trains nothing: means with one standard deviation, what has
one seed hollow with the standard error of a share, and the front of the others; `--table` prints it as Markdown;
`--missing` trains only what has no result yet. Two CPU cores: two hours.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import runpy
import shlex
import sys
import tempfile
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from surm import files, train
from surm.cli import command_line
from surm.errors import InputError
from surm.report import figures
from surm.report.collect import Result, collect
from surm.report.compare import Row, Table
from surm.report.plots import best_at_their_size
from surm.report.tables import measured
from surm.rundir.log import NonFiniteError

ROOT = pathlib.Path(__file__).parent.parent.parent
RESULTS = pathlib.Path(__file__).parent / "results"

vit = runpy.run_path(str(ROOT / "experiments" / "vit_families" / "run.py"))
METHODS: dict[str, dict[str, Any]] = {
    **{name: changes for name, changes in vit["METHODS"].items() if not name.startswith("loko")},
    "bottleneck 16": {"peft.method": "bottleneck", "peft.options": "size=16"},
    "full": {"peft.method": "full"},
}
RATES = vit["RATES"] | {"bottleneck 16": (4e-4, 1.6e-3, 6.4e-3), "full": (4e-5, 1.6e-4, 6.4e-4)}
STEPS = {10: 60, 50: 100, 200: 160}
"""Of 32 images, by the number of images a class."""
SEEDS = 3


def flags(method: str, images: int, source: str) -> list[str]:
    """Those of `python -m surm.train` for a method and so many images a class, at no particular learning rate."""
    recipe = vit["DATASETS"]["cifar10"]
    small = {"data.train_examples": 10 * images, "optim.epochs": 0, "optim.steps": STEPS[images]}
    fixed = {"optim.batch_size": 32, "data.source": source, "checkpoint_every_steps": 0}
    return vit["flags"](recipe["config"], {**recipe["final"], **small, **fixed, **METHODS[method]})


def measure(method: str, images: int, source: str) -> dict[str, Any]:
    """Tunes a method and trains its seeds; the first seed's result, all seeds' metrics, and what tuning found."""
    given = flags(method, images, source)
    key = "head_learning_rate" if method == "head" else "learning_rate"
    rates = RATES.get(method, vit["DATASETS"]["cifar10"]["rates"])
    rates = (rates[0] / 4, *rates, 4 * rates[-1])
    of_rates = f"--config.population={key}={'|'.join(map(str, rates))}"
    tried = _population(given, of_rates, "--config.data.eval_split=validation")
    tuning = {
        f"{rate:g}": member["eval"] and member["eval"]["accuracy"]  # None where the loss did not stay finite
        for rate, member in zip(rates, tried["population"], strict=True)
    }
    best = max((rate for rate in tuning if tuning[rate] is not None), key=tuning.__getitem__)
    chosen = f"--config.optim.{key}={best}"
    seeds = f"--config.population=seed={'|'.join(map(str, range(SEEDS)))}"
    found = _population(given, seeds, chosen)
    if failed := [member["member"] for member in found["population"] if not member["eval"]]:
        raise NonFiniteError(f"{method}, {images} images a class: {', '.join(failed)} did not stay finite")
    members = [member["eval"] for member in found["population"]]
    shown = [flag.replace(source, pathlib.Path(source).name) for flag in given]
    told = ("metric", "family", "method", "adapter_parameters", "trainable_parameters", "total_parameters", "steps")
    found["config"]["data"]["source"] = pathlib.Path(source).name
    return {
        "name": method,
        "images_per_class": images,
        "command": shlex.join(["python", "-m", "surm.train", "--workdir=DIR", *shown, chosen, seeds]),
        "eval": members[0],
        "seeds": {name: [values[name] for values in members] for name in members[0]},
        "tuning": {"chosen_by": "accuracy", "validation": tuning},
        **{name: found[name] for name in told},
        "learning_rate": float(best),
        "versions": found["versions"],
        "config": found["config"],
    }


def _population(given: list[str], *more: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as workdir, contextlib.chdir(ROOT):
        every = [*given, *more, f"--workdir={workdir}"]
        return train.run(command_line.parse(["run", *every]).config, workdir)


FEW = {images: f"CIFAR-10, {images} images a class: accuracy" for images in STEPS}
PANELS = {
    **{title: (RESULTS, f"cifar10_{images}_*.json") for images, title in FEW.items()},
    "CIFAR-10, 10,000 images: accuracy": (ROOT / "experiments" / "vit_families" / "results", "cifar10_*.json"),
    "MRPC: F1": (ROOT / "experiments" / "glue_methods" / "results", "mrpc_*.json"),
}
"""What is drawn side by side: titles, and where the results are."""


def sources() -> list[pathlib.Path]:
    """All that the figure is drawn from."""
    return [path for folder, names in PANELS.values() for path in folder.glob(names)]


def panels() -> dict[str, Table]:
    """The results of every panel that has some, fewest parameters first."""
    files = {title: [*folder.glob(names)] for title, (folder, names) in PANELS.items()}
    return {title: _panel(title, found) for title, found in files.items() if found}


def _panel(title: str, files: list[pathlib.Path]) -> Table:
    found = collect(files)
    for file, why in found.skipped.items():
        raise InputError(f"{str(file)!r} {why}")
    rows = [Row(result.data["name"], (result,), {}) for result in found.results]
    metric = rows[0].results[0].data["metric"]
    return Table(title, (metric,), tuple(sorted(rows, key=lambda row: (row.parameters, row.label))), ())


def front(table: Table) -> list[Row]:
    """Of those with several seeds the ones that nothing as small or smaller surpasses, fewest parameters first."""
    several = [row for row in table.rows if row.deviation(table.metrics[0]) is not None]
    return best_at_their_size(dataclasses.replace(table, rows=tuple(several)))


def draw() -> None:
    """A panel a data set: means over seeds with one standard deviation, and the front."""
    found = panels()
    figure, axes = plt.subplots(2, 3, figsize=(13, 8), layout="constrained")
    names = list(dict.fromkeys(row.label for table in found.values() for row in table.rows))
    for place in axes.flat[len(found) :]:
        place.axis("off")
    for place, (title, table) in zip(axes.flat, found.items(), strict=False):
        place.set_xscale("symlog", linthresh=1000, linscale=0.5)
        (metric,) = table.metrics
        for row in table.rows:
            number, deviation = names.index(row.label), row.deviation(metric)
            place.errorbar(
                row.parameters,
                100 * row.mean(metric),
                yerr=100 * (_standard_error(row, metric) if deviation is None else deviation),
                markerfacecolor="none" if deviation is None else f"C{number % 10}",
                marker="osD^vP*X"[number // 10 % 8],
                color=f"C{number % 10}",
                label=row.label,
                capsize=2,
                linestyle="none",
            )
        if best := front(table):
            xs, ys = [row.parameters for row in best], [100 * row.mean(metric) for row in best]
            place.step([*xs, 10 * xs[-1]], [*ys, ys[-1]], where="post", color="0.6", linestyle="--", zorder=0)
        place.set(title=title, xlabel="trained parameters beside the head", ylabel="percent")
        place.set_xticks([0, *(10**k for k in range(3, 8) if 10**k < 3 * table.rows[-1].parameters)])
    handles = {}
    for place in axes.flat:
        for handle, name in zip(*place.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    axes.flat[-1].legend(handles.values(), handles.keys(), loc="center", ncols=2, fontsize=8)
    figures.save(figure, RESULTS / "pareto.png", sources())
    plt.close(figure)


def _standard_error(row: Row, metric: str) -> float:
    """Of an accuracy or, nearly, F1 on so many held-out examples."""
    share = row.mean(metric)
    return (share * (1 - share) / (408 if metric == "f1" else 1000)) ** 0.5


def table() -> str:
    """The few-image results as Markdown: a row a method, mean ± standard deviation over seeds."""
    found = panels()
    columns = {images: {row.label: row for row in found[title].rows} for images, title in FEW.items() if title in found}
    sizes = {label: row.parameters for column in columns.values() for label, row in column.items()}
    lines = ["| method | trained | " + " | ".join(f"{images} a class" for images in columns) + " |"]
    lines.append("|---|---:|" + "---:|" * len(columns))
    for label in sorted(sizes, key=lambda label: (sizes[label], label)):
        cells = [measured(column[label], "accuracy") if label in column else "" for column in columns.values()]
        lines.append(f"| {label} | {sizes[label]:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=pathlib.Path, help="a .npz of CIFAR-10 with a validation split")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated; all by default")
    parser.add_argument("--images", default=",".join(map(str, STEPS)), help="a class; comma-separated")
    parser.add_argument("--missing", action="store_true", help="leave results that are there as they are")
    parser.add_argument("--figure", action="store_true", help="train nothing")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    methods, sizes = arguments.methods.split(","), arguments.images.split(",")
    for given, known in ((methods, METHODS), (sizes, [*map(str, STEPS)])):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    if not arguments.figure and not (arguments.source and arguments.source.is_file()):
        parser.error(f"--source={arguments.source}, expected a .npz of CIFAR-10")
    RESULTS.mkdir(exist_ok=True)
    for method in methods if not arguments.figure else ():
        for images in map(int, sizes):
            file = RESULTS / f"cifar10_{images}_{vit['file_name'](method)}.json"
            if not (arguments.missing and file.is_file()):
                result = measure(method, images, str(arguments.source.resolve()))
                files.replace(file, json.dumps(result, indent=2) + "\n")
                shown = measured(Row(method, (Result(file, result, result["seeds"], []),), {}), "accuracy")
                print(f"{method}, {images} a class: {shown} {result['tuning']['validation']}", flush=True)
    draw()


if __name__ == "__main__":
    try:
        main()
    except (InputError, NonFiniteError) as error:
        sys.exit(f"error: {error}")
