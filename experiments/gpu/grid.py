"""The paths of products on this device, wave by wave: all programs of a wave are compiled in threads, then timed.

A program holds several layers with parameters and inputs of their own, and is called several times before its result is
waited for. Otherwise the time to start it, which steps with many layers do not have, would hide that of a product.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

from experiments.paths import run as paths
from experiments.shared import methods, results
from surm.errors import one_line
from surm.peft.multiply import paths as choice
from surm.peft.multiply import timing
from surm.peft.multiply.timing import Point
from surm.training.result import versions

DTYPE = "bfloat16"
LAYERS = 4
_REPEATS = 7
_FOR_TIMING = 0.8
"""The seconds that the paths of a point are timed for, about."""
_FOR_A_WAVE = 0.6
"""The part of the remaining time after which programs of a wave are given up, so that one cannot take all of it."""


class Wave(NamedTuple):
    """Points that are compiled together: of the methods whose steps are measured, or of all other families."""

    sizes: tuple[str, ...]
    rows: int
    others: bool = False

    def __str__(self) -> str:
        families = "other families" if self.others else "families"
        return f"{families} at {', '.join(self.sizes)} with {self.rows} rows"


WAVES = (
    Wave(("768x768",), 8192),
    Wave(("768x3072", "3072x768"), 8192),
    Wave(("576x576", "576x1536", "1536x576"), 8192),
    Wave(("768x768",), 1024),
    Wave(("768x768",), 128),
    Wave(("768x768",), 8192, others=True),
    Wave(("768x3072", "3072x768", "576x576", "576x1536", "1536x576"), 1024),
    Wave(("768x3072", "3072x768", "576x576", "576x1536", "1536x576"), 128),
    Wave(("768x768",), 1024, others=True),
    Wave(("768x768",), 128, others=True),
)
SMALL = (Wave(("16x16",), 32), Wave(("16x16",), 8))
_SMALL = ("low_rank r=8", "kronecker")


def points(wave: Wave, small: bool = False) -> list[Point]:
    """The points of a wave, of all methods or of all other families and options that `paths` measures."""
    if wave.others:
        every = paths.grid((DTYPE,), sizes=wave.sizes, rows=(wave.rows,))
        return [point for point in every if not is_of_a_method(point)]
    specs = [methods.spec(method) for method in (_SMALL if small else methods.ON_ACCELERATORS)]
    sizes = [tuple(map(int, size.split("x"))) for size in wave.sizes]
    return [Point(spec.family, dict(spec.options), *size, wave.rows, DTYPE) for spec in specs for size in sizes]


def is_of_a_method(point: Point) -> bool:
    """Whether a point has the family and parameters of a method whose steps are measured."""
    return any(is_of(point, method) for method in methods.ON_ACCELERATORS)


def is_of(point: Point, method: str) -> bool:
    """Whether a point has the family and parameters of a method."""
    spec = methods.spec(method)
    other = dataclasses.replace(point, options=dict(spec.options))
    return spec.family == point.family and timing.parameters_of(other) == timing.parameters_of(point)


def layers_of(point: Point, path: str | None) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The forward and backward pass of several layers, each with its own parameters, inputs and gradients."""
    product, trainable, frozen = timing.product_of(timing.plain_layer(point), point, path)
    rows = lambda key, n: [*jax.random.normal(jax.random.key(key), (LAYERS, point.rows, n), DTYPE)]  # noqa: E731
    trained = [jax.tree.map(lambda leaf: leaf.copy(), trainable) for _ in range(LAYERS)]

    def passes(trained: list[Any], frozen: Any, xs: list[jax.Array], dys: list[jax.Array]) -> Any:
        each = lambda trained, xs: [product(one, frozen, x) for one, x in zip(trained, xs, strict=True)]  # noqa: E731
        ys, pull = jax.vjp(each, trained, xs)
        return ys, pull(dys)

    return passes, (trained, frozen, rows(2, point.n_in), rows(3, point.n_out))


def program(point: Point, path: str | None) -> Callable[[int], None]:
    """The same compiled, as a function that calls it so many times."""
    passes, arguments = layers_of(point, path)
    called = timing.calls(passes, *arguments)
    called(1)
    return called


def measure(
    file: pathlib.Path, until: float, small: bool, write: Callable[[dict], None], made: Mapping[str, Any]
) -> None:
    """Measures wave after wave, until the time is over.

    Args:
      file: the table of points, in the form of `surm/peft/multiply/measured`, written anew after every wave.
      until: the end, in seconds of `time.time`.
      small: whether the waves are small ones.
      write: takes which waves are done, in part or not at all, and which programs failed.
      made: how the points were made, to which the versions are added.
    """
    waves, table = SMALL if small else WAVES, []
    told = {"not_reached": [*map(str, waves)], "in_part": [], "failed": {}}
    write(told)
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    for wave in waves:
        asked = points(wave, small)
        end = until - _FOR_TIMING * (1 + len(asked))
        ready = compiled(asked, pool, time.time() + _FOR_A_WAVE * (end - time.time()), told["failed"])
        measured = [with_choice(paths.measured(point, runs, _REPEATS, LAYERS)) for point, runs in ready]
        told["not_reached"].remove(str(wave)) if measured else None
        told["in_part"] += [str(wave)] if 0 < len(measured) < len(asked) else []
        table += measured
        put(file, table, made)
        write(told)
        print(f"{wave}: {len(measured)} of {len(asked)} points", file=sys.stderr, flush=True)
        if time.time() > until - _FOR_TIMING:
            break
    pool.shutdown(wait=False, cancel_futures=True)


def compiled(
    asked: Iterable[Point], pool: concurrent.futures.Executor, until: float, failed: dict[str, str]
) -> list[tuple[Point, dict[str | None, Callable[[int], None]]]]:
    """The points of which every program is ready in time; layers without an update are compiled once for a size."""
    futures: dict[Any, concurrent.futures.Future] = {}
    for one in asked:
        for name in paths.names_of(one):
            if (key := _key(one, name)) not in futures:
                futures[key] = pool.submit(program, one, name)
    concurrent.futures.wait(futures.values(), timeout=max(until - time.time(), 0))
    for key, future in futures.items():
        if not future.done():
            future.cancel()
        elif error := future.exception():
            failed[str(key)] = f"{type(error).__name__}: {one_line(error)}"
    whole = lambda point: [futures[_key(point, name)] for name in paths.names_of(point)]  # noqa: E731
    good = lambda future: future.done() and not future.cancelled() and not future.exception()  # noqa: E731
    return [
        (point, {name: future.result() for name, future in zip(paths.names_of(point), whole(point), strict=True)})
        for point in asked
        if all(map(good, whole(point)))
    ]


def _key(point: Point, name: str | None) -> tuple[Any, ...]:
    size = point.n_out, point.n_in, point.rows
    return size if name is None else (point.family, *sorted(point.options.items()), *size, name)


def with_choice(point: dict[str, Any]) -> dict[str, Any]:
    """A measured point with the path that `auto` takes there by what is shipped."""
    keys = ("family", "n_out", "n_in", "rows", "parameters", "dtype")
    fusible = not {*choice.FUSED}.isdisjoint(point["seconds"])
    taken = choice.quickest(*(point[key] for key in keys), jax.default_backend(), fusible=fusible)
    return {**point, "chosen": taken}


def put(file: pathlib.Path, table: list[dict[str, Any]], made: Mapping[str, Any]) -> None:
    """Writes the points with how they were made."""
    name = lambda point: f"{point['family']} {point['dtype']}"  # noqa: E731
    results.put(file, "points", table, {name(point): {**made, "versions": versions()} for point in table}, name)
