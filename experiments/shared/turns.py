"""Timing in turns: everything runs once in every repeat, in a new order, so that ratios compare one moment."""

import math
import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax

from surm.peft.multiply import timing

_FEWEST = 3


def compiled(function: Callable[..., object], *arguments: Any) -> Callable[[], object]:
    """A call of the compiled function with these arguments, which waits for the result."""
    program = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def timed(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    other: Collection[str] = (),
    *,
    within: float = math.inf,
) -> dict[str, list[float]]:
    """The seconds that everything takes in every repeat, after one run of each that is not counted.

    No repeat begins after `within` seconds, unless there were fewer than three.

    Runs of another library (the names in `other`) take their turns together. Then each library's turns begin with one
    more run that is not counted, because caches and threads belonged to the other library before.
    """
    groups = [[name for name in runs if name not in other], [name for name in runs if name in other]]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order, end = random.Random(0), time.monotonic() + within
    for run in runs.values():
        run()
    for number in range(repeats):
        if number >= _FEWEST and time.monotonic() > end:
            break
        for group in filter(None, groups):
            if other:
                runs[group[0]]()
            for name, one in timing.one_round({name: runs[name] for name in group}, order).items():
                seconds[name].append(one)
    return seconds


def ratios(seconds: Sequence[float], base: Sequence[float]) -> list[float]:
    """The quartiles, over repeats, of one time over another within a repeat."""
    each = [a / b for a, b in zip(seconds, base, strict=True)]
    return statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
