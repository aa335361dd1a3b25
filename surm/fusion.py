"""What XLA's CPU compiler is kept from computing again and again.

It fuses cheap operations into everything that uses their result, recomputed. In the backward pass of a deep model each
residual gradient is a cheap sum over all the blocks above, and every use of it, three a block, would add that whole
sum up anew: a sixth of the time of a BERT-base's step. `optimization_barrier` does not survive until fusion there; a
function that is called rather than inlined does.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jax.experimental.scheduling_groups import xla_metadata_call

P, R = ParamSpec("P"), TypeVar("R")


def computed_once(function: Callable[P, R]) -> Callable[P, R]:
    """The same function; on a CPU, compiled by itself and its results kept, not recomputed where they are used.

    Args:
      function: of arrays and trees of arrays.

    Returns:
      The function. It can be differentiated and mapped like the original.
    """
    called = xla_metadata_call(function, inlineable="false")

    @functools.wraps(function)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
        return (called if jax.default_backend() == "cpu" else function)(*args, **kwargs)

    return chosen
