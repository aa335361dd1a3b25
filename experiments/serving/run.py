"""What serving many adapters in one forward pass costs: examples a second with 1, 16 and 256 adapters at hand.

    python experiments/serving/run.py --shape=vit_micro
    python experiments/serving/run.py --shape=minilm_l6
    python experiments/serving/run.py --table=vit_micro_cpu_64

One batch, whose examples name as many different adapters as there are (at most one each), is answered in four ways:

    base        by the model without an adapter, the floor
    merged      by one adapter for all, merged into the kernels
    together    by `surm.serve_batch`, each example by its own adapter
    apart       by one forward pass for every adapter that is named, over its examples alone; they lie apart already

Weights are random, query and value are updated, every adapter has its own head. Every repeat runs everything once, in
an order drawn anew; a ratio is the median over repeats of the ratio within a repeat. A run of every method with 1, 16
and 256 adapters is written to results/; --table prints one as Markdown. Two CPU cores: twenty minutes.
"""

import argparse
import json
import pathlib
import random
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import surm
from surm import files
from surm.machine.memory import keep_freed_memory
from surm.models import bert, vit
from surm.peft import surgery
from surm.training.result import versions

RESULTS = pathlib.Path(__file__).parent / "results"
SHAPES = ("vit_micro", "minilm_l6")
TARGETS = r".*\.(query|value)"
LENGTH = 64
NUMBERS = (1, 16, 256)
METHODS: dict[str, dict] = {
    "circulant": {"family": "circulant"},
    "toeplitz": {"family": "toeplitz"},
    "kronecker": {"family": "kronecker"},
    "low_displacement_rank r=1": {"family": "low_displacement_rank", "options": "rank=1"},
    "low_rank r=8": {"family": "low_rank", "options": "rank=8"},
}


def model_and_batch(shape: str, batch: int) -> tuple[nnx.Module, dict[str, jax.Array]]:
    """A model of ten classes with random weights, and its input by name."""
    if shape == "vit_micro":
        return vit.ViT(vit.preset(shape), 10, rngs=nnx.Rngs(0)), {
            "images": jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))
        }
    tokens = jax.random.randint(jax.random.key(0), (batch, LENGTH), 1000, 30000)
    model = bert.Bert(bert.preset(shape), 10, rngs=nnx.Rngs(0))
    return model, {"tokens": tokens, "mask": jnp.ones_like(tokens, bool)}


def stacked(model: nnx.Module, number: int) -> dict[str, jax.Array]:
    """Random trained arrays of many adapters, small enough to keep what they answer finite."""
    trained = surgery.split(model)[1]
    keys = jax.random.split(jax.random.key(number), len(trained))
    return {
        path: array + 0.02 * jax.random.normal(key, (number, *array.shape))
        for key, (path, array) in zip(keys, trained.items(), strict=True)
    }


def named_ids(number: int, batch: int) -> np.ndarray:
    """As many different adapters as there are and fit into a batch, all as often."""
    return np.resize(np.random.default_rng(0).permutation(number), batch).astype(np.int32)


def plain(model: nnx.Module, x: dict[str, jax.Array]) -> Callable[[], object]:
    """One forward pass of a model, compiled."""
    graphdef, state = nnx.split(model)
    compiled = jax.jit(lambda state, x: nnx.merge(graphdef, state)(**x)).lower(state, x).compile()
    return lambda: jax.block_until_ready(compiled(state, x))


def together(
    model: nnx.Module, adapters: dict[str, jax.Array], x: dict[str, jax.Array], ids: np.ndarray
) -> Callable[[], object]:
    """One forward pass by many adapters, compiled."""
    graphdef, state = nnx.split(model)
    serve = lambda state, *given: surm.serve_batch(nnx.merge(graphdef, state), *given)  # noqa: E731
    compiled = jax.jit(serve).lower(state, adapters, x, ids).compile()
    return lambda: jax.block_until_ready(compiled(state, adapters, x, ids))


def apart(
    model: nnx.Module, adapters: dict[str, jax.Array], x: dict[str, jax.Array], ids: np.ndarray
) -> Callable[[], object]:
    """One forward pass for each adapter that is named, compiled once: all have as many examples."""
    graphdef, _, frozen = surgery.split(model)
    answer = jax.jit(lambda trained, frozen, x: surgery.join(graphdef, trained, frozen)(**x))
    own = [
        (
            {path: array[index] for path, array in adapters.items()},
            {name: leaf[ids == index] for name, leaf in x.items()},
        )
        for index in np.unique(ids)
    ]
    compiled = answer.lower(own[0][0], frozen, own[0][1]).compile()
    return lambda: jax.block_until_ready([compiled(trained, frozen, examples) for trained, examples in own])


