"""Multiplies by a layer and its update in one product, y = x·(kernel + scale·ΔWᵀ) + bias.

If layer and update are added first, they cost one product in the forward pass and one for the gradient of x. The
gradient of the update's parameters remains, and there are three ways to compute it: by the family's own product (two
thin products for low rank, one correlation for a circulant), by the same with small matmuls in place of FFTs, or
through the dense matrix, as xᵀ·dy followed by the derivative of the dense form.

In bfloat16 the sum is rounded with a fixed dither (`surm.ops.rounding`): a kernel in bfloat16 has no bits below its
last one, and without the dither every update of less than half of that would be lost in all entries. Without an update
the sum equals the kernel.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from surm.matrices import Params
from surm.matrices.algebra.platforms import platform_of
from surm.ops.fusion import not_before
from surm.ops.manual_axes import vary_together
from surm.ops.matmul import dot_general, half_product
from surm.ops.packed import Packed, PackedLinear
from surm.ops.rounding import dithered
from surm.ops.spread import whole


def obstacle(base: nnx.Module, *of_x: DTypeLike) -> str:
    """Says why the update must not be added to the kernel of a layer.

    Args:
      base: the layer.
      *of_x: the dtype of the input, which decides what a layer without a dtype of its own computes in; it may be left
        out as long as it is not known.

    Returns:
      The reason, which follows on "the layer"; empty if there is none.
    """
    if type(base) not in (nnx.Linear, PackedLinear):
        return f"is a {type(base).__name__}, which may do more than multiply"
    dtype = jnp.dtype(base.dtype or jnp.result_type(base.kernel.dtype, *of_x))
    if type(base) is PackedLinear:
        return "" if dtype == jnp.bfloat16 else f"is packed and computes in {dtype}"
    if base.dot_general not in (dot_general, jax.lax.dot_general) or base.preferred_element_type is not None:
        return "multiplies in a way of its own"
    if dtype == jnp.bfloat16:
        return ""
    if dtype not in (jnp.float32, jnp.float64) or dtype.itemsize < base.kernel.dtype.itemsize:
        return f"computes in {dtype}, which rounds small updates away"
    precision = base.precision or jax.config.jax_default_matmul_precision  # None may mean less than float32 on a device
    if platform_of(base.kernel[...]) != "cpu" and precision not in ("highest", "float32", jax.lax.Precision.HIGHEST):
        return "multiplies float32 in less than its precision, which rounds small updates away"
    return ""


def product(
    base: nnx.Linear | PackedLinear,
    params: Params,
    to_dense: Callable[[Params], Float[Array, "n_out n_in"]],
    matvec: Callable[[Params, Array], Array],
    x: Float[Array, "*b n_in"],
    *,
    keep: bool,
) -> Float[Array, "*b n_out"]:
    """Applies the layer with its update; the gradient of the update's parameters is a separate product with x.

    (This holds under `jax.jit` and if the kernel itself does not train; otherwise xᵀ·dy is formed as well.)

    Args:
      base: the layer; `obstacle` has found none.
      params: the parameters of the update.
      to_dense: the function from the parameters to scale·ΔW.
      matvec: the function from the parameters and x to scale·ΔW·x.
      x: the layer's input.
      keep: whether the sum of kernel and update is kept for the backward pass. It is computed again there if not, if
        the kernel is packed, and on every platform but a CPU.

    Returns:
      x·(kernel + scale·ΔWᵀ) + bias. Besides the layer, this costs the dense matrix, once or twice, and in the
      backward pass the derivative of `matvec` with respect to the parameters. x, the parameters and, as `keep` says,
      the sum are kept for the backward pass. On a CPU the layers of surm's models can be differentiated in
      reverse mode only, with or without this.
    """
    x, kernel, bias = _promoted(base, x)
    on_cpu, packed = platform_of(x, *params.values()) == "cpu", isinstance(kernel, Packed)
    if packed or (on_cpu and getattr(base, "dot_general", dot_general) is dot_general):
        leaves, structure = jax.tree.flatten((params, kernel, x))
        params, kernel, x = jax.tree.unflatten(structure, vary_together(*leaves))
        keep = keep and on_cpu and not packed  # which is packed to take less memory
        y = _product_in_reverse(to_dense, matvec, base.precision, keep, params, kernel, x)
    else:
        forward = functools.partial(_product, to_dense, matvec, base.precision)
        # A copy of all kernels in an accelerator's memory would be more than low rank takes there.
        y = (forward if keep and on_cpu else jax.checkpoint(forward))(params, kernel, x)
    return y if bias is None else y + bias


def _promoted(base: nnx.Linear | PackedLinear, x: Array) -> tuple[Array, Array | Packed, Array | None]:
    """Input, kernel and bias in the dtype that the layer computes in; a packed kernel stays as it is."""
    kernel, bias = base.kernel.get_value(), None if base.bias is None else base.bias[...]
    if type(base) is nnx.Linear:
        return base.promote_dtype((x, kernel, bias), dtype=base.dtype)
    dtype = base.dtype or jnp.promote_types(x.dtype, kernel.dtype)
    kernel = kernel if isinstance(kernel, Packed) else kernel.astype(dtype)
    return x.astype(dtype), kernel, None if bias is None else bias.astype(dtype)


def _merged(to_dense, params, kernel, dtype, after=None):
    """The kernel with the update; with `after`, it is not computed before that array is there."""
    if after is not None:
        params = not_before(params, after)
    update, kernel = to_dense(params).T, whole(kernel, after)
    kernel = kernel.dense(dtype, after) if isinstance(kernel, Packed) else kernel
    if dtype != jnp.bfloat16:
        return kernel + update
    merged = dithered(kernel.astype(jnp.float32) + update.astype(jnp.float32))
    return jax.lax.optimization_barrier(merged)  # or XLA computes it anew for every tile of the product


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _product(to_dense, matvec, precision, params, kernel, x):
    return jnp.matmul(x, _merged(to_dense, params, kernel, x.dtype), precision=precision)


@functools.partial(_product.defjvp, symbolic_zeros=True)
def _product_jvp(to_dense, matvec, precision, primals, tangents):
    params, kernel, x = primals
    d_params, d_kernel, d_x = tangents
    merged = _merged(to_dense, params, kernel, x.dtype)
    terms = [
        jnp.matmul(left, right, precision=precision)
        for left, right in ((x, merged), (d_x, merged), (x, d_kernel))
        if not isinstance(left, SymbolicZero) and not isinstance(right, SymbolicZero)
    ]
    trained = {name: tangent for name, tangent in d_params.items() if not isinstance(tangent, SymbolicZero)}
    if trained:
        in_trained = lambda part: matvec({**params, **part}, x)  # noqa: E731
        terms.append(jax.jvp(in_trained, ({name: params[name] for name in trained},), (trained,))[1])
    y, *changes = terms
    return y, sum(changes, jnp.zeros_like(y))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _product_in_reverse(to_dense, matvec, precision, keep, params, kernel, x):
    return _forward(to_dense, matvec, precision, keep, params, kernel, x)[0]


def _forward(to_dense, matvec, precision, keep, params, kernel, x):
    merged = _merged(to_dense, params, kernel, x.dtype)
    return half_product(x, merged, precision), (params, kernel, x, merged if keep else None)


def _backward(to_dense, matvec, precision, keep, saved, dy):
    params, kernel, x, merged = saved
    if not keep:
        # XLA's CPU compiler undoes `jax.checkpoint`, and so keeps the merged kernels of all layers. With `not_before`
        # it sees other parameters, which are not available before dy.
        merged = _merged(to_dense, params, kernel, x.dtype, after=dy)
    (d_params,) = jax.vjp(lambda params: matvec(params, x), params)[1](dy)
    d_x = half_product(dy, merged.T, precision)
    if isinstance(kernel, Packed):
        return d_params, None, d_x
    plain = lambda kernel: dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), precision=precision)  # noqa: E731
    (d_kernel,) = jax.vjp(plain, kernel)[1](dy)
    return d_params, d_kernel, d_x


_product_in_reverse.defvjp(_forward, _backward)
