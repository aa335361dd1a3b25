"""Values inside `jax.shard_map`, where an axis of the mesh is handled by hand."""

import jax


def varying_like(value: jax.Array, x: jax.Array) -> jax.Array:
    """The value as one that may differ between devices wherever x does; outside `jax.shard_map` as it is.

    JAX inserts this by itself between its own operations: its transpose sums the gradient over the devices. A function
    with a derivative of its own has to ask for it.

    Args:
      value: the same on all devices, as parameters are.
      x: spread over them, as a batch is.

    Returns:
      The value.
    """
    axes = jax.typeof(x).manual_axis_type.varying - jax.typeof(value).manual_axis_type.varying
    return jax.lax.pcast(value, tuple(sorted(axes)), to="varying") if axes else value
