"""What XLA's CPU compiler is kept from computing again and again, or too early.

It fuses cheap operations into everything that uses their result, recomputed. In the backward pass of a deep model each
residual gradient is a cheap sum over all the blocks above, and every use of it, three a block, would add that whole
sum up anew. `optimization_barrier` does not survive until fusion there; a function that is called rather than inlined
does.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P, R = ParamSpec("P"), TypeVar("R")
V, W = TypeVar("V"), TypeVar("W")


def computed_once(function: Callable[P, R]) -> Callable[P, R]:
    """The same function; on a CPU, compiled by itself and its results kept, not recomputed where they are used.

    Args:
      function: of arrays and trees of arrays.

    Returns:
      The function. It can be differentiated and mapped like the original.
    """

    @functools.wraps(function)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
        return (_called(function) if jax.default_backend() == "cpu" else function)(*args, **kwargs)

    return chosen


def not_before(values: V, other: W) -> tuple[V, W]:
    """Values as they are, but on a CPU no earlier than something else: what is computed from them waits for it.

    They go through one function, which XLA does not look into.

    Args:
      values: a tree of arrays.
      other: a tree of arrays.

    Returns:
      Both, to be used in place of what was given.
    """
    return computed_once(_both)(values, other)


def _both(values: V, other: W) -> tuple[V, W]:
    return values, other


@functools.cache
def _called(function: Callable[P, R]) -> Callable[P, R]:
    from jax.experimental.scheduling_groups import xla_metadata_call  # experimental: asked for where it is needed

    return xla_metadata_call(function, inlineable="false")
