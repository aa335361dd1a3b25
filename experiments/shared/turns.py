"""Timing in turns: everything once in every repeat, in an order drawn anew, so that ratios are of one moment."""

import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax


def compiled(function: Callable[..., object], *arguments: Any) -> Callable[[], object]:
    """What calls a function, compiled for its arguments, and waits for the result."""
    program = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def both_passes(function: Callable[..., jax.Array], params: Any, fixed: Any, x: jax.Array, n_out: int) -> Callable:
    """The compiled forward and backward pass of a product, to its parameters and to x.

    Args:
      function: from (params, fixed, x) to y.
      params: those whose gradient is asked for.
      fixed: the others.
      x: vectors.
      n_out: the width of y.

    Returns:
      What runs it and waits for the result.
    """
    dy = jax.random.normal(jax.random.key(3), (len(x), n_out), x.dtype)

    def passes(params, fixed, x, dy):
        y, pull = jax.vjp(lambda params, x: function(params, fixed, x), params, x)
        return y, pull(dy)

    return compiled(passes, params, fixed, x, dy)


def timed(
    runs: Mapping[str, Callable[[], object]], repeats: int, other: Collection[str] = ()
) -> dict[str, list[float]]:
    """Seconds of everything in every repeat.

    All run once before, which is not counted. Where some are another library's, each library's take their turns
    together, after one run that is not counted either: caches and threads were the other's.

    Args:
      runs: by name.
      repeats: how often each is counted.
      other: the names of those of the other library.

    Returns:
      By name, a number for each repeat.
    """
    groups = [[name for name in runs if name not in other], [name for name in runs if name in other]]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)
    for run in runs.values():
        run()
    for _ in range(repeats):
        for group in filter(None, groups):
            if other:
                runs[group[0]]()
            for name in order.sample(group, len(group)):
                began = time.perf_counter()
                runs[name]()
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratios(seconds: Sequence[float], base: Sequence[float]) -> list[float]:
    """The quartiles, over repeats, of one time over another within a repeat."""
    each = [a / b for a, b in zip(seconds, base, strict=True)]
    return statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
