"""What XLA's compilers are kept from: computing again and again, or too early, or together.

That for CPUs fuses cheap operations into everything that uses their result, recomputed. In the backward pass of a deep
model each residual gradient is a cheap sum over all the blocks above, and every use of it, three a block, would add
that whole sum up anew. `optimization_barrier` does not survive until fusion there; a function that is called rather
than inlined does.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jaxtyping import Array, Float

from surm.matrices.algebra.platforms import platform_of

P, R, V = ParamSpec("P"), TypeVar("R"), TypeVar("V")


def computed_once(function: Callable[P, R]) -> Callable[P, R]:
    """The same function; on a CPU, compiled by itself and its results kept, not recomputed where they are used.

    Args:
      function: of arrays and trees of arrays.

    Returns:
      The function. It can be differentiated and mapped like the original.
    """

    @functools.wraps(function)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
        on_cpu = platform_of(*jax.tree.leaves((args, kwargs))) == "cpu"
        return (_called(function) if on_cpu else function)(*args, **kwargs)

    return chosen


def by_itself(function: Callable[P, R]) -> Callable[P, R]:
    """The same function; on a GPU, XLA does not put its products together with others.

    Two products of one input, x·W and x·ΔWᵀ, are merged there into one with [W, ΔWᵀ], whose two halves are then added
    in a pass of its own. Kept apart, the second product is added up by the first: half of the temporary memory.

    Args:
      function: of arrays and trees of arrays.

    Returns:
      The function. It can be differentiated and mapped like the original.
    """

    @functools.wraps(function)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
        if platform_of(*jax.tree.leaves((args, kwargs))) != "gpu":
            return function(*args, **kwargs)
        return jax.lax.optimization_barrier(function(*jax.lax.optimization_barrier(args), **kwargs))

    return chosen


def not_before(values: V, other: Float[Array, "*b n"]) -> V:
    """Values as they are, but computed from an array: no earlier than it, and nothing that is there already.

    They are added to 0 times its first entry, which no compiler may drop: it is not 0 where that is no finite number.
    Then neither are they.

    Args:
      values: a tree of arrays, of floating point.
      other: the array.

    Returns:
      The values.
    """
    if not other.size:
        return values
    # Of axes that types tell to be spread over devices no single entry can be had.
    first = other[tuple(0 if part is None else slice(None) for part in jax.typeof(other).sharding.spec)].min()
    return jax.tree.map(lambda value: value + (0 * first).astype(value.dtype), values)


@functools.cache
def _called(function: Callable[P, R]) -> Callable[P, R]:
    from jax.experimental.scheduling_groups import xla_metadata_call  # experimental: asked for where it is needed

    return xla_metadata_call(function, inlineable="false")
