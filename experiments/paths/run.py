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

import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax

from experiments.shared import command, results
from surm import matrices
from surm.machine.memory import keep_freed_memory
from surm.peft.multiply import paths, timing
from surm.peft.multiply.timing import Point
from surm.training.result import versions

MEASURED = pathlib.Path(paths.__file__).parent / "measured"
DTYPES = ("float32", "bfloat16")
SHAPES = ("128x128", "384x384", "768x768", "3072x768", "768x3072", "1024x1024", "4096x4096")
ROWS = (128, 1024, 4096)
MOST_PRODUCTS = 2e10
"""Points with more in rows·n_out·n_in are left out: time is linear in rows long before."""
VARIANTS: dict[str, tuple[dict[str, int], ...]] = {
    **{name: ({},) for name, family in matrices.FAMILIES.items() if family.measured_as == name},
    "toeplitz": ({}, {"factors": 1}, {"factors": 1, "symmetric": False}),
    "kronecker": ({}, {"rank": 8}),
    "block_circulant": ({}, {"block_size": 32}),
    "low_displacement_rank": ({}, {"rank": 4}),
    "low_rank": ({"rank": 1}, {"rank": 8}, {"rank": 64}),
}
"""The options that each family is measured with."""


def names_of(point: Point) -> list[str | None]:
    """The paths that are measured at a point, and that of the layer without an update."""
    return [timing.FLOOR, *timing.paths_of(point)]


def measure(point: Point, repeats: int) -> dict:
    """Median seconds of every path at one point, and of the floor."""
    contest = timing.Contest(point)
    for name in names_of(point):
        contest.enter(name)
    return _measured(contest, repeats)


def measured(point: Point, runs: Mapping[str | None, Callable[[int], None]], repeats: int, layers: int = 1) -> dict:
    """The same, of functions that call a program as often as they are told; it holds so many layers."""
    contest = timing.Contest(point, layers)
    for name, run in runs.items():
        contest.add(name, run)
    return _measured(contest, repeats)


def _measured(contest: timing.Contest, repeats: int) -> dict:
    for _ in range(repeats):
        contest.round()
    return contest.measured()


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
            form = timing.parameters_of(Point(family, options, n_out, n_in, 1, dtype))
            of_form.setdefault(str(form), options)
        for options, number in itertools.product(of_form.values(), rows):
            if number * n_out * n_in <= MOST_PRODUCTS:
                yield Point(family, options, n_out, n_in, number, dtype)


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
