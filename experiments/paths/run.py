"""How long every path of every family takes: the table that `path="auto"` chooses by.

    python experiments/paths/run.py

One layer, forward and backward, the gradients of its input and of its update asked for. At every point of the grid all
paths take turns, and the median of the repeats counts, with the layer without an update as the floor. Written to
surm/peft/measured/PLATFORM.json, anew after every family. Two CPU cores: about half an hour.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import jax
from flax import nnx

import surm
from surm import files, matrices
from surm.matmul import dot_general
from surm.memory import keep_freed_memory
from surm.peft import layers, paths
from surm.train import versions

MEASURED = pathlib.Path(paths.__file__).parent / "measured"
SHAPES = ((128, 128), (384, 384), (768, 768), (3072, 768), (768, 3072), (1024, 1024), (4096, 4096))  # out, in
ROWS = (128, 1024, 8192)
MOST_PRODUCTS = 1e10
"""Points with more in rows·n_out·n_in are left out: a run takes seconds, and fewer rows tell the same."""
VARIANTS: dict[str, tuple[dict[str, int], ...]] = {
    **dict.fromkeys(matrices.FAMILIES, ({},)),
    "toeplitz": ({}, {"factors": 1}),
    "low_displacement_rank": ({}, {"rank": 4}),
    "low_rank": ({"rank": 1}, {"rank": 8}, {"rank": 64}),
}
"""The options that each family is measured with."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of the grid: a family with options, the shape of its matrix, vectors in the batch, the layer's dtype."""

    family: str
    options: dict[str, int]
    n_out: int
    n_in: int
    rows: int
    dtype: str


def step(point: Point, path: str | None) -> Callable[[], object]:
    """A compiled forward and backward pass of one layer.

    Args:
      point: of the grid.
      path: one of the family's; None for the layer without an update.

    Returns:
      What runs it and waits for the result.
    """
    dtype = point.dtype
    layer = nnx.Linear(
        point.n_in, point.n_out, param_dtype=dtype, dtype=dtype, dot_general=dot_general, rngs=nnx.Rngs(0)
    )
    if path is not None:
        spec = surm.PeftSpec(family=point.family, options=point.options, path=path)
        layer = layers.UpdatedLinear(layer, spec, rngs=nnx.Rngs(1))
    graphdef, trainable, frozen = nnx.split(layer, layers.AdapterParam, ...)
    x = jax.random.normal(jax.random.key(2), (point.rows, point.n_in), dtype)
    dy = jax.random.normal(jax.random.key(3), (point.rows, point.n_out), dtype)

    def gradients(trainable, frozen, x, dy):
        y, pull = jax.vjp(lambda trainable, x: nnx.merge(graphdef, trainable, frozen)(x), trainable, x)
        return y, pull(dy)

    compiled = jax.jit(gradients).lower(trainable, frozen, x, dy).compile()
    return lambda: jax.block_until_ready(compiled(trainable, frozen, x, dy))


def measure(point: Point, repeats: int) -> dict:
    """Median seconds of every path at one point, and of the floor."""
    fusible = point.dtype == "float32"
    names = [name for name in paths.available("update", point.family) if fusible or name not in paths.FUSED]
    runs = {name: step(point, name) for name in names} | {"": step(point, None)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if repeat:  # the first is not counted
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    floor = medians.pop("")
    trained = matrices.FAMILIES[point.family].num_params(point.n_out, point.n_in, **point.options)
    return {**dataclasses.asdict(point), "trained": trained, "floor_seconds": floor, "seconds": medians}


def grid() -> Iterator[Point]:
    """Every point, family by family."""
    for dtype, (family, variants) in itertools.product(("float32", "bfloat16"), VARIANTS.items()):
        for options, (n_out, n_in), rows in itertools.product(variants, SHAPES, ROWS):
            if rows * n_out * n_in <= MOST_PRODUCTS:
                yield Point(family, options, n_out, n_in, rows, dtype)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error(f"--repeats={arguments.repeats}, expected at least 1")
    keep_freed_memory()
    command = " ".join(["python experiments/paths/run.py", *sys.argv[1:]])
    MEASURED.mkdir(exist_ok=True)
    points: list[dict] = []
    for _, of_family in itertools.groupby(grid(), key=lambda point: (point.dtype, point.family)):
        for point in of_family:
            points.append(measure(point, arguments.repeats))
            print(json.dumps(points[-1]), flush=True)
        table = {"command": command, "versions": versions(), "points": points}
        files.replace(MEASURED / f"{jax.default_backend()}.json", json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
