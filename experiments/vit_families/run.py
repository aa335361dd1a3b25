"""Every family on the shipped backbone: tuned by the same small recipe, then trained once a seed; one JSON a method.

    python experiments/vit_families/run.py --dataset=cifar10 --source=cifar10.npz
    python experiments/vit_families/run.py --dataset=digits --methods=head,circulant

The recipe on CIFAR-10: three learning rates for every method, each a short run on a part of the training set, the best
chosen on the validation split; then the full run, measured once on the test split. Digits are the demo: the config as
it stands, nothing tuned here. `--table` prints the results as Markdown and trains nothing. Two CPU cores: an hour and a
half on CIFAR-10.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import sys
import tempfile
from typing import Any

from surm import files, train
from surm.cli import command_line
from surm.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent.parent
RESULTS = pathlib.Path(__file__).parent / "results"

METHODS: dict[str, dict[str, Any]] = {
    "head": {"peft.method": "head"},
    "circulant": {"peft.family": "circulant"},
    "toeplitz": {"peft.family": "toeplitz"},
    "kronecker": {"peft.family": "kronecker"},
    "low_displacement_rank r=1": {"peft.family": "low_displacement_rank", "peft.options": "rank=1"},
    "low_rank r=1": {"peft.family": "low_rank", "peft.options": "rank=1"},
    "low_rank r=8": {"peft.family": "low_rank", "peft.options": "rank=8"},
    "c3a": {"peft.family": "c3a"},
    "melora r=1": {"peft.family": "melora"},
    "lora_xs r=16": {"peft.family": "lora_xs"},
    "vera": {"peft.family": "vera"},
    "adalora r=1": {"peft.family": "adalora", "peft.options": "rank=1"},
    "dora_dynamic r=1": {"peft.family": "dora_dynamic", "peft.options": "rank=1"},
    "lora2": {"peft.family": "lora2"},
    "lorta r=8": {"peft.family": "lorta", "peft.options": "rank=8,heads=3"},
    "svft": {"peft.family": "svft"},
    "aurora r=16": {"peft.family": "aurora", "peft.options": "rank=16"},
    "low_rank r=1 with magnitude": {"peft.family": "low_rank", "peft.options": "rank=1", "peft.magnitude": True},
    "circulant with magnitude": {"peft.family": "circulant", "peft.magnitude": True},
    "kronecker three terms": {"peft.family": "kronecker", "peft.options": "terms=3"},
    "hadamard_adapter": {"peft.method": "hadamard_adapter", "peft.options": r"norm='.*\.norm2'"},
    "loko low_rank r=1": {"peft.method": "loko", "peft.family": "low_rank", "peft.options": "rank=1"},
}
RATES = {"c3a": (5e-2, 2e-1, 8e-1), "loko low_rank r=1": (1e-5, 1e-4, 1e-3)}
"""Of methods whose rate is another thing than an entry's of ΔW: divided by n, or a variance."""
DATASETS: dict[str, dict[str, Any]] = {
    "digits": {"config": "vit_digits", "final": {}, "rates": ()},
    "cifar10": {
        "config": "vit_cifar",
        "final": {"model.weights": "asset:vit_micro"},
        "rates": (1e-3, 4e-3, 1.6e-2),
        "tuning": {"data.train_examples": 2500},
    },
}


def flags(name: str, changes: dict[str, Any]) -> list[str]:
    """The flags of `python -m surm.train` for a file under configs/ with some keys changed."""
    return [f"--config=configs/{name}.py", *(f"--config.{key}={value}" for key, value in changes.items())]


def file_name(method: str) -> str:
    """A method's in the names of files: without spaces and equals signs."""
    return method.replace(" r=", "_r").replace(" ", "_")


def measure(dataset: str, method: str, source: str | None, seeds: int) -> dict[str, Any]:
    """Tunes one method and trains it; the first seed's result, every seed's metric, and what tuning found."""
    recipe = DATASETS[dataset]
    common = {**recipe["final"], **({"data.source": source} if source else {}), **METHODS[method]}
    key = "optim.head_learning_rate" if method == "head" else "optim.learning_rate"
    tuning = {}
    for rate in recipe["rates"] and RATES.get(method, recipe["rates"]):
        changes = {**common, **recipe["tuning"], key: rate, "data.eval_split": "validation"}
        tuning[rate] = _train(recipe["config"], changes)["eval"]["accuracy"]
    final = {**common, key: max(tuning, key=tuning.get)} if tuning else common
    runs = [_train(recipe["config"], {**final, "seed": seed}) for seed in range(seeds)]
    accuracies = [run["eval"]["accuracy"] for run in runs]
    shown = {**final, **({"data.source": pathlib.Path(source).name} if source else {})}
    result = runs[0] | {"dataset": dataset, "name": method}
    result["command"] = " ".join(["python -m surm.train --workdir=DIR", *flags(recipe["config"], shown)])
    if tuning:
        result["tuning"] = {"rate": {str(rate): value for rate, value in tuning.items()}, "changes": recipe["tuning"]}
    result["seeds"] = {"accuracy": accuracies, "mean": statistics.fmean(accuracies)}
    if source:
        result["config"]["data"]["source"] = shown["data.source"]
    return result


def table(dataset: str) -> str:
    """The committed results of a dataset as a Markdown table: a row a method, fewest parameters first."""
    results = [json.loads(path.read_text()) for path in RESULTS.glob(f"{dataset}_*.json")]
    results.sort(key=lambda result: (result["adapter_parameters"], result["name"]))
    rows = [("method", "trained beside the head", "accuracy"), ("---", "---:", "---:")]
    for result in results:
        rows.append((result["name"], f"{result['adapter_parameters']:,}", _accuracy(result["seeds"]["accuracy"])))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _accuracy(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread} %"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, required=True)
    parser.add_argument("--source", help="replaces the config's data.source")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated; all by default")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    source = arguments.source and str(pathlib.Path(arguments.source).resolve())
    for method in arguments.methods.split(",") if not arguments.table else ():
        result = measure(arguments.dataset, method, source, arguments.seeds)
        file = RESULTS / f"{arguments.dataset}_{file_name(method)}.json"
        files.replace(file, json.dumps(result, indent=2) + "\n")
        print(f"{method}: {result['seeds']} {result.get('tuning')}", flush=True)
    print(table(arguments.dataset))


def _train(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as workdir, contextlib.chdir(ROOT):
        parsed = command_line.parse(["run", *flags(name, changes), f"--workdir={workdir}"])
        return train.run(parsed.config, workdir) | {"peak_bytes": None}  # the process has run others before


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
