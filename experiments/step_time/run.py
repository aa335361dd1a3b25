"""What a training step of every method takes, all of a model's in one process and in turns; the table of all methods.

    python experiments/step_time/run.py --cifar10=cifar10.npz --glue=glue
    python experiments/step_time/run.py --table

The steps are those of `vit_families` on CIFAR-10 (shipped backbone, 64 images) and of `glue_methods` on MRPC (MiniLM,
32 pairs padded to 64 tokens), compiled as a run compiles them. Every round takes one step of each method in an order
drawn anew; shown is the median over rounds of a step's time over that of `low_rank r=1` in the same round. `--table`
prints these beside the two experiments' metrics as Markdown and times nothing. Two CPU cores: a quarter of an hour.
"""

import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import jax

from experiments.glue_methods import run as glue
from experiments.shared import command, recipes, results, tables, turns
from experiments.vit_families import run as vit
from surm import config as configs
from surm.machine import memory
from surm.peft import surgery
from surm.training import optim, step

RESULTS = results.of(__file__)
OVER = "low_rank r=1"
TOKENS = 64
METHODS: dict[str, tuple[str, ...]] = {"cifar10": vit.METHODS, "mrpc": glue.METHODS}


def flags(task: str, method: str, source: pathlib.Path) -> list[str]:
    """Those of `python -m surm.train` for a method, at no particular learning rate."""
    if task == "cifar10":
        return recipes.flags(recipes.CIFAR10, recipes.on_cifar10(method, source))
    return recipes.flags(recipes.GLUE, recipes.on_glue("mrpc", method, source))


def one_step(task: str, method: str, source: pathlib.Path) -> Callable[[], None]:
    """A compiled step that goes on from where it came to, always with the same batch."""
    run = recipes.prepared(recipes.config(flags(task, method, source)))
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


def measure(task: str, methods: list[str], source: pathlib.Path, rounds: int) -> dict[str, Any]:
    """The median step of each method, and the quartiles of its ratio to one method's."""
    steps = {}
    for method in methods:
        steps[method] = one_step(task, method, source)
        steps[method]()
        print(f"compiled: {task}, {method}", flush=True)
    seconds, rows = turns.timed(steps, rounds), {}
    for method, times in seconds.items():
        low, middle, high = turns.ratios(times, seconds[OVER])
        rows[method] = {"median_seconds": statistics.median(times), "over": middle, "quartiles": [low, high]}
    return {"task": task, "over": OVER, "rounds": rounds, "rows": rows}


def table() -> str:
    """Markdown: every method with what trains, the metric and the step, on both tasks; those on CIFAR-10 first."""
    files = {task: RESULTS / f"{task}_cpu.json" for task in METHODS}
    times = {task: results.read(file)["rows"] if file.is_file() else {} for task, file in files.items()}
    folders = {"cifar10": vit.RESULTS, "mrpc": glue.RESULTS}
    of_tasks = {
        task: {result["name"]: result for result in results.every(folder, f"{task}_*.json")}
        for task, folder in folders.items()
    }

    def place(name: str) -> tuple:
        return *(found[name]["adapter_parameters"] if name in found else 1e9 for found in of_tasks.values()), name

    rows = [
        (name, *(cell for task, found in of_tasks.items() for cell in _cells(found.get(name), times[task].get(name))))
        for name in sorted({name for found in of_tasks.values() for name in found}, key=place)
    ]
    heads = ("trained", "CIFAR-10", "step", "trained", "MRPC (f1, accuracy)", "step")
    return tables.markdown(("method", *heads), rows)


def _cells(result: dict[str, Any] | None, time: dict[str, Any] | None) -> tuple[str, str, str]:
    """What trains, the metrics in percent (* at a rate that was not tuned), the step's time over LoRA's; or nothing."""
    if result is None:
        return "", "", ""
    metrics = [result["seeds"][key] for key in ("f1", "accuracy") if key in result["seeds"]]
    shown = ", ".join(f"{100 * statistics.fmean(values):.1f}" for values in metrics)
    shown += "" if result["tuning"].get("validation", True) else "*"
    return f"{result['adapter_parameters']:,}", shown, f"{time['over']:.2f}" if time else "–"


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--cifar10", type=pathlib.Path, help="a .npz of CIFAR-10; not given, its table stays as it is")
    parser.add_argument("--glue", type=pathlib.Path, help="the folder that holds MRPC; likewise")
    known = dict.fromkeys([*vit.METHODS, *glue.METHODS])
    told = "comma-separated; all by default, and only then written"
    parser.add_argument("--methods", type=command.some_of(known), default=[], help=told)
    parser.add_argument("--rounds", type=command.at_least(2), default=15)
    command.instead(parser, "--table", table, "time nothing, print what is committed as Markdown")
    arguments = parser.parse_args()
    sources = command.there(parser, {"cifar10": arguments.cifar10, "mrpc": arguments.glue})
    memory.keep_freed_memory()
    for task, source in sources.items():
        chosen = dict.fromkeys([OVER, *(arguments.methods or METHODS[task])])
        result = measure(task, [*chosen], source, arguments.rounds)
        for name, row in result["rows"].items():
            print(f"{task} {name:40s} {1000 * row['median_seconds']:.0f} ms  {row['over']:.3f}", flush=True)
        if not arguments.methods:
            results.write(RESULTS / f"{task}_{jax.default_backend()}.json", result)


if __name__ == "__main__":
    command.run(main)
