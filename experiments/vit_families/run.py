"""Every family on the shipped backbone: tuned by the same small recipe, then trained once a seed; one JSON a method.

    python experiments/vit_families/run.py --dataset=cifar10 --source=cifar10.npz
    python experiments/vit_families/run.py --dataset=digits --methods=head,circulant

The recipe on CIFAR-10: three learning rates for every method, each a short run on a part of the training set, the best
chosen on the validation split; then the full run, measured once on the test split. Digits are the demo: the config as
it stands, nothing tuned here. `--table` prints the results as Markdown and trains nothing. Two CPU cores: an hour and a
half on CIFAR-10.
"""

import pathlib
import statistics
from typing import Any

from experiments.shared import command, methods, recipes, results, tables

RESULTS = results.of(__file__)
METHODS = ("head", *methods.UPDATES, "hadamard_adapter", "loko low_rank r=1")
RATES = dict.fromkeys(METHODS, (1e-3, 4e-3, 1.6e-2)) | {
    "c3a": (5e-2, 2e-1, 8e-1),
    "loko low_rank r=1": (1e-5, 1e-4, 1e-3),
}
"""What is tried on CIFAR-10; two methods' rates are no entry's of ΔW: divided by n, or a variance."""
DATASETS = {"digits": recipes.DIGITS, "cifar10": recipes.CIFAR10}
TUNING = {"data.train_examples": 2500}


def measure(dataset: str, method: str, source: str | None, seeds: int) -> dict[str, Any]:
    """Tunes one method and trains it; the first seed's result, every seed's metric, and what tuning found."""
    file, common = DATASETS[dataset], recipes.on_digits(method, source)
    if dataset == "cifar10":
        common = recipes.on_cifar10(method, source)
    key, tuning, final = methods.rate_key(method), {}, common
    for rate in RATES[method] if dataset == "cifar10" else ():
        changes = {**common, **TUNING, key: rate, "data.eval_split": "validation"}
        tuning[rate] = recipes.trained(recipes.flags(file, changes))["eval"]["accuracy"]
        final = common | {key: max(tuning, key=tuning.__getitem__)}
    runs = [recipes.trained(recipes.flags(file, {**final, "seed": seed})) for seed in range(seeds)]
    accuracies = [run["eval"]["accuracy"] for run in runs]
    shown = final | ({"data.source": pathlib.Path(source).name} if source else {})
    result = runs[0] | {"dataset": dataset, "name": method, "peak_bytes": None}  # the process has run others before
    result["command"] = recipes.command(recipes.flags(file, shown))
    if tuning:
        result["tuning"] = {"rate": {str(rate): value for rate, value in tuning.items()}, "changes": TUNING}
    result["seeds"] = {"accuracy": accuracies, "mean": statistics.fmean(accuracies)}
    if source:
        result["config"]["data"]["source"] = shown["data.source"]
    return result


def table(dataset: str) -> str:
    """The committed results of a dataset as a Markdown table: a row a method, fewest parameters first."""
    found = results.every(RESULTS, f"{dataset}_*.json")
    found.sort(key=lambda result: (result["adapter_parameters"], result["name"]))
    rows = [
        (result["name"], f"{result['adapter_parameters']:,}", f"{tables.percent(result['seeds']['accuracy'])} %")
        for result in found
    ]
    return tables.markdown(("method", "trained beside the head", "accuracy"), rows)


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--dataset", choices=DATASETS, required=True)
    parser.add_argument("--source", help="replaces the config's data.source")
    command.several(parser, "--methods", METHODS)
    parser.add_argument("--seeds", type=command.at_least(1), default=1)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    source = arguments.source and str(pathlib.Path(arguments.source).resolve())
    for method in arguments.methods if not arguments.table else ():
        result = measure(arguments.dataset, method, source, arguments.seeds)
        results.write(RESULTS / f"{arguments.dataset}_{methods.file_name(method)}.json", result)
        print(f"{method}: {result['seeds']} {result.get('tuning')}", flush=True)
    print(table(arguments.dataset))


if __name__ == "__main__":
    command.run(main)
