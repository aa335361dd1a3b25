"""The product with a kernel, with a derivative that XLA's CPU compiler makes fast.

The gradient of a kernel, xᵀ·dy, needs one operand transposed in memory. JAX computes it as (dyᵀ·x)ᵀ, which transposes
dy. As dy is a sum over the residual branches above, XLA recomputes that whole sum inside the strided copy. Here x is
transposed instead, which is in memory already. On other platforms this is JAX's own product, which can be
differentiated in every mode.

A product of several rows in bfloat16 is asked for in float32, and rounded afterwards. XLA's CPU compiler then
multiplies the factors as they are, on a processor that can. For a result in bfloat16 it converts both to float32 first,
which takes twice as long with AVX512-BF16 (findings/xla_cpu_widens_products_in_bfloat16.sh); other processors were not
measured.
"""

import math

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.sharding import AxisType
from jaxtyping import Array, Float

from surm.matrices.algebra.platforms import platform_of
from surm.ops.manual_axes import vary_together
from surm.ops.spread import kernels_are, whole


def matmul(x: Float[Array, "*batch n_in"], kernel: Float[Array, "n_in n_out"]) -> Float[Array, "*batch n_out"]:
    """The product x·kernel over the last axis.

    On a CPU, and where kernels are spread over devices (`surm.ops.spread`), it can be differentiated in reverse mode
    only.

    Args:
      x: vectors, along the last axis.
      kernel: the kernel, in the same dtype.

    Returns:
      The products.
    """
    if platform_of(x, kernel) == "cpu" or kernels_are():
        return _matmul(*vary_together(x, kernel))
    return x @ kernel


def half_product(
    x: Float[Array, "*batch n_in"], kernel: Float[Array, "n_in n_out"], precision: PrecisionLike = None
) -> Float[Array, "*batch n_out"]:
    """The product; on a CPU, that of several rows in bfloat16 is computed in float32 and rounded; see the module."""
    if x.dtype == jnp.bfloat16 and math.prod(x.shape[:-1]) > 1 and platform_of(x) == "cpu":
        wide = jnp.matmul(x, kernel, precision=precision, preferred_element_type=jnp.float32)
        return wide.astype(x.dtype)
    return jnp.matmul(x, kernel, precision=precision)


@jax.custom_vjp
def _matmul(x, kernel):
    return half_product(x, whole(kernel))


def _forward(x, kernel):
    return _matmul(x, kernel), (x, kernel)


def _backward(saved, dy):
    x, kernel = saved
    sharding = jax.typeof(kernel).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:  # then the axes of the batch must not be merged by a reshape
        batch, wide = tuple(range(x.ndim - 1)), jnp.promote_types(x.dtype, jnp.float32)
        return half_product(dy, kernel.T), jax.lax.dot_general(
            x, dy, ((batch, batch), ((), ())), preferred_element_type=wide, out_sharding=sharding
        ).astype(x.dtype)
    rows, gradients = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return half_product(dy, whole(kernel, dy).T), half_product(rows.T, gradients)


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
