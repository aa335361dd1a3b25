"""What serving many adapters in one forward pass costs: examples a second with 1, 16 and 256 adapters at hand.

    python experiments/serving/run.py --shape=vit_micro
    python experiments/serving/run.py --shape=minilm_l6

The examples of one batch name as many different adapters as there are (at most one each). Four ways answer it:

    base        by the model without an adapter, the floor
    merged      by one adapter for all, merged into the kernels
    together    by `surm.serve_batch`, each example by its own adapter
    apart       by one forward pass for every adapter that is named, over its examples, which are stored apart already

Weights are random, query and value are updated, every adapter has its own head. Every repeat runs everything once, in
a new order; a ratio is the median over repeats of the ratio within a repeat. Only a run of every method with 1, 16 and
256 adapters is written to results/. Two CPU cores: twenty minutes.
"""

import statistics
import sys
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

import surm
from experiments.shared import command, methods, models, results, turns
from surm.machine.memory import keep_freed_memory
from surm.peft import surgery

RESULTS = results.of(__file__)
SHAPES = ("vit_micro", "minilm_l6")
TARGETS = r".*\.(query|value)"
LENGTH = 64
NUMBERS = (1, 16, 256)
Inputs = dict[str, jax.Array]


def stacked(model: nnx.Module, number: int) -> Inputs:
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


def plain(model: nnx.Module, x: Inputs) -> Callable[[], object]:
    """One forward pass of a model, compiled."""
    graphdef, state = nnx.split(model)
    return turns.compiled(lambda state, x: nnx.merge(graphdef, state)(**x), state, x)


def together(model: nnx.Module, adapters: Inputs, x: Inputs, ids: np.ndarray) -> Callable[[], object]:
    """One forward pass by many adapters, compiled."""
    graphdef, state = nnx.split(model)
    serve = lambda state, *given: surm.serve_batch(nnx.merge(graphdef, state), *given)  # noqa: E731
    return turns.compiled(serve, state, adapters, x, ids)


def apart(model: nnx.Module, adapters: Inputs, x: Inputs, ids: np.ndarray) -> Callable[[], object]:
    """One forward pass for each adapter that is named, compiled once, because all have as many examples."""
    graphdef, _, frozen = surgery.split(model)
    answer = jax.jit(lambda trained, frozen, x: surgery.join(graphdef, trained, frozen)(**x))
    own = []
    for index in np.unique(ids):
        arrays = {path: array[index] for path, array in adapters.items()}
        own.append((arrays, {name: leaf[ids == index] for name, leaf in x.items()}))
    compiled = answer.lower(own[0][0], frozen, own[0][1]).compile()
    return lambda: jax.block_until_ready([compiled(trained, frozen, examples) for trained, examples in own])


def measure(shape: str, batch: int, names: list[str], numbers: list[int], repeats: int) -> dict:
    """Times everything on one batch; a JSON object."""
    base, x = models.random(shape, 10, batch, LENGTH)
    runs, rows = {"base": plain(base, x)}, {"base": {}}
    for method in names:
        model = surm.attach(base, methods.spec(method, targets=TARGETS, train=("head",)), nnx.Rngs(1))
        runs[f"{method}, merged"], rows[f"{method}, merged"] = plain(surm.merge(model), x), {}
        for number in numbers:
            adapters, ids = stacked(model, number), named_ids(number, batch)
            size = {"adapters": number, "adapter_bytes": sum(array.nbytes for array in adapters.values())}
            for way in (together, apart):
                label = f"{method}, {number} {way.__name__}"
                runs[label], rows[label] = way(model, adapters, x, ids), {**size}
        print(f"ready: {method}", file=sys.stderr, flush=True)
    seconds = turns.timed(runs, repeats)
    for label, row in rows.items():
        low, middle, high = turns.ratios(seconds[label], seconds["base"])
        median = statistics.median(seconds[label])
        row |= {"median_seconds": median, "examples_per_second": batch / median}
        row |= {"over_base": middle, "quartiles_over_base": [low, high]}
        if label.endswith("apart"):
            row["over_together"] = turns.ratios(seconds[label], seconds[label.replace("apart", "together")])[1]
    bytes_of_base = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(base, nnx.Param)))
    setting = {"shape": shape, "batch": batch, "targets": TARGETS, "repeats": repeats, "base_bytes": bytes_of_base}
    return setting | ({"length": LENGTH} if "tokens" in x else {}) | {"rows": rows}


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="vit_micro")
    parser.add_argument("--batch", type=command.count, default=64)
    command.several(parser, "--methods", methods.TIMED)
    parser.add_argument("--numbers", type=command.counts, default=[*NUMBERS], help="of adapters, comma-separated")
    parser.add_argument("--repeats", type=command.count, default=9)
    arguments = parser.parse_args()
    names, batch, numbers = arguments.methods, arguments.batch, arguments.numbers
    if any(batch % min(number, batch) for number in numbers):
        parser.error(f"--numbers must divide --batch={batch} or be above it, got {', '.join(map(str, numbers))}")
    keep_freed_memory()
    result = measure(arguments.shape, batch, names, numbers, arguments.repeats)
    for label, row in result["rows"].items():
        print(f"{label:45s} {row['examples_per_second']:9.1f} examples/s  {row['over_base']:7.3f}")
    if {*names} != {*methods.TIMED} or not {*NUMBERS} <= {*numbers}:
        print("not written: results hold every method with 1, 16 and 256 adapters")
        return
    results.write(RESULTS / f"{arguments.shape}_{jax.default_backend()}_{batch}.json", result)


if __name__ == "__main__":
    command.run(main)
