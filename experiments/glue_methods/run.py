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

import argparse
import contextlib
import hashlib
import json
import pathlib
import statistics
import sys
from typing import Any

from surm import files, train
from surm.cli import command_line
from surm.errors import InputError
from surm.machine import memory
from surm.rundir.log import NonFiniteError

ROOT = pathlib.Path(__file__).parent.parent.parent
RESULTS = pathlib.Path(__file__).parent / "results"
CONFIG = "--config=configs/bert_glue.py:weights=minilm"

METHODS: dict[str, dict[str, Any]] = {
    "head": {"peft.method": "head"},
    "low_rank r=1": {"peft.family": "low_rank", "peft.options": "rank=1"},
    "circulant": {"peft.family": "circulant"},
    "toeplitz": {"peft.family": "toeplitz"},
    "kronecker": {"peft.family": "kronecker"},
    "low_displacement_rank r=1": {"peft.family": "low_displacement_rank", "peft.options": "rank=1"},
    "low_rank r=8": {"peft.family": "low_rank", "peft.options": "rank=8"},
    "adapter circulant": {"peft.method": "adapter", "peft.family": "circulant"},
    "adapter kronecker": {"peft.method": "adapter", "peft.family": "kronecker"},
    "adapter low_displacement_rank r=1": {
        "peft.method": "adapter",
        "peft.family": "low_displacement_rank",
        "peft.options": "rank=1",
    },
    "bottleneck 16": {"peft.method": "bottleneck", "peft.options": "size=16"},
    "bottleneck 64": {"peft.method": "bottleneck", "peft.options": "size=64"},
    "full": {"peft.method": "full"},
    "c3a": {"peft.family": "c3a"},
    "melora r=1": {"peft.family": "melora"},
    "lora_xs r=16": {"peft.family": "lora_xs"},
    "vera": {"peft.family": "vera"},
    "adalora r=1": {"peft.family": "adalora", "peft.options": "rank=1"},
    "dora_dynamic r=1": {"peft.family": "dora_dynamic", "peft.options": "rank=1"},
    "lora2": {"peft.family": "lora2"},
    "lorta r=8": {"peft.family": "lorta", "peft.options": "rank=8,heads=12"},
    "svft": {"peft.family": "svft"},
    "aurora r=16": {"peft.family": "aurora", "peft.options": "rank=16"},
    "low_rank r=1 with magnitude": {"peft.family": "low_rank", "peft.options": "rank=1", "peft.magnitude": True},
    "hadamard_adapter": {"peft.method": "hadamard_adapter", "peft.options": r"norm='.*\.norm1'"},
    "loko low_rank r=1": {
        "peft.method": "loko",
        "peft.family": "low_rank",
        "peft.options": "rank=1",
        "optim.weight_decay": 0.0,  # which a filter has not
        "optim.head_weight_decay": 0.0,
    },
}
# Three rates a method, each four times the one before. One Adam step of rate η changes a row of ΔW by about η·ρ,
# where the initial random factor decides ρ. At n = 384 it is about 0.6·√r for low rank, √n = 20 for circulant,
# 0.02·n = 8 for Toeplitz and W(G,H), 2.3 for Kronecker. A first grid had η·ρ at 1.5e-3, 6e-3 and 2.4e-2 for all of
# them; where MRPC's validation was best at an edge, the grid was moved until the best had a neighbour on either side.
RATES: dict[str, tuple[float, float, float]] = {
    "head": (2e-3, 8e-3, 3.2e-2),
    "low_rank r=1": (2.5e-3, 1e-2, 4e-2),
    "circulant": (3e-4, 1.2e-3, 5e-3),
    "toeplitz": (8e-4, 3e-3, 1.2e-2),
    "kronecker": (2.5e-3, 1e-2, 4e-2),
    "low_displacement_rank r=1": (8e-4, 3e-3, 1.2e-2),
    "low_rank r=8": (1e-3, 4e-3, 1.5e-2),
    "adapter circulant": (2e-3, 8e-3, 3.2e-2),
    "adapter kronecker": (2e-3, 8e-3, 3.2e-2),
    "adapter low_displacement_rank r=1": (4e-4, 1.6e-3, 6.4e-3),
    "bottleneck 16": (4e-4, 1.6e-3, 6.4e-3),
    "bottleneck 64": (2.5e-4, 1e-3, 4e-3),
    "full": (4e-5, 1.6e-4, 6.4e-4),
    "c3a": (5e-2, 2e-1, 8e-1),
    "melora r=1": (2.5e-3, 1e-2, 4e-2),
    "lora_xs r=16": (2.5e-3, 1e-2, 4e-2),
    "vera": (2.5e-3, 1e-2, 4e-2),
    "adalora r=1": (2.5e-3, 1e-2, 4e-2),
    "dora_dynamic r=1": (2.5e-3, 1e-2, 4e-2),
    "lora2": (2.5e-3, 1e-2, 4e-2),
    "lorta r=8": (2.5e-3, 1e-2, 4e-2),
    "svft": (2.5e-3, 1e-2, 4e-2),
    "aurora r=16": (8e-4, 3e-3, 1.2e-2),
    "low_rank r=1 with magnitude": (2.5e-3, 1e-2, 4e-2),
    "hadamard_adapter": (1e-3, 4e-3, 1.6e-2),
    "loko low_rank r=1": (2.5e-5, 1e-4, 4e-4),
}

