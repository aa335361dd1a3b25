"""Marks values inside `jax.shard_map`, where axes of the mesh are handled manually, as varying over these axes."""

import jax


def vary_together(*values: jax.Array) -> tuple[jax.Array, ...]:
    """Marks values as varying over every mesh axis that one of them varies over; does nothing outside `shard_map`.

    JAX inserts this by itself between its own operations: its transpose sums the gradient over the devices. A function
    with a custom derivative has to do it explicitly.

    Args:
      *values: arrays that meet in one computation, such as a batch that is spread over devices and a kernel that is
        not.

    Returns:
      The values, in order.
    """
    varying = [jax.typeof(value).manual_axis_type.varying for value in values]
    missing = [tuple(sorted(frozenset().union(*varying) - axes)) for axes in varying]
    return tuple(
        jax.lax.pcast(value, axes, to="varying") if axes else value for value, axes in zip(values, missing, strict=True)
    )
