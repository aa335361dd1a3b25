"""The operations of a traced program in matrix products and convolutions.

XLA counts the body of a loop once; here it counts as often as it runs.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def counted(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> float:
    """Counts the multiplications and additions in products and convolutions of a traced program.

    Args:
      jaxpr: such as `jax.jit(f).trace(x).jaxpr`; shapes are those of whole arrays, before they are spread over devices.

    Returns:
      The number of operations; a loop with an unknown number of runs counts once.

    Examples:
      >>> import jax.numpy as jnp
      >>> looped = lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]
      >>> counted(jax.make_jaxpr(looped)(jnp.ones((4, 4))))
      640.0
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    inner, _ = partial_eval.dce_jaxpr(inner, [True] * len(inner.outvars))  # XLA leaves out what nobody uses, too
    return float(sum(_of(equation) for equation in inner.eqns))


def _of(equation: Any) -> float:
    name, given = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = given["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        of_output = math.prod(kernel) / kernel[given["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * of_output
    each = [counted(part) for part in _parts(given)]
    if name == "cond":
        return max(each)
    if name == "scan":
        return given["length"] * sum(each)
    if name == "shard_map":
        axes = given.get("newly_manual_axes", given.get("manual_axes"))  # before jax 0.10 it had the second name
        return math.prod(size for axis, size in given["mesh"].shape.items() if axis in axes) * sum(each)
    return sum(each)


def _parts(parameters: dict[str, Any]) -> Iterator[core.Jaxpr | core.ClosedJaxpr]:
    """The programs inside an equation."""
    for value in jax.tree.leaves(list(parameters.values()), is_leaf=lambda leaf: isinstance(leaf, core.Jaxpr)):
        if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
            yield value