FIXED = {"optim.batch_size": 32, "optim.head_learning_rate": 5e-3, "peft.dropout": 0.0}
TUNING = {"data.eval_split": "validation", "data.validation_examples": 500}
TASKS: dict[str, dict[str, Any]] = {  # `chosen_by`: not MRPC's F1, which a constant answer does well at
    "mrpc": {
        "folder": "MRPC",
        "shown": ("f1", "accuracy"),
        "chosen_by": "accuracy",
        "lengths": "48,64,80,104",
        "run": {"optim.epochs": 3},
    },
    "cola": {
        "folder": "CoLA",
        "shown": ("matthews",),
        "chosen_by": "matthews",
        "lengths": "12,16,24,48",
        "run": {"optim.epochs": 3},
    },
    "sst2": {
        "folder": "SST-2",
        "shown": ("accuracy",),
        "chosen_by": "accuracy",
        "lengths": "12,16,24,32,48,72",
        "run": {"optim.epochs": 2, "data.train_examples": 4000},
    },
}


def flags(changes: dict[str, Any]) -> list[str]:
    """The flags of `python -m surm.train` with some keys changed."""
    return [CONFIG, *(f"--config.{key}={value}" for key, value in changes.items())]


def measure(
    task: str, method: str, data: pathlib.Path, workdir: pathlib.Path, seeds: int, *, tuned: bool = True
) -> dict[str, Any]:
    """Tunes one method on one task and trains it; the first seed's result, every seed's metrics, what tuning found."""
    recipe, folder = TASKS[task], workdir / task / method.replace(" ", "_")
    source = data / recipe["folder"]
    common = {"data.source": source, "data.lengths": recipe["lengths"], **recipe["run"], **FIXED, **METHODS[method]}
    key = "optim.head_learning_rate" if method == "head" else "optim.learning_rate"
    tuning: dict[float, dict[str, float] | None] = {}  # None where the loss did not stay finite
    for rate in RATES[method] if tuned else ():
        try:
            tuning[rate] = _train({**common, **TUNING, key: rate}, folder / "tune")["eval"]
        except NonFiniteError:
            tuning[rate] = None
    final = {**common, key: best(tuning, recipe["chosen_by"]) if tuned else RATES[method][1]}
    runs = [_train({**final, "seed": seed}, folder / "final") for seed in range(seeds)]
    metrics = {name: [run["eval"][name] for run in runs] for name in runs[0]["eval"]}
    result = runs[0] | {"task": task, "name": method, "peak_bytes": None}  # the process has run others before
    shown = {**final, "data.source": recipe["folder"]}
    result["command"] = " ".join(["python -m surm.train --workdir=DIR", *flags(shown)])
    validation = {f"{rate:g}": values for rate, values in tuning.items()}
    chosen_by = recipe["chosen_by"] if tuned else "nothing: the middle rate"
    result["tuning"] = {"chosen_by": chosen_by, "validation": validation, "changes": TUNING}
    result["seeds"] = metrics
    result["config"]["data"]["source"] = recipe["folder"]
    return result