def timed(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of everything in every repeat, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)
    for repeat in range(repeats + 1):
        for name in order.sample([*runs], len(runs)):
            began = time.perf_counter()
            runs[name]()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def quartiles(seconds: list[float], base: list[float]) -> list[float]:
    """Of the ratios within a repeat."""
    each = [a / b for a, b in zip(seconds, base, strict=True)]
    return statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3


def measure(shape: str, batch: int, methods: list[str], numbers: list[int], repeats: int) -> dict:
    """Times everything on one batch; a JSON object."""
    base, x = model_and_batch(shape, batch)
    runs, rows = {"base": plain(base, x)}, {"base": {}}
    for method in methods:
        model = surm.attach(base, surm.PeftSpec(targets=TARGETS, train=("head",), **METHODS[method]), nnx.Rngs(1))
        runs[f"{method}, merged"], rows[f"{method}, merged"] = plain(surm.merge(model), x), {}
        for number in numbers:
            adapters, ids = stacked(model, number), named_ids(number, batch)
            size = {"adapters": number, "adapter_bytes": sum(array.nbytes for array in adapters.values())}
            for way in (together, apart):
                label = f"{method}, {number} {way.__name__}"
                runs[label], rows[label] = way(model, adapters, x, ids), size
        print(f"ready: {method}", file=sys.stderr, flush=True)
    seconds = timed(runs, repeats)
    for label, row in rows.items():
        low, middle, high = quartiles(seconds[label], seconds["base"])
        median = statistics.median(seconds[label])
        rows[label] = row | {
            "median_seconds": median,
            "examples_per_second": batch / median,
            "over_base": middle,
            "quartiles_over_base": [low, high],
        }
        if label.endswith("apart"):
            rows[label]["over_together"] = quartiles(seconds[label], seconds[label.replace("apart", "together")])[1]
    bytes_of_base = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(base, nnx.Param)))
    setting = {"shape": shape, "batch": batch, "targets": TARGETS, "repeats": repeats, "base_bytes": bytes_of_base}
    return setting | ({"length": LENGTH} if "tokens" in x else {}) | {"rows": rows}


def table(name: str) -> str:
    """A committed result as Markdown: examples a second, those of apart in brackets."""
    rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    most = max(NUMBERS)
    lines = [
        ["", f"MiB of {most} adapters", "merged", *(f"{number} together (apart)" for number in NUMBERS)],
        ["---", *["---:"] * (2 + len(NUMBERS))],
        ["none", "0", f"{rows['base']['examples_per_second']:.0f}", *[""] * len(NUMBERS)],
    ]
    for method in METHODS:
        of = {way: f"{row['examples_per_second']:.0f}" for way, row in rows.items() if way.startswith(f"{method}, ")}
        size = rows[f"{method}, {most} together"]["adapter_bytes"] / 2**20
        ways = [f"{of[f'{method}, {number} together']} ({of[f'{method}, {number} apart']})" for number in NUMBERS]
        lines.append([method, f"{size:.1f}", of[f"{method}, merged"], *ways])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="vit_micro")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated; all by default")
    parser.add_argument("--numbers", default=",".join(map(str, NUMBERS)), help="of adapters at hand, comma-separated")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--table", help="prints a result by its name, such as vit_micro_cpu_64")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        return
    methods, batch = arguments.methods.split(","), arguments.batch
    numbers = [int(number) if number.isdecimal() else 0 for number in arguments.numbers.split(",")]
    if min(arguments.repeats, batch, *numbers) < 1 or not {*methods} <= {*METHODS}:
        parser.error(f"expected --repeats, --batch and --numbers of at least 1, --methods of {', '.join(METHODS)}")
    if any(batch % min(number, batch) for number in numbers):
        parser.error(f"--numbers={arguments.numbers}, expected numbers that divide --batch={batch} or are above it")
    keep_freed_memory()
    result = measure(arguments.shape, batch, methods, numbers, arguments.repeats)
    for label, row in result["rows"].items():
        print(f"{label:45s} {row['examples_per_second']:9.1f} examples/s  {row['over_base']:7.3f}")
    if {*methods} != {*METHODS} or not {*NUMBERS} <= {*numbers}:
        print("not written: results hold every method with 1, 16 and 256 adapters")
        return
    result |= {"command": " ".join(["python experiments/serving/run.py", *sys.argv[1:]]), "versions": versions()}
    RESULTS.mkdir(exist_ok=True)
    name = f"{arguments.shape}_{jax.default_backend()}_{batch}"
    files.replace(RESULTS / f"{name}.json", json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
