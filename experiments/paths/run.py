"""How long every path of every family takes: the table that `path="auto"` chooses by.

    python experiments/paths/run.py
    python experiments/paths/run.py --dtypes=float32 --families=kronecker

One layer, forward and backward, the gradients of its input and of its update asked for. At every point of the grid all
paths, and the layer without an update as the floor, take turns, in an order drawn anew for every repeat; the median
counts. A repeat is as many calls as fill five milliseconds. Every family is put into
surm/peft/multiply/measured/PLATFORM.json when it is done, in place of all that was there of it (so with
--shapes=768x768, for a start on a new device, all others go by that). Off a CPU layers multiply in less than float32's
precision, and no path is fused. Two CPU cores: an hour and a half.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Iterator

import jax
from flax import nnx

import surm
from experiments.shared import command, results, turns
from surm import matrices
from surm.machine.memory import keep_freed_memory
from surm.ops.matmul import dot_general
from surm.peft import layers, variables
from surm.peft.multiply import fused, paths
from surm.training.result import versions

MEASURED = pathlib.Path(paths.__file__).parent / "measured"
DTYPES = ("float32", "bfloat16")
SHAPES = ((128, 128), (384, 384), (768, 768), (3072, 768), (768, 3072), (1024, 1024), (4096, 4096))  # out, in
ROWS = (128, 1024, 4096)
MOST_PRODUCTS = 2e10
"""Points with more in rows·n_out·n_in are left out: time is linear in rows long before."""
FILLED_SECONDS = 0.005
VARIANTS: dict[str, tuple[dict[str, int], ...]] = {
    **{name: ({},) for name, family in matrices.FAMILIES.items() if family.measured_as == name},
    "toeplitz": ({}, {"factors": 1}, {"factors": 1, "symmetric": False}),
    "kronecker": ({}, {"rank": 8}),
    "block_circulant": ({}, {"block_size": 32}),
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


def plain_layer(point: Point) -> nnx.Linear:
    """The layer without an update, as the models of surm make it."""
    return nnx.Linear(
        point.n_in, point.n_out, param_dtype=point.dtype, dtype=point.dtype, dot_general=dot_general, rngs=nnx.Rngs(0)
    )


def step(point: Point, path: str | None) -> Callable[[], object]:
    """A compiled forward and backward pass of one layer.

    Args:
      point: of the grid.
      path: one of the family's; None for the layer without an update.

    Returns:
      What runs it and waits for the result.
    """
    layer, dtype = plain_layer(point), point.dtype
    if path is not None:
        spec = surm.PeftSpec(family=point.family, options=point.options, path=path)
        layer = layers.UpdatedLinear(layer, spec, rngs=nnx.Rngs(1))
    graphdef, trainable, frozen = nnx.split(layer, variables.AdapterParam, ...)
    x = jax.random.normal(jax.random.key(2), (point.rows, point.n_in), dtype)
    product = lambda trainable, frozen, x: nnx.merge(graphdef, trainable, frozen)(x)  # noqa: E731
    return turns.both_passes(product, trainable, frozen, x, point.n_out)


def measure(point: Point, repeats: int) -> dict:
    """Median seconds of every path at one point, and of the floor."""
    fusible = not fused.obstacle(plain_layer(point))
    names = [name for name in paths.available("update", point.family) if fusible or name not in paths.FUSED]
    runs = {name: step(point, name) for name in names} | {"": step(point, None)}
    quickest = {name: min(times) for name, times in turns.timed(runs, 2).items()}
    calls = {name: math.ceil(FILLED_SECONDS / seconds) for name, seconds in quickest.items()}
    several = {name: functools.partial(_called, runs[name], calls[name]) for name in runs}
    medians = {name: statistics.median(times) / calls[name] for name, times in turns.timed(several, repeats).items()}
    floor = medians.pop("")
    parameters = shapes(point.family, point.n_out, point.n_in, point.options)
    return {**dataclasses.asdict(point), "parameters": parameters, "floor_seconds": floor, "seconds": medians}


def _called(run: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        run()


def grid() -> Iterator[Point]:
    """Every point, family by family; where options name the same matrix, as a default rank may, the first of them."""
    for dtype, (family, variants), (n_out, n_in) in itertools.product(DTYPES, VARIANTS.items(), SHAPES):
        of_form: dict[str, dict[str, int]] = {}
        for options in variants:
            of_form.setdefault(str(shapes(family, n_out, n_in, options)), options)
        for options, rows in itertools.product(of_form.values(), ROWS):
            if rows * n_out * n_in <= MOST_PRODUCTS:
                yield Point(family, options, n_out, n_in, rows, dtype)


def shapes(family: str, n_out: int, n_in: int, options: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Of the family's parameters."""
    params = jax.eval_shape(lambda key: matrices.FAMILIES[family].init(key, n_out, n_in, **options), jax.random.key(0))
    return {name: value.shape for name, value in params.items()}


def put(points: list[dict], dtype: str, family: str) -> None:
    """Replaces what the table holds of a family."""
    made = {f"{family} {dtype}": {"versions": versions()}}
    file = MEASURED / f"{jax.default_backend()}.json"
    results.put(file, "points", points, made, lambda point: f"{point['family']} {point['dtype']}")


def _named(shape: tuple[int, int]) -> str:
    """How the command line calls a shape."""
    return "x".join(map(str, shape))


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--repeats", type=command.at_least(1), default=7)
    command.several(parser, "--families", VARIANTS)
    command.several(parser, "--dtypes", DTYPES)
    command.several(parser, "--shapes", map(_named, SHAPES))
    asked = parser.parse_args()
    keep_freed_memory()
    chosen = [
        point
        for point in grid()
        if point.family in asked.families
        and point.dtype in asked.dtypes
        and _named((point.n_out, point.n_in)) in asked.shapes
    ]
    for (dtype, family), of_family in itertools.groupby(chosen, key=lambda point: (point.dtype, point.family)):
        points = []
        for point in of_family:
            points.append(measure(point, asked.repeats))
            print(json.dumps(points[-1]), flush=True)
        put(points, dtype, family)


if __name__ == "__main__":
    command.run(main)
