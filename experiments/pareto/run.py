"""Accuracy against trained parameters, every method: from few images, from all of them, and on texts.

    python experiments/pareto/run.py --source=cifar10.npz
    python experiments/pareto/run.py --figure

Trains with 10, 50 and 200 images a class of CIFAR-10 (shipped backbone; the methods of `vit_families` but LoKO, whose
step takes nine times as long, and a bottleneck and full fine-tuning). Every method has the same budget: five learning
rates as one population, the three of `vit_families` and one to each side, a factor of four apart; the best is chosen on
4,000 training images kept apart; then three seeds are a second population at that rate, measured once on the 1,000 test
images. All seeds train on the same images. The figure also shows what `vit_families` measured with 10,000 images and
`glue_methods` on MRPC: means with one standard deviation, results of one seed hollow with the standard error of a
share, and the front of the others. `--missing` trains only what has no result yet. Two CPU cores: two hours.
"""

import dataclasses
import itertools
import pathlib
import shlex
from typing import Any

from matplotlib.figure import Figure

from experiments.glue_methods import run as glue
from experiments.shared import command, methods, recipes, results, tables
from experiments.vit_families import run as vit
from surm.report import figures
from surm.report.collect import Result
from surm.report.compare import Row, Table
from surm.report.plots import best_at_their_size
from surm.rundir.log import NonFiniteError

RESULTS = results.of(__file__)
METHODS = (*(name for name in vit.METHODS if not name.startswith("loko")), "bottleneck 16", "full")
RATES = vit.RATES | {name: glue.RATES[name] for name in ("bottleneck 16", "full")}
STEPS = {10: 60, 50: 100, 200: 160}
"""Of 32 images, by the number of images a class."""
SEEDS = 3


def flags(method: str, images: int, source: pathlib.Path) -> list[str]:
    """Those of `python -m surm.train` for a method and so many images a class, without a learning rate."""
    small = {"data.train_examples": 10 * images, "optim.epochs": 0, "optim.steps": STEPS[images]}
    fixed = {"optim.batch_size": 32, "checkpoint_every_steps": 0}
    return recipes.flags("cifar10", {**recipes.changes("cifar10", method, source), **small, **fixed})


def measure(method: str, images: int, source: pathlib.Path) -> dict[str, Any]:
    """Tunes a method and trains its seeds; the first seed's result, all seeds' metrics, and what tuning found."""
    given = flags(method, images, source)
    key = methods.rate_key(method)
    rates = (RATES[method][0] / 4, *RATES[method], 4 * RATES[method][-1])
    of_rates = f"--config.population={key.removeprefix('optim.')}={'|'.join(map(str, rates))}"
    tried = recipes.trained([*given, of_rates, "--config.data.eval_split=validation"])
    tuning = {
        f"{rate:g}": member["eval"] and member["eval"]["accuracy"]  # None where the loss did not stay finite
        for rate, member in zip(rates, tried["population"], strict=True)
    }
    best = max((rate for rate in tuning if tuning[rate] is not None), key=tuning.__getitem__)
    chosen = f"--config.{key}={best}"
    seeds = f"--config.population=seed={'|'.join(map(str, range(SEEDS)))}"
    found = recipes.trained([*given, seeds, chosen])
    if failed := [member["member"] for member in found["population"] if not member["eval"]]:
        raise NonFiniteError(f"{method}, {images} images a class: {', '.join(failed)} did not stay finite")
    members = [member["eval"] for member in found["population"]]
    shown = [flag.replace(str(source), source.name) for flag in given]
    told = ("metric", "family", "method", "adapter_parameters", "trainable_parameters", "total_parameters", "steps")
    found["config"]["data"]["source"] = source.name
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


PANELS = {
    **{
        f"CIFAR-10, {images} images a class: accuracy": (RESULTS, f"cifar10_{images}_*.json", "accuracy")
        for images in STEPS
    },
    "CIFAR-10, 10,000 images: accuracy": (vit.RESULTS, "cifar10_*.json", "accuracy"),
    "MRPC: F1": (glue.RESULTS, "mrpc_*.json", "f1"),
}
"""The panels of the figure: their titles, where their results are, and the metric that is drawn."""


def panels() -> dict[str, Table]:
    """The results of every panel, fewest parameters first."""
    return {title: _panel(title, *of_panel) for title, of_panel in PANELS.items()}


def _panel(title: str, folder: pathlib.Path, names: str, metric: str) -> Table:
    found = results.by_method(folder, names).items()
    rows = (Row(name, (Result(folder, result, result["seeds"], []),), {}) for name, result in found)
    return Table(title, (metric,), tuple(rows), ())


def front(table: Table) -> list[Row]:
    """The rows with several seeds that no smaller or equally small one surpasses, fewest parameters first."""
    several = [row for row in table.rows if row.deviation(table.metrics[0]) is not None]
    return best_at_their_size(dataclasses.replace(table, rows=tuple(several)))


def draw() -> None:
    """A panel for each data set: means over seeds with one standard deviation, and the front."""
    found = panels()
    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplots(2, 3)
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
    sources = [file for folder, names, _ in PANELS.values() for file in folder.glob(names)]
    figures.save(figure, RESULTS / "pareto.png", sources)


def _standard_error(row: Row, metric: str) -> float:
    """Of an accuracy or, nearly, F1 on so many held-out examples."""
    share = row.mean(metric)
    return (share * (1 - share) / (408 if metric == "f1" else 1000)) ** 0.5


def table() -> str:
    """The few-image results as Markdown: a row for each method, mean ± standard deviation over seeds."""
    found = [results.by_method(RESULTS, f"cifar10_{images}_*.json") for images in STEPS]
    rows = [
        (
            name,
            f"{result['adapter_parameters']:,}",
            *(tables.percent(of[name]["seeds"]["accuracy"]) if name in of else "" for of in found),
        )
        for name, result in found[0].items()
    ]
    return tables.markdown(("method", "trained", *(f"{images} a class" for images in STEPS)), rows)


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--source", type=pathlib.Path, help="a .npz of CIFAR-10 with a validation split")
    command.several(parser, "--methods", METHODS)
    command.several(parser, "--images", STEPS, "numbers of images a class")
    parser.add_argument("--missing", action="store_true", help="leave results that are there as they are")
    command.instead(parser, "--figure", draw, "train nothing")
    arguments = parser.parse_args()
    if not (arguments.source and arguments.source.is_file()):
        parser.error(f"--source={arguments.source}, expected a .npz of CIFAR-10")
    for method, images in itertools.product(arguments.methods, map(int, arguments.images)):
        file = RESULTS / f"cifar10_{images}_{methods.file_name(method)}.json"
        if not (arguments.missing and file.is_file()):
            result = measure(method, images, arguments.source.resolve())
            results.write(file, result)
            shown = tables.percent(result["seeds"]["accuracy"])
            print(f"{method}, {images} a class: {shown} {result['tuning']['validation']}", flush=True)
    draw()


if __name__ == "__main__":
    command.run(main)
