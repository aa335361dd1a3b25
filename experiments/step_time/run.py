"""What a training step of every method takes, all of a model's in one process and in turns; the table of all methods.

    python experiments/step_time/run.py --cifar10=cifar10.npz --glue=glue
    python experiments/step_time/run.py --table

The steps are those of `vit_families` on CIFAR-10 (shipped backbone, 64 images) and of `glue_methods` on MRPC (MiniLM,
32 pairs padded to 64 tokens), compiled as a run compiles them. Every round takes one step of each method in an order
drawn anew; shown is the median over rounds of a step's time over that of `low_rank r=1` in the same round. `--table`
prints these beside the two experiments' metrics as Markdown and times nothing. Two CPU cores: a quarter of an hour.
"""

import argparse
import contextlib
import json
import pathlib
import random
import runpy
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from surm import config as configs
from surm import files
from surm.cli import command_line
from surm.errors import InputError
from surm.machine import memory
from surm.peft import surgery
from surm.training import optim, preparation, step
from surm.training.result import versions

ROOT = pathlib.Path(__file__).parent.parent.parent
RESULTS = pathlib.Path(__file__).parent / "results"
OVER = "low_rank r=1"
TOKENS = 64

vit = runpy.run_path(str(ROOT / "experiments" / "vit_families" / "run.py"))
glue = runpy.run_path(str(ROOT / "experiments" / "glue_methods" / "run.py"))


def flags(task: str, method: str, source: pathlib.Path) -> list[str]:
    """Those of `python -m surm.train` for a method, at no particular learning rate."""
    if task == "cifar10":
        recipe = vit["DATASETS"]["cifar10"]
        return vit["flags"](recipe["config"], {**recipe["final"], "data.source": source, **vit["METHODS"][method]})
    recipe = glue["TASKS"]["mrpc"]
    source, lengths = source / recipe["folder"], recipe["lengths"]
    return glue["flags"]({"data.source": source, "data.lengths": lengths, **glue["FIXED"], **glue["METHODS"][method]})


METHODS: dict[str, tuple[str, ...]] = {"cifar10": tuple(vit["METHODS"]), "mrpc": tuple(glue["METHODS"])}


def one_step(task: str, method: str, source: pathlib.Path) -> Callable[[], None]:
    """A compiled step that goes on from where it came to, always with the same batch."""
    with contextlib.chdir(ROOT):
        run = preparation.prepare(command_line.parse(["run", *flags(task, method, source), "--workdir=none"]).config)
    numbers = optim.hyperparameters(run.config.optim, configs.spec(run.config), run.total_steps)
    fits = (lambda batch: batch["tokens"].shape[1] == TOKENS) if task == "mrpc" else (lambda _: True)
    batch = next(batch for batch in run.training_batches(0) if fits(batch))
    take, frozen = jax.jit(step.train_step(run), donate_argnums=0), surgery.split(run.model)[2]
    state = step.initial_state(run, 0, averaged=False)

    def again() -> None:
        nonlocal state
        state, values = take(state, frozen, batch, numbers)
        jax.block_until_ready((state, values))

    return again


def timed(steps: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step in every round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for number in range(rounds + 1):
        for name in order.sample(list(steps), len(steps)):
            began = time.perf_counter()
            steps[name]()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def measure(task: str, methods: list[str], source: pathlib.Path, rounds: int) -> dict[str, Any]:
    """The median step of each method, and the quartiles of its ratio to one method's."""
    steps = {}
    for method in methods:
        steps[method] = one_step(task, method, source)
        steps[method]()
        print(f"compiled: {task}, {method}", flush=True)
    seconds, rows = timed(steps, rounds), {}
    for method, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds[OVER], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rows[method] = {"median_seconds": statistics.median(times), "over": middle, "quartiles": [low, high]}
    return {"task": task, "over": OVER, "rounds": rounds, "rows": rows, "versions": versions()}


def table() -> str:
    """Markdown: every method with what trains, the metric and the step, on both tasks; those on CIFAR-10 first."""
    times = {task: _times(RESULTS / f"{task}_cpu.json") for task in METHODS}
    results = {task: _results(task) for task in METHODS}
    names = sorted({name for of_task in results.values() for name in of_task}, key=lambda name: _place(name, results))
    rows = [
        "| method | trained | CIFAR-10 | step | trained | MRPC (f1, accuracy) | step |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        cells = [cell for task in METHODS for cell in _cells(name, results[task], times[task])]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _times(file: pathlib.Path) -> dict[str, dict]:
    return json.loads(file.read_text())["rows"] if file.is_file() else {}


def _results(task: str) -> dict[str, dict]:
    folder = ROOT / "experiments" / ("vit_families" if task == "cifar10" else "glue_methods") / "results"
    found = [json.loads(file.read_text()) for file in folder.glob(f"{task}_*.json")]
    return {result["name"]: result for result in found}


def _place(name: str, results: dict[str, dict[str, dict]]) -> tuple:
    sizes = [results[task][name]["adapter_parameters"] if name in results[task] else 1e9 for task in METHODS]
    return *sizes, name


def _cells(name: str, results: dict[str, dict], times: dict[str, dict]) -> list[str]:
    """What trains, the metrics in percent (* at a rate that was not tuned), the step's time over LoRA's; or nothing."""
    if name not in results:
        return ["", "", ""]
    metrics = [results[name]["seeds"][key] for key in ("f1", "accuracy") if key in results[name]["seeds"]]
    shown = ", ".join(f"{100 * statistics.fmean(values):.1f}" for values in metrics)
    shown += "" if results[name]["tuning"].get("validation", True) else "*"
    step = f"{times[name]['over']:.2f}" if name in times else "–"
    return [f"{results[name]['adapter_parameters']:,}", shown, step]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=pathlib.Path, help="a .npz of CIFAR-10; not given, its table stays as it is")
    parser.add_argument("--glue", type=pathlib.Path, help="the folder that holds MRPC; likewise")
    parser.add_argument("--methods", help="comma-separated; all by default, and only then written")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    given = {"cifar10": arguments.cifar10, "mrpc": arguments.glue}
    sources = {task: path.resolve() for task, path in given.items() if path}
    if missing := [str(path) for path in sources.values() if not path.exists()]:
        parser.error(f"there is no {missing[0]}")
    if arguments.rounds < 2:
        parser.error(f"--rounds={arguments.rounds}, expected at least 2")
    chosen = arguments.methods and [OVER, *(name for name in arguments.methods.split(",") if name != OVER)]
    memory.keep_freed_memory()
    for task, source in sources.items() if not arguments.table else ():
        if unknown := set(chosen or ()) - {*METHODS[task]}:
            parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(METHODS[task])}")
        result = measure(task, chosen or list(METHODS[task]), source, arguments.rounds)
        for name, row in result["rows"].items():
            print(f"{task} {name:40s} {1000 * row['median_seconds']:.0f} ms  {row['over']:.3f}", flush=True)
        if not chosen:
            result["command"] = " ".join(["python experiments/step_time/run.py", *sys.argv[1:]])
            RESULTS.mkdir(exist_ok=True)
            files.replace(RESULTS / f"{task}_{jax.default_backend()}.json", json.dumps(result, indent=2) + "\n")
    if arguments.table:
        print(table())


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
