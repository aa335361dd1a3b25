"""Times the paths of one matrix: a layer with an update, forward and backward, with the gradients of both.

Paths take turns, in a new order in every round, and the median counts, so that ratios compare one moment. A turn is as
many calls as fill five milliseconds.
"""

import dataclasses
import functools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx

from surm import matrices
from surm.matrices.algebra.platforms import platform_of
from surm.ops.matmul import dot_general
from surm.peft import layers, variables
from surm.peft.multiply import fused, paths
from surm.peft.spec import PeftSpec

Name = TypeVar("Name")

FILLED_SECONDS = 0.005
FLOOR = None
"""The name, among paths, of the layer without an update."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A family with options, the size of its matrix, the number of vectors in a batch, the dtype of the layer."""

    family: str
    options: Mapping[str, Any]
    n_out: int
    n_in: int
    rows: int
    dtype: str


def plain_layer(point: Point) -> nnx.Linear:
    """The layer without an update, as the models of surm make it."""
    return nnx.Linear(
        point.n_in, point.n_out, param_dtype=point.dtype, dtype=point.dtype, dot_general=dot_general, rngs=nnx.Rngs(0)
    )


def paths_of(point: Point) -> list[str]:
    """The paths of a family; the fused ones are among them if an update may be added to the kernel of such a layer."""
    return paths.allowed(point.family, fusible=not fused.obstacle(plain_layer(point)))


def parameters_of(point: Point) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters."""
    init = functools.partial(matrices.FAMILIES[point.family].init, n_out=point.n_out, n_in=point.n_in, **point.options)
    return {name: value.shape for name, value in jax.eval_shape(init, jax.random.key(0)).items()}


def product_of(layer: nnx.Linear, point: Point, path: str | None) -> tuple[Callable[..., jax.Array], Any, Any]:
    """A layer with an update by a path, or alone: the function of its trained part, its frozen part and x, and both."""
    if path != FLOOR:
        spec = PeftSpec(family=point.family, options=point.options, path=path)
        layer = layers.UpdatedLinear(layer, spec, rngs=nnx.Rngs(1))
    graphdef, trainable, frozen = nnx.split(layer, variables.AdapterParam, ...)
    return lambda trainable, frozen, x: nnx.merge(graphdef, trainable, frozen)(x), trainable, frozen


def both_passes(
    product: Callable[..., jax.Array], params: Any, fixed: Any, x: jax.Array, dy: jax.Array
) -> Callable[[int], None]:
    """The compiled forward and backward pass of y = product(params, fixed, x), with the gradients of params and x."""

    def passes(params, fixed, x, dy):
        y, pull = jax.vjp(lambda params, x: product(params, fixed, x), params, x)
        return y, pull(dy)

    return calls(passes, params, fixed, x, dy)


def gradient_of_answer(x: jax.Array, n_out: int) -> jax.Array:
    """A random gradient of the product of a matrix with vectors x."""
    return jax.random.normal(jax.random.key(3), (len(x), n_out), x.dtype)


def calls(function: Callable[..., object], *arguments: Any) -> Callable[[int], None]:
    """A compiled function of these arguments, as a function that calls it so many times, and waits.

    On a CPU, where calls could overlap, it waits for each. Elsewhere it waits for the last, since the time to start a
    program would else hide that of a product.
    """
    program, each = jax.jit(function).lower(*arguments).compile(), platform_of() == "cpu"

    def called(times: int) -> None:
        for _ in range(times):
            found = program(*arguments)
            if each:
                jax.block_until_ready(found)
        jax.block_until_ready(found)

    return called


def one_round(runs: Mapping[Name, Callable[[], object]], order: random.Random) -> dict[Name, float]:
    """Runs everything once, in an order of its own, and returns the seconds of each."""
    return {name: seconds_of(runs[name]) for name in order.sample([*runs], len(runs))}


def seconds_of(run: Callable[[], object]) -> float:
    """The seconds of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


class Contest:
    """The paths of one point, which enter one by one and are then timed in rounds."""

    def __init__(self, point: Point, layers: int = 1):
        """Starts without any path; programs that are added hold so many layers."""
        self.point, self._layers, self._order = point, layers, random.Random(0)
        self._runs: dict[str | None, Callable[[], None]] = {}
        self._calls: dict[str | None, int] = {}
        self._seconds: dict[str | None, list[float]] = {}

    @functools.cached_property
    def _arrays(self) -> tuple[nnx.Linear, jax.Array, jax.Array]:
        """The layer, its input, and the gradient of its answer, which all paths share."""
        point = self.point
        x = jax.random.normal(jax.random.key(2), (point.rows, point.n_in), point.dtype)
        return plain_layer(point), x, gradient_of_answer(x, point.n_out)

    def enter(self, path: str | None) -> float:
        """Compiles a path and tries it out; returns the seconds that its turn in a round will take."""
        layer, x, dy = self._arrays
        return self.add(path, both_passes(*product_of(layer, self.point, path), x, dy))

    def add(self, path: str | None, run: Callable[[int], None]) -> float:
        """Tries out the program of a path, a function that calls it so many times; returns as `enter` does."""
        run(1)
        quickest = min(seconds_of(functools.partial(run, 1)) for _ in range(2))
        self._calls[path] = math.ceil(FILLED_SECONDS / quickest)
        self._runs[path], self._seconds[path] = functools.partial(run, self._calls[path]), []
        return quickest * self._calls[path]

    def round(self) -> None:
        """Times every path once."""
        for path, seconds in one_round(self._runs, self._order).items():
            self._seconds[path].append(seconds / self._calls[path] / self._layers)

    @property
    def medians(self) -> dict[str | None, float]:
        """The median seconds of every path that was timed."""
        return {path: statistics.median(times) for path, times in self._seconds.items() if times}

    def measured(self) -> dict[str, Any]:
        """The point in the form of measured/*.json; `floor_seconds` is None if the floor was not timed."""
        medians, point = self.medians, self.point
        floor = medians.pop(FLOOR, None)
        shapes = {name: [*shape] for name, shape in parameters_of(point).items()}
        own = {**dataclasses.asdict(point), "options": dict(point.options), "parameters": shapes}
        return {**own, "floor_seconds": floor, "seconds": medians}