def best(tuning: dict[float, dict[str, float] | None], metric: str) -> float:
    """The rate with the highest metric, of equal ones that with the lowest loss."""
    finite = {rate: values for rate, values in tuning.items() if values is not None}
    if not finite:
        raise NonFiniteError(f"at none of the rates {', '.join(map(str, tuning))} did the loss stay finite")
    return max(finite, key=lambda rate: (finite[rate][metric], -finite[rate]["loss"]))


def table() -> str:
    """The committed results as Markdown: a row a method that ran on every task, fewest parameters first."""
    results = _committed()
    tasks = [task for task in TASKS if any(result["task"] == task for result in results)]
    heads = [f"{TASKS[task]['folder']} ({', '.join(TASKS[task]['shown'])})" for task in tasks]
    rows = ["| method | trained beside the head | " + " | ".join(heads) + " |", "|---|---:|" + "---:|" * len(tasks)]
    by_name: dict[str, dict[str, dict]] = {}
    for result in results:
        by_name.setdefault(result["name"], {})[result["task"]] = result
    everywhere = [(name, found) for name, found in by_name.items() if found.keys() == {*tasks}]
    for name, found in sorted(everywhere, key=lambda item: (_size(item[1]), item[0])):
        cells = [_cell(found[task]) for task in tasks]
        rows.append(f"| {name} | {_size(found):,} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def rates_table() -> str:
    """What tuning found on MRPC, as Markdown: the accuracy on 500 training examples kept apart, in percent, by rate."""
    found = [result for result in _committed("mrpc") if result["tuning"]["validation"]]
    rows = ["| method | rate: a quarter of | the middle one | four times | chosen |", "|---|---:|---:|---:|---:|"]
    for result in sorted(found, key=lambda result: (result["adapter_parameters"], result["name"])):
        tuned = result["tuning"]["validation"].items()
        cells = [f"{rate}: {100 * values['accuracy']:.1f}" if values else f"{rate}: –" for rate, values in tuned]
        rows.append(f"| {result['name']} | {' | '.join(cells)} | {result['learning_rate']:g} |")
    return "\n".join(rows)


def _committed(task: str = "*") -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{task}_*.json"))]


def _size(found: dict[str, dict]) -> int:
    return next(iter(found.values()))["adapter_parameters"]


def _cell(result: dict[str, Any]) -> str:
    cells = []
    for name in TASKS[result["task"]]["shown"]:
        values = [100 * value for value in result["seeds"][name]]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.fmean(values):.1f}{spread}")
    return ", ".join(cells)


def _train(changes: dict[str, Any], stage: pathlib.Path) -> dict[str, Any]:
    """Trains in a folder of its own for these changes, or reads what it came to if that is done."""
    digest = hashlib.sha256(json.dumps(changes, default=str).encode()).hexdigest()
    workdir = stage.with_name(f"{stage.name}_{digest[:12]}")
    with contextlib.chdir(ROOT):
        parsed = command_line.parse(["run", *flags(changes), f"--workdir={workdir}"])
        return train.run(parsed.config, str(workdir))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, help="the folder that holds CoLA, MRPC and SST-2")
    parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs" / "glue_methods")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated; all by default")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated; all by default")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--untuned", action="store_true", help="at the middle of a method's three rates")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.data is None or not arguments.data.is_dir():
            parser.error(f"--data={arguments.data}, expected the folder that holds CoLA, MRPC and SST-2")
        if arguments.seeds < 1:
            parser.error(f"--seeds={arguments.seeds}, expected at least 1")
        for given, known in ((arguments.tasks, TASKS), (arguments.methods, METHODS)):
            if unknown := set(given.split(",")) - known.keys():
                parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        RESULTS.mkdir(exist_ok=True)
        memory.keep_freed_memory()
        for task in arguments.tasks.split(","):
            for method in arguments.methods.split(","):
                data, workdir = arguments.data.resolve(), arguments.workdir.resolve()
                result = measure(task, method, data, workdir, arguments.seeds, tuned=not arguments.untuned)
                name = f"{task}_{method.replace(' r=', '_r').replace(' ', '_')}.json"
                files.replace(RESULTS / name, json.dumps(result, indent=2) + "\n")
                print(f"{task} {method}: {result['seeds']} {result['tuning']['validation']}", flush=True)
    print(table())


if __name__ == "__main__":
    try:
        main()
    except (InputError, NonFiniteError) as error:
        sys.exit(f"error: {error}")
