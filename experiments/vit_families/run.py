"""Every family on the shipped backbone, tuned by the same small recipe and then trained with every seed.

    python experiments/vit_families/run.py --dataset=cifar10 --source=cifar10.npz
    python experiments/vit_families/run.py --dataset=digits --methods=head,circulant

On CIFAR-10 every method is tried at three learning rates, each in a short run on a part of the training set. The best
one on the validation split is taken for the full run, which is measured once on the test split. On digits the demo's
config is trained as it is. Writes one JSON for each method. Two CPU cores: an hour and a half on CIFAR-10.
"""

import pathlib
import statistics
from typing import Any

from experiments.shared import command, methods, recipes, results

RESULTS = results.of(__file__)
METHODS = ("head", *methods.UPDATES, "hadamard_adapter", "loko low_rank r=1")
RATES = dict.fromkeys(METHODS, (1e-3, 4e-3, 1.6e-2)) | {
    "c3a": (5e-2, 2e-1, 8e-1),
    "loko low_rank r=1": (1e-5, 1e-4, 1e-3),
}
"""The rates tried on CIFAR-10. Two methods' are no rates of entries of ΔW: C3A divides by n, LoKO's is a variance."""
TUNING = {"data.train_examples": 2500}


def measure(dataset: str, method: str, source: pathlib.Path | None, seeds: int) -> dict[str, Any]:
    """Tunes and trains one method: the first seed's result, every seed's accuracy, and what tuning found."""
    final, key, tuning = recipes.changes(dataset, method, source), methods.rate_key(method), {}
    for rate in RATES[method] if dataset == "cifar10" else ():
        changes = {**final, **TUNING, key: rate, "data.eval_split": "validation"}
        tuning[rate] = recipes.trained(recipes.flags(dataset, changes))["eval"]["accuracy"]
    if tuning:
        final |= {key: max(tuning, key=tuning.__getitem__)}
    runs = [recipes.trained(recipes.flags(dataset, {**final, "seed": seed})) for seed in range(seeds)]
    accuracies = [run["eval"]["accuracy"] for run in runs]
    result = recipes.committed(runs[0] | {"dataset": dataset}, dataset, method, final)
    if tuning:
        result["tuning"] = {"rate": {str(rate): value for rate, value in tuning.items()}, "changes": TUNING}
    return result | {"seeds": {"accuracy": accuracies, "mean": statistics.fmean(accuracies)}}


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--dataset", choices=("digits", "cifar10"), required=True)
    parser.add_argument("--source", type=pathlib.Path, help="replaces the config's data.source")
    command.several(parser, "--methods", METHODS)
    parser.add_argument("--seeds", type=command.count, default=1)
    arguments = parser.parse_args()
    source = arguments.source and arguments.source.resolve()
    for method in arguments.methods:
        result = measure(arguments.dataset, method, source, arguments.seeds)
        results.write(RESULTS / f"{arguments.dataset}_{methods.file_name(method)}.json", result)
        print(f"{method}: {result['seeds']} {result.get('tuning')}", flush=True)


if __name__ == "__main__":
    command.run(main)
