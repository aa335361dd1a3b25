"""How long every path of every family takes: the table that `path="auto"` chooses by.

    python experiments/paths/run.py

One layer, forward and backward, the gradients of its input and of its update asked for; each family at its default
options, n×n. At every point of the grid all paths take turns, and the median of the repeats counts, with the layer
without an update as the floor. Written to surm/peft/measured/PLATFORM.json. Two CPU cores: about twenty minutes.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import jax
from flax import nnx

import surm
from surm import files, matrices
from surm.matmul import dot_general
from surm.memory import keep_freed_memory
from surm.peft import layers, paths
from surm.train import versions

MEASURED = pathlib.Path(paths.__file__).parent / "measured"
SIZES = (128, 384, 768, 1024, 4096)
ROWS = (128, 1024, 8192)
MOST_PRODUCTS = 2e10
"""Points with more in rows·n² are left out: nothing new shows there, and a run takes seconds."""


def step(family: str, n: int, rows: int, dtype: str, path: str | None) -> Callable[[], object]:
    """A compiled forward and backward pass of one layer.

    Args:
      family: a key of `surm.matrices.FAMILIES`.
      n: rows and columns of the layer's kernel.
      rows: vectors in the batch.
      dtype: of the layer and its input.
      path: one of the family's; None for the layer without an update.

    Returns:
      What runs it and waits for the result.
    """
    layer = nnx.Linear(n, n, param_dtype=dtype, dtype=dtype, dot_general=dot_general, rngs=nnx.Rngs(0))
    if path is not None:
        layer = layers.UpdatedLinear(layer, surm.PeftSpec(family=family, path=path), rngs=nnx.Rngs(1))
    graphdef, trainable, frozen = nnx.split(layer, layers.AdapterParam, ...)
    x, dy = (jax.random.normal(jax.random.key(seed), (rows, n), dtype) for seed in (2, 3))

    def gradients(trainable, frozen, x, dy):
        y, pull = jax.vjp(lambda trainable, x: nnx.merge(graphdef, trainable, frozen)(x), trainable, x)
        return y, pull(dy)

    compiled = jax.jit(gradients).lower(trainable, frozen, x, dy).compile()
    return lambda: jax.block_until_ready(compiled(trainable, frozen, x, dy))


def measure(family: str, n: int, rows: int, dtype: str, repeats: int) -> dict:
    """Median seconds of every path at one point, and of the floor."""
    fusible = dtype == "float32"
    names = [name for name in paths.available("update", family) if fusible or name not in paths.FUSED]
    runs = {name: step(family, n, rows, dtype, name) for name in names} | {"": step(family, n, rows, dtype, None)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if repeat:  # the first is not counted
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    floor = medians.pop("")
    return {"family": family, "n": n, "rows": rows, "dtype": dtype, "floor_seconds": floor, "seconds": medians}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error(f"--repeats={arguments.repeats}, expected at least 1")
    keep_freed_memory()
    points = []
    for dtype, family, n, rows in itertools.product(("float32", "bfloat16"), matrices.FAMILIES, SIZES, ROWS):
        if rows * n**2 <= MOST_PRODUCTS:
            points.append(measure(family, n, rows, dtype, arguments.repeats))
            print(json.dumps(points[-1]), flush=True)
    command = " ".join(["python experiments/paths/run.py", *sys.argv[1:]])
    MEASURED.mkdir(exist_ok=True)
    table = {"command": command, "versions": versions(), "points": points}
    files.replace(MEASURED / f"{jax.default_backend()}.json", json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
