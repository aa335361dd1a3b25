"""How good is the path that `auto` takes for a matrix that nobody measured, without and with `surm calibrate`?

    python experiments/calibration/run.py
    python experiments/calibration/run.py --points=3 --rounds=5      # quick, for trying out

First, at every point of surm/peft/multiply/measured/PLATFORM.json, `auto` chooses by the matrices of all other shapes,
as it does for a shape that is not in the table, and its path is compared with the quickest one. Then twelve matrices
of other shapes, three at a time as in a run, are measured as `surm calibrate` does, and all their paths again in 21
rounds. Both choices, by the table and by the calibration, are compared with the longer measurement. Two CPU cores:
four minutes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from experiments.paths.run import MEASURED
from experiments.shared import command, results, tables
from surm.machine.memory import keep_freed_memory
from surm.peft.multiply import calibrated, predicted, timing
from surm.peft.multiply.timing import Point
from surm.training import calibration

RESULTS = results.of(__file__)
CLOSE = 1.1
"""A path is as good as the quickest one up to this ratio."""
POINTS = (
    Point("circulant", {}, 576, 576, 2048, "float32"),
    Point("low_rank", {"rank": 8}, 1536, 576, 1024, "float32"),
    Point("kronecker", {}, 192, 192, 512, "float32"),
    Point("toeplitz", {}, 576, 576, 1024, "float32"),
    Point("block_circulant", {}, 512, 512, 1024, "float32"),
    Point("monarch", {}, 192, 576, 2048, "float32"),
    Point("low_displacement_rank", {}, 192, 192, 2048, "float32"),
    Point("diagonal_circulant", {}, 576, 1536, 512, "float32"),
    Point("kronecker", {"rank": 8}, 2048, 512, 1024, "float32"),
    Point("circulant", {}, 192, 192, 512, "bfloat16"),
    Point("toeplitz", {"factors": 1}, 576, 576, 1024, "bfloat16"),
    Point("low_rank", {"rank": 64}, 576, 576, 2048, "bfloat16"),
)
"""Matrices of shapes that the table does not have: those of SmolLM2, of the bundled ViT, and of width 512."""
TOGETHER = 3
SECONDS = 10.0


def held_out(points: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """For every point the ratio of every path to the quickest, and that of the path chosen by other shapes."""
    for point in points:
        alike = [one for one in points if (one["family"], one["dtype"]) == (point["family"], point["dtype"])]
        others = [one for one in alike if (one["n_out"], one["n_in"]) != (point["n_out"], point["n_in"])]
        sizes = (point["n_out"], point["n_in"], point["rows"], point["parameters"])
        quickest = min(point["seconds"].values())
        ratios = {path: seconds / quickest for path, seconds in point["seconds"].items()}
        times = predicted.seconds(others, *sizes)
        yield {"family": point["family"], "ratios": ratios, "chosen": min(times, key=times.get)}


def share(ratios: Sequence[float]) -> float:
    """The share of ratios that are close to 1."""
    return sum(ratio <= CLOSE for ratio in ratios) / len(ratios)


def of_table(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often the choice by other shapes, and that of one and the same path, is close to the quickest path."""
    found = [*held_out(points)]
    chosen = {name: [one["ratios"][one["chosen"]] for one in found if one["family"] == name]
              for name in dict.fromkeys(one["family"] for one in found)}  # fmt: skip
    names = dict.fromkeys(path for one in found for path in one["ratios"])
    every = [ratio for ratios in chosen.values() for ratio in ratios]
    return {
        "points": len(found),
        "close": share(every),
        "worst": max(every),
        "by_family": {name: share(ratios) for name, ratios in chosen.items()},
        "by_one_path": {path: share([one["ratios"].get(path, float("inf")) for one in found]) for path in names},
    }


def matrix_of(point: Point) -> calibrated.Matrix:
    """A point as `auto` is asked for it."""
    shapes = tuple(sorted((name, tuple(shape)) for name, shape in timing.parameters_of(point).items()))
    fusible = "fused" in timing.paths_of(point)
    return calibrated.Matrix(point.family, point.n_out, point.n_in, point.rows, shapes, point.dtype, fusible)


def compared(points: Sequence[Point], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each of some matrices that are calibrated together."""
    matrices, platform = [matrix_of(point) for point in points], jax.default_backend()
    options = {matrix[:3] + (matrix.parameters,): point.options for matrix, point in zip(matrices, points, strict=True)}
    brief = calibration.measured(matrices, options, platform, SECONDS)
    for matrix, point in zip(matrices, points, strict=True):
        contest = timing.Contest(point)
        for path in timing.paths_of(point):
            contest.enter(path)
        for _ in range(rounds):
            contest.round()
        long, short = contest.medians, brief[matrix]["seconds"]
        by_table = calibration.choices([matrix], platform, "", None)[0]
        chosen = min(short, key=short.get) if len(short) > 1 else by_table
        over = {"table": long[by_table] / min(long.values()), "calibrated": long[chosen] / min(long.values())}
        own = {**brief[matrix], "seconds": long, "brief_seconds": short}
        yield {**own, "by_table": by_table, "calibrated": chosen, "quickest": min(long, key=long.get), "over": over}


def table() -> str:
    """The table in docs/choosing.md."""
    found = results.read(RESULTS / "cpu.json")
    of_shapes, rows = found["held_out"], found["calibrated"]
    told = f"the table, {of_shapes['points']} of its own points, each without the points of its shape"
    lines = [(told, f"{100 * of_shapes['close']:.0f} %")]
    for name, words in (
        ("table", "the table, {} matrices of other shapes"),
        ("calibrated", "`surm calibrate`, the same"),
    ):
        close = sum(row["over"][name] <= CLOSE for row in rows)
        lines.append((words.format(len(rows)), f"{close} of {len(rows)}"))
    return tables.markdown(["chosen by", "within 10 % of the quickest path"], lines)


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--points", type=command.count, default=len(POINTS))
    parser.add_argument("--rounds", type=command.count, default=21)
    asked = parser.parse_args()
    keep_freed_memory()
    platform, rows = jax.default_backend(), []
    points = POINTS[: asked.points]
    for start in range(0, len(points), TOGETHER):
        for row in compared(points[start : start + TOGETHER], asked.rounds):
            rows.append(row)
            print(row["family"], row["n_out"], row["n_in"], row["rows"], row["dtype"], row["by_table"],
                  row["calibrated"], row["quickest"], row["over"], flush=True)  # fmt: skip
    found = {
        "held_out": of_table(results.read(MEASURED / f"{platform}.json")["points"]),
        "seconds": SECONDS,
        "calibrated": rows,
    }
    results.write(RESULTS / f"{platform}.json", found)


if __name__ == "__main__":
    command.run(main)
