"""How long every path of every family takes: the table that `path="auto"` chooses by.

    python experiments/paths/run.py
    python experiments/paths/run.py --dtypes=float32 --families=kronecker

Times one layer, forward and backward, with the gradients of its input and of its update. At every point of the grid all
paths, and the layer without an update as the floor, take turns, in a new order in every repeat; the median counts. A
repeat is as many calls as fill five milliseconds. As soon as a family is done, its points replace all its earlier ones
in surm/peft/multiply/measured/PLATFORM.json. (So after --shapes=768x768, a start on a new device, all other shapes go
by that.) Off a CPU layers multiply in less than float32's precision, and no path is fused. Two CPU cores: an hour and a
half.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

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
SHAPES = ("128x128", "384x384", "768x768", "3072x768", "768x3072", "1024x1024", "4096x4096")
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
    """A point of the grid: a family with options, the size of its matrix, the rows of the batch, the layer's dtype."""

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


def product_of(point: Point, path: str | None) -> tuple[Callable[..., jax.Array], Any, Any, jax.Array]:
    """A layer with an update by a path, or alone: the function of its trained and frozen part and x, and all three."""
    layer, dtype = plain_layer(point), point.dtype
    if path is not None:
        spec = surm.PeftSpec(family=point.family, options=point.options, path=path)
        layer = layers.UpdatedLinear(layer, spec, rngs=nnx.Rngs(1))
    graphdef, trainable, frozen = nnx.split(layer, variables.AdapterParam, ...)
    x = jax.random.normal(jax.random.key(2), (point.rows, point.n_in), dtype)
    return lambda trainable, frozen, x: nnx.merge(graphdef, trainable, frozen)(x), trainable, frozen, x


def names_of(point: Point) -> list[str | None]:
    """The paths that are measured at a point, and None for the layer without an update."""
    fusible = not fused.obstacle(plain_layer(point))
    return [None, *(n for n in paths.available("update", point.family) if fusible or n not in paths.FUSED)]


def measure(point: Point, repeats: int) -> dict:
    """Median seconds of every path at one point, and of the floor."""
    runs = {name: turns.both_passes(*product_of(point, name), point.n_out) for name in names_of(point)}
    return measured(point, {name: functools.partial(_called, run) for name, run in runs.items()}, repeats)


def measured(point: Point, runs: Mapping[str | None, Callable[[int], None]], repeats: int, layers: int = 1) -> dict:
    """The same, of functions that call a program as often as they are told; it holds so many layers."""
    quickest = {name: min(times) for name, times in turns.timed(_each(runs, dict.fromkeys(runs, 1)), 2).items()}
    calls = {name: math.ceil(FILLED_SECONDS / seconds) for name, seconds in quickest.items()}
    found = turns.timed(_each(runs, calls), repeats)
    medians = {name: statistics.median(times) / calls[name] / layers for name, times in found.items()}
    floor = medians.pop(None)
    parameters = shapes(point.family, point.n_out, point.n_in, point.options)
    return {**dataclasses.asdict(point), "parameters": parameters, "floor_seconds": floor, "seconds": medians}


def _each(runs: Mapping[Any, Callable[[int], None]], calls: Mapping[Any, int]) -> dict[Any, Callable[[], None]]:
    return {name: functools.partial(run, calls[name]) for name, run in runs.items()}


def _called(run: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        run()


def grid(
    dtypes: Iterable[str] = DTYPES,
    families: Iterable[str] = tuple(VARIANTS),
    sizes: Iterable[str] = tuple(SHAPES),
    rows: Iterable[int] = ROWS,
) -> Iterator[Point]:
    """Every point, family by family; of options that give the same matrix, as a default rank may, only the first."""
    for dtype, family, size in itertools.product(dtypes, families, sizes):
        n_out, n_in = map(int, size.split("x"))
        of_form: dict[str, dict[str, int]] = {}
        for options in VARIANTS[family]:
            of_form.setdefault(str(shapes(family, n_out, n_in, options)), options)
        for options, number in itertools.product(of_form.values(), rows):
            if number * n_out * n_in <= MOST_PRODUCTS:
                yield Point(family, options, n_out, n_in, number, dtype)


def shapes(family: str, n_out: int, n_in: int, options: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of the family's parameters."""
    params = jax.eval_shape(lambda key: matrices.FAMILIES[family].init(key, n_out, n_in, **options), jax.random.key(0))
    return {name: value.shape for name, value in params.items()}


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--repeats", type=command.count, default=7)
    command.several(parser, "--families", VARIANTS)
    command.several(parser, "--dtypes", DTYPES)
    command.several(parser, "--shapes", SHAPES)
    asked = parser.parse_args()
    keep_freed_memory()
    file = MEASURED / f"{jax.default_backend()}.json"
    for dtype, family in itertools.product(asked.dtypes, asked.families):
        points = []
        for point in grid([dtype], [family], asked.shapes):
            points.append(measure(point, asked.repeats))
            print(json.dumps(points[-1]), flush=True)
        made = {f"{family} {dtype}": {"versions": versions()}}
        results.put(file, "points", points, made, lambda point: f"{point['family']} {point['dtype']}")


if __name__ == "__main__":
    command.run(main)
