"""Every method on GLUE with the real MiniLM encoder, tuned by the same small recipe.

    python experiments/glue_methods/run.py --data=glue --workdir=runs/glue_methods --tasks=mrpc --seeds=3

`--data` holds GLUE's own folders CoLA, MRPC and SST-2. Every method is trained at three learning rates, with as many
epochs as at the end, and the best rate is chosen on 500 training examples kept apart. (Short trial runs choose badly,
because families differ in how far rate times steps must take them. So does the loss: full fine-tuning overfits and is
sure of its mistakes, but makes fewer.) Then it is trained with every seed and measured on dev, which nothing was chosen
on. `--untuned` takes the middle rate instead, in a quarter of the time, and the result says so. Writes one JSON for
each task and method. Every run has a folder of its own under `--workdir`, so a stopped experiment goes on where it was.
Two CPU cores: a method takes about half an hour for all three tasks.
"""

import itertools
import pathlib
from typing import Any

from experiments.shared import command, methods, recipes, results, tables, tuning
from experiments.shared.recipes import GLUE
from surm.machine import memory

RESULTS = results.of(__file__)
OWN = (
    "head", "low_rank r=1", "circulant", "toeplitz", "kronecker", "low_displacement_rank r=1", "low_rank r=8",
    "adapter circulant", "adapter kronecker", "adapter low_displacement_rank r=1", "bottleneck 16", "bottleneck 64",
    "full",
)  # fmt: skip
RELATED = (
    "c3a", "melora r=1", "lora_xs r=16", "vera", "adalora r=1", "dora_dynamic r=1", "lora2", "lorta r=8", "svft",
    "aurora r=16", "low_rank r=1 with magnitude", "hadamard_adapter", "loko low_rank r=1",
)  # fmt: skip
"""The methods by how they were measured: tuned on all tasks, or at the middle rate on MRPC."""
METHODS = (*OWN, *RELATED)
# Three rates a method, each four times the one before. One Adam step of rate η changes a row of ΔW by about η·ρ,
# where the initial random factor decides ρ. At n = 384 it is about 0.6·√r for low rank, √n = 20 for circulant,
# 0.02·n = 8 for Toeplitz and W(G,H), 2.3 for Kronecker. A first grid had η·ρ at 1.5e-3, 6e-3 and 2.4e-2 for all of
# them; where MRPC's validation was best at an edge, the grid was moved until the best had a neighbour on either side.
RATES: dict[str, tuple[float, float, float]] = dict.fromkeys(METHODS, (2.5e-3, 1e-2, 4e-2)) | {
    "head": (2e-3, 8e-3, 3.2e-2),
    "circulant": (3e-4, 1.2e-3, 5e-3),
    "toeplitz": (8e-4, 3e-3, 1.2e-2),
    "low_displacement_rank r=1": (8e-4, 3e-3, 1.2e-2),
    "low_rank r=8": (1e-3, 4e-3, 1.5e-2),
    "adapter circulant": (2e-3, 8e-3, 3.2e-2),
    "adapter kronecker": (2e-3, 8e-3, 3.2e-2),
    "adapter low_displacement_rank r=1": (4e-4, 1.6e-3, 6.4e-3),
    "bottleneck 16": (4e-4, 1.6e-3, 6.4e-3),
    "bottleneck 64": (2.5e-4, 1e-3, 4e-3),
    "full": (4e-5, 1.6e-4, 6.4e-4),
    "c3a": (5e-2, 2e-1, 8e-1),
    "aurora r=16": (8e-4, 3e-3, 1.2e-2),
    "hadamard_adapter": (1e-3, 4e-3, 1.6e-2),
    "loko low_rank r=1": (2.5e-5, 1e-4, 4e-4),
}
TUNING = {"data.eval_split": "validation", "data.validation_examples": 500}


