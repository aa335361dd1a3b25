"""The product with a kernel, with a derivative that XLA's CPU compiler makes fast.

The gradient of a kernel, xᵀ·dy, needs one operand transposed in memory. JAX computes it as (dyᵀ·x)ᵀ, which transposes
dy. As dy is a sum over the residual branches above, XLA recomputes that whole sum inside the strided copy. Here x is
transposed instead, which is in memory already. On other platforms this is JAX's own product, which can be
differentiated in every mode.

A product of several rows in bfloat16 is asked for in float32, and rounded afterwards. XLA's CPU compiler then
multiplies the factors as they are. For a result in bfloat16 it converts both to float32 first, which takes twice as
long (findings/xla_cpu_widens_products_in_bfloat16.sh).
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Array, Float

from surm.matrices.algebra.platforms import platform_of
from surm.ops.manual_axes import vary_together


def matmul(x: Float[Array, "*batch n_in"], kernel: Float[Array, "n_in n_out"]) -> Float[Array, "*batch n_out"]:
    """The product x·kernel over the last axis; on a CPU it can be differentiated in reverse mode only.

    Args:
      x: vectors, along the last axis.
      kernel: the kernel, in the same dtype.

    Returns:
      The products.
    """
    return _matmul(*vary_together(x, kernel)) if platform_of(x, kernel) == "cpu" else x @ kernel


@jax.custom_vjp
def _matmul(x, kernel):
    return _product(x, kernel)


def _product(x, kernel):
    if x.dtype == jnp.bfloat16 and math.prod(x.shape[:-1]) > 1:
        return jnp.matmul(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)
    return x @ kernel


def _forward(x, kernel):
    return _product(x, kernel), (x, kernel)


def _backward(saved, dy):
    x, kernel = saved
    sharding = jax.typeof(kernel).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:  # then the axes of the batch must not be merged by a reshape
        batch = tuple(range(x.ndim - 1))
        return _product(dy, kernel.T), jax.lax.dot_general(x, dy, ((batch, batch), ((), ())), out_sharding=sharding)
    rows, gradients = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return _product(dy, kernel.T), _product(rows.T, gradients)


_matmul.defvjp(_forward, _backward)


def dot_general(x: Array, kernel: Array, dimension_numbers: tuple, **options: object) -> Array:
    """`matmul` if the arguments describe it, else `jax.lax.dot_general`; for `nnx.Linear(dot_general=...)`.

    Args:
      x: the left operand.
      kernel: the right one.
      dimension_numbers: contracted and batched axes, as for `jax.lax.dot_general`.
      **options: the other arguments of `jax.lax.dot_general`.

    Returns:
      The product.
    """
    plain = kernel.ndim == 2 and dimension_numbers == (((x.ndim - 1,), (0,)), ((), ()))
    if plain and x.dtype == kernel.dtype and not any(option is not None for option in options.values()):
        return matmul(x, kernel)
    return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
