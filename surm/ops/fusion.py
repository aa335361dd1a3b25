"""Keeps XLA's compilers from recomputing values, computing them too early, or merging products.

The compiler for CPUs fuses cheap operations into everything that uses their result, and so recomputes them. In the
backward pass of a deep model, each residual gradient is a cheap sum over all blocks above, and each of its uses, three
a block, would compute that whole sum again. `optimization_barrier` does not survive until fusion on a CPU; a function
that is called rather than inlined does.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jaxtyping import Array, Float

from surm.matrices.algebra.platforms import platform_of

P, R, V = ParamSpec("P"), TypeVar("R"), TypeVar("V")


def computed_once(function: Callable[P, R]) -> Callable[P, R]:
    """The same function; on a CPU it is compiled separately, so that its results are kept and not recomputed.

    Args:
      function: a function of arrays and trees of arrays.

    Returns:
      The function. It can be differentiated and mapped like the original.
    """

    @functools.wraps(function)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
        on_cpu = platform_of(*jax.tree.leaves((args, kwargs))) == "cpu"
        return (_called(function) if on_cpu else function)(*args, **kwargs)

    return chosen


def by_itself(function: Callable[P, R]) -> Callable[P, R]:
    """The same function; on a GPU, XLA does not merge its products with others.

    XLA would merge two products of one input, x·W and x·ΔWᵀ, into one with [W, ΔWᵀ], and add the two halves in a
    separate pass. If they are kept apart, the first product accumulates the second, which takes half of the temporary
    memory.

    Args:
      function: a function of arrays and trees of arrays.

    Returns:
      The function. It can be differentiated and mapped like the original.
    """

    @functools.wraps(function)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
        if platform_of(*jax.tree.leaves((args, kwargs))) != "gpu":
            return function(*args, **kwargs)
        return jax.lax.optimization_barrier(function(*jax.lax.optimization_barrier(args), **kwargs))

    return chosen


def not_before(values: V, other: Float[Array, "*shape"]) -> V:
    """Returns `values` with an artificial dependency on `other`, so XLA cannot schedule them earlier or fold them.

    On a CPU, 0 times the first entry of `other` is added to each value. No compiler may drop this term, because it is
    not 0 if that entry is not finite. In that case the values are not finite either. Elsewhere it is a barrier.

    Args:
      values: a tree of floating-point arrays.
      other: the array.

    Returns:
      The same values.
    """
    if not other.size:
        return values
    if platform_of(other) != "cpu":  # where a barrier holds; the entry would have to be sent to all other devices
        return jax.lax.optimization_barrier((values, other))[0]
    # Along axes that are spread over devices (according to the type), a single entry cannot be read.
    first = other[tuple(0 if part is None else slice(None) for part in jax.typeof(other).sharding.spec)].min()
    return jax.tree.map(lambda value: value + (0 * first).astype(value.dtype), values)


@functools.cache
def _called(function: Callable[P, R]) -> Callable[P, R]:
    from jax.experimental.scheduling_groups import xla_metadata_call  # experimental, so not imported before it is used

    return xla_metadata_call(function, inlineable="false")
