"""Every method on GLUE with the real MiniLM encoder: tuned by the same small recipe, one JSON a task and method.

    python experiments/glue_methods/run.py --data=glue --workdir=runs/glue_methods --tasks=mrpc --seeds=3
    python experiments/glue_methods/run.py --table

`--data` holds GLUE's own folders CoLA, MRPC and SST-2. The recipe: three learning rates for every method, each a run of
as many epochs as the final one, the best chosen on 500 training examples kept apart; then the final run, once a seed,
measured on dev, which nothing was chosen on. (Short trial runs choose badly: what counts is how far a run moves, rate
times steps, and families differ in how far they can go. So does the loss: full fine-tuning overfits and is sure of its
mistakes, but makes fewer.) `--untuned` takes the middle rate instead, in a quarter of the time, and the result says so.
Every run has a folder of its own under `--workdir`, so a stopped experiment goes on where it was. `--table` prints the
results of the methods that ran on every task as Markdown and trains nothing. Two CPU cores: a method takes about half
an hour for all three tasks.
"""

import hashlib
import json
import pathlib
from typing import Any

from experiments.shared import command, methods, recipes, results, tables
from experiments.shared.recipes import TASKS
from surm.machine import memory
from surm.rundir.log import NonFiniteError

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
    """Tunes one method on one task and trains it; the first seed's result, every seed's metrics, what tuning found."""
    recipe, folder = TASKS[task], workdir / task / method.replace(" ", "_")
    common, key = recipes.on_glue(task, method, data), methods.rate_key(method)
    tuning: dict[float, dict[str, float] | None] = {}  # None where the loss did not stay finite
    for rate in RATES[method] if tuned else ():
        try:
            tuning[rate] = _train({**common, **TUNING, key: rate}, folder / "tune")["eval"]
        except NonFiniteError:
            tuning[rate] = None
    final = {**common, key: best(tuning, recipe.chosen_by) if tuned else RATES[method][1]}
    runs = [_train({**final, "seed": seed}, folder / "final") for seed in range(seeds)]
    result = runs[0] | {"task": task, "name": method, "peak_bytes": None}  # the process has run others before
    result["command"] = recipes.command(recipes.flags(recipes.GLUE, final | {"data.source": recipe.folder}))
    validation = {f"{rate:g}": values for rate, values in tuning.items()}
    chosen_by = recipe.chosen_by if tuned else "nothing: the middle rate"
    result["tuning"] = {"chosen_by": chosen_by, "validation": validation, "changes": TUNING}
    result["seeds"] = {name: [run["eval"][name] for run in runs] for name in runs[0]["eval"]}
    result["config"]["data"]["source"] = recipe.folder
    return result


def best(tuning: dict[float, dict[str, float] | None], metric: str) -> float:
    """The rate with the highest metric, of equal ones that with the lowest loss."""
    finite = {rate: values for rate, values in tuning.items() if values is not None}
    if not finite:
        raise NonFiniteError(f"at none of the rates {', '.join(map(str, tuning))} did the loss stay finite")
    return max(finite, key=lambda rate: (finite[rate][metric], -finite[rate]["loss"]))


def _train(changes: dict[str, Any], stage: pathlib.Path) -> dict[str, Any]:
    """Trains in a folder of its own for these changes, or reads what it came to if that is done."""
    digest = hashlib.sha256(json.dumps(changes, default=str).encode()).hexdigest()
    return recipes.trained(recipes.flags(recipes.GLUE, changes), stage.with_name(f"{stage.name}_{digest[:12]}"))


def table() -> str:
    """The committed results as Markdown: a row a method that ran on every task, fewest parameters first."""
    found = {task: {row["name"]: row for row in results.every(RESULTS, f"{task}_*.json")} for task in TASKS}
    found = {task: of_task for task, of_task in found.items() if of_task}
    heads = [f"{TASKS[task].folder} ({', '.join(TASKS[task].shown)})" for task in found]
    everywhere = set.intersection(*(set(of_task) for of_task in found.values()))
    sizes = {name: next(of_task[name] for of_task in found.values())["adapter_parameters"] for name in everywhere}
    rows = [
        (name, f"{sizes[name]:,}", *(_cell(of_task[name]) for of_task in found.values()))
        for name in sorted(everywhere, key=lambda name: (sizes[name], name))
    ]
    return tables.markdown(("method", "trained beside the head", *heads), rows)


def rates_table() -> str:
    """What tuning found on MRPC, as Markdown: the accuracy on 500 training examples kept apart, in percent, by rate."""
    found = [result for result in results.every(RESULTS, "mrpc_*.json") if result["tuning"]["validation"]]
    rows = []
    for result in sorted(found, key=lambda result: (result["adapter_parameters"], result["name"])):
        tuned = result["tuning"]["validation"].items()
        cells = [f"{rate}: {100 * values['accuracy']:.1f}" if values else f"{rate}: –" for rate, values in tuned]
        rows.append((result["name"], *cells, f"{result['learning_rate']:g}"))
    return tables.markdown(("method", "rate: a quarter of", "the middle one", "four times", "chosen"), rows)


def _cell(result: dict[str, Any]) -> str:
    return ", ".join(tables.percent(result["seeds"][name]) for name in TASKS[result["task"]].shown)


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--data", type=pathlib.Path, help="the folder that holds CoLA, MRPC and SST-2")
    parser.add_argument("--workdir", type=pathlib.Path, default=results.ROOT / "runs" / "glue_methods")
    command.several(parser, "--tasks", TASKS)
    command.several(parser, "--methods", METHODS)
    parser.add_argument("--seeds", type=command.at_least(1), default=1)
    parser.add_argument("--untuned", action="store_true", help="at the middle of a method's three rates")
    command.instead(parser, "--table", table, "train nothing")
    arguments = parser.parse_args()
    if arguments.data is None or not arguments.data.is_dir():
        parser.error(f"--data={arguments.data}, expected the folder that holds CoLA, MRPC and SST-2")
    memory.keep_freed_memory()
    data, workdir = arguments.data.resolve(), arguments.workdir.resolve()
    for task, method in ((task, method) for task in arguments.tasks for method in arguments.methods):
        result = measure(task, method, data, workdir, arguments.seeds, tuned=not arguments.untuned)
        results.write(RESULTS / f"{task}_{methods.file_name(method)}.json", result)
        print(f"{task} {method}: {result['seeds']} {result['tuning']['validation']}", flush=True)
    print(table())


if __name__ == "__main__":
    command.run(main)
