"""What a training step of every method takes, all of a model's in one process and in turns.

    python experiments/step_time/run.py --cifar10=cifar10.npz --glue=glue

The steps are those of `vit_families` on CIFAR-10 (shipped backbone, 64 images) and of `glue_methods` on MRPC (MiniLM,
32 pairs padded to 64 tokens), compiled as a run compiles them. A result holds the median over rounds of a step's time
over that of `low_rank r=1` in the same round. The table of all methods shows these beside the metrics of the other two
experiments. Two CPU cores: a quarter of an hour.
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
EXPERIMENTS = {"cifar10": vit, "mrpc": glue}
"""The experiment that measured the methods on each task."""


def one_step(task: str, method: str, source: pathlib.Path) -> Callable[[], None]:
    """A compiled step that goes on from where it came to, always with the same batch."""
    run = recipes.prepared(recipes.config(recipes.flags(task, recipes.changes(task, method, source))))
    numbers = optim.hyperparameters(run.config.optim, configs.spec(run.config), run.total_steps)
    fits = (lambda batch: batch["tokens"].shape[1] == TOKENS) if task == "mrpc" else (lambda _: True)
    batch = next(batch for batch in run.training_batches(0) if fits(batch))
    take, frozen = jax.jit(step.packed_step(run), donate_argnums=0), surgery.split(run.model)[2]
    state = step.packing_of(run).pack(step.initial_state(run, 0, averaged=False))

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
    """Markdown: for every method what it trains, its metrics and its step, on both tasks; those on CIFAR-10 first."""
    times = {task: results.read(RESULTS / f"{task}_cpu.json")["rows"] for task in EXPERIMENTS}
    found = {task: results.by_method(EXPERIMENTS[task].RESULTS, f"{task}_*.json") for task in EXPERIMENTS}

    def place(name: str) -> tuple:
        return *(of[name]["adapter_parameters"] if name in of else 1e9 for of in found.values()), name

    rows = [
        (name, *(cell for task, of in found.items() for cell in _cells(of.get(name), times[task].get(name))))
        for name in sorted({name for of in found.values() for name in of}, key=place)
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
    parser.add_argument("--cifar10", type=command.existing, help="a .npz of CIFAR-10; without it its result stays")
    parser.add_argument("--glue", type=command.existing, help="the folder that holds MRPC; without it its result stays")
    known = dict.fromkeys([*vit.METHODS, *glue.METHODS])
    command.several(parser, "--methods", known, "all by default, and only then written", [])
    parser.add_argument("--rounds", type=command.count, default=15)
    arguments = parser.parse_args()
    memory.keep_freed_memory()
    for task, source in (("cifar10", arguments.cifar10), ("mrpc", arguments.glue)):
        if source:
            chosen = dict.fromkeys([OVER, *(arguments.methods or EXPERIMENTS[task].METHODS)])
            result = measure(task, [*chosen], source, arguments.rounds)
            for name, row in result["rows"].items():
                print(f"{task} {name:40s} {1000 * row['median_seconds']:.0f} ms  {row['over']:.3f}", flush=True)
            if not arguments.methods:
                results.write(RESULTS / f"{task}_{jax.default_backend()}.json", result)


if __name__ == "__main__":
    command.run(main)