def measure(
    task: str, method: str, data: pathlib.Path, workdir: pathlib.Path, seeds: int, *, tuned: bool = True
) -> dict[str, Any]:
    """Tunes and trains one method: the first seed's result, every seed's metrics, and what tuning found."""
    chosen_by, folder = GLUE[task].chosen_by, workdir / task / method.replace(" ", "_")
    common, key = recipes.changes(task, method, data), methods.rate_key(method)
    rates = RATES[method] if tuned else ()
    tried = tuning.try_rates(rates, lambda rate: _train(task, {**common, **TUNING, key: rate}, folder / "tune"))
    final = {**common, key: tuning.best(tried, chosen_by) if tuned else RATES[method][1]}
    runs = [_train(task, {**final, "seed": seed}, folder / "final") for seed in range(seeds)]
    return recipes.committed(runs[0] | {"task": task}, task, method, final) | {
        "tuning": {
            "chosen_by": chosen_by if tuned else "nothing: the middle rate",
            "validation": tuning.as_json(tried),
            "changes": TUNING,
        },
        "seeds": {name: [run["eval"][name] for run in runs] for name in runs[0]["eval"]},
    }


def _train(task: str, changes: dict[str, Any], stage: pathlib.Path) -> dict[str, Any]:
    """Trains in a folder of its own for these changes, or reads the result if that is done."""
    return recipes.trained(recipes.flags(task, changes), tuning.folder_for(changes, stage))


def table() -> str:
    """The committed results as Markdown: a row for each method that ran on every task."""
    found = {task: results.by_method(RESULTS, f"{task}_*.json") for task in GLUE}
    heads = [f"{recipe.folder} ({', '.join(recipe.shown)})" for recipe in GLUE.values()]
    rows = [
        (name, f"{row['adapter_parameters']:,}", *(_cell(of_task[name]) for of_task in found.values()))
        for name, row in found["mrpc"].items()
        if all(name in of_task for of_task in found.values())
    ]
    return tables.markdown(("method", "trained beside the head", *heads), rows)


def _cell(result: dict[str, Any]) -> str:
    return ", ".join(tables.percent(result["seeds"][name]) for name in GLUE[result["task"]].shown)


def rates_table() -> str:
    """What tuning found on MRPC, as Markdown: accuracy in percent on the 500 training examples, by rate."""
    rows = []
    for name, result in results.by_method(RESULTS, "mrpc_*.json").items():
        if tuned := result["tuning"]["validation"]:
            percents = {rate: f"{100 * values['accuracy']:.1f}" if values else "–" for rate, values in tuned.items()}
            cells = [f"{rate}: {percent}" for rate, percent in percents.items()]
            rows.append((name, *cells, f"{result['learning_rate']:g}"))
    return tables.markdown(("method", "rate: a quarter of", "the middle one", "four times", "chosen"), rows)


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--data", type=pathlib.Path, help="the folder that holds CoLA, MRPC and SST-2")
    parser.add_argument("--workdir", type=pathlib.Path, default=results.ROOT / "runs" / "glue_methods")
    command.several(parser, "--tasks", GLUE)
    command.several(parser, "--methods", METHODS)
    parser.add_argument("--seeds", type=command.count, default=1)
    parser.add_argument("--untuned", action="store_true", help="at the middle of a method's three rates")
    arguments = parser.parse_args()
    if arguments.data is None or not arguments.data.is_dir():
        parser.error(f"--data={arguments.data}, expected the folder that holds CoLA, MRPC and SST-2")
    memory.keep_freed_memory()
    data, workdir = arguments.data.resolve(), arguments.workdir.resolve()
    for task, method in itertools.product(arguments.tasks, arguments.methods):
        result = measure(task, method, data, workdir, arguments.seeds, tuned=not arguments.untuned)
        results.write(RESULTS / f"{task}_{methods.file_name(method)}.json", result)
        print(f"{task} {method}: {result['seeds']} {result['tuning']['validation']}", flush=True)
    print(table())


if __name__ == "__main__":
    command.run(main)
