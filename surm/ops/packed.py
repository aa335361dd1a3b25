"""Frozen kernels stored in fewer bits than they are computed in, and the layers that multiply by them.

    bfloat16    2 bytes a number
    int8        blocks of 32 numbers along the inputs, which share a scale: 1.06 bytes a number
    int4        the same, two numbers in a byte: 0.56 bytes a number

A kernel is unpacked where it is used, once in the forward pass and once more in the backward pass, so that between the
two nothing but the packed form is kept. qwix rounds and restores the numbers; the order of the halves of bytes is ours,
because JAX keeps an array of int4 on a CPU in a byte for each number.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from surm.ops.fusion import not_before
from surm.ops.manual_axes import vary_together
from surm.ops.matmul import half_product
from surm.ops.spread import whole

FORMS = ("bfloat16", "int8", "int4")
"""The forms that are smaller than float32."""

_BLOCK, _SHORTEST = 32, 8


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=["shape", "of", "axis"]
)
@dataclasses.dataclass(frozen=True)
class Packed:
    """A packed matrix, which reads like the array that it stands for: it has its shape and dtype, and `[...]` unpacks.

    Attributes:
      values: the stored numbers; for bfloat16 its bits, of type uint16, which XLA's CPU compiler does not widen before
        a loop; for int4 of type uint8, with the first half of `axis` in the lower four bits.
      scale: the factor of every block along `axis`, in float16; None for bfloat16.
      shape: the shape of the matrix.
      of: the dtype of the matrix before it was packed.
      axis: the axis of the blocks, counted from the end.
    """

    values: Any
    scale: Any
    shape: tuple[int, ...]
    of: str
    axis: int

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the matrix before it was packed."""
        return jnp.dtype(self.of)

    @property
    def form(self) -> str:
        """How the matrix is stored, one of `FORMS`."""
        return "bfloat16" if self.scale is None else "int4" if self.values.dtype == jnp.uint8 else "int8"

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __getitem__(self, index: Any) -> Array:
        """The matrix, unpacked, or a part of it."""
        return self.dense()[index]

    def dense(
        self, dtype: jax.typing.DTypeLike | None = None, after: Float[Array, "..."] | None = None
    ) -> Float[Array, "..."]:
        """Unpacks the matrix.

        Args:
          dtype: the dtype of the result; None for that before the matrix was packed.
          after: an array before which the matrix is not unpacked, see `not_before`; None for none.

        Returns:
          The matrix.
        """
        dtype = self.dtype if dtype is None else dtype
        late = (lambda values: values) if after is None else (lambda values: not_before(values, after))
        if self.scale is None:
            return late(jax.lax.bitcast_convert_type(self.values, jnp.bfloat16).astype(dtype))
        import qwix  # an extra

        values = self.values
        if values.dtype == jnp.uint8:
            values = _numbers(values, self.axis, self.shape[self.axis])
        return qwix.dequantize(qwix.QArray(values, late(self.scale.astype(dtype))))

    def rows(self, index: Int[Array, "*batch"]) -> "Packed":
        """Some rows of a matrix whose blocks lie within rows."""
        taken = jax.tree.map(lambda values: jnp.take(values, index, axis=0), self)
        return dataclasses.replace(taken, shape=(*index.shape, *self.shape[1:]))


def pack(array: Float[Array, "..."], form: str, axis: int) -> Packed:
    """Packs a matrix.

    Args:
      array: the matrix.
      form: one of `FORMS`.
      axis: the axis that is divided into blocks, counted from the end. Blocks have 32 numbers, or the next smaller
        divisor of the axis from 8 on; if there is none, the axis is one block.

    Returns:
      The packed matrix.
    """
    about = {"shape": tuple(array.shape), "of": jnp.dtype(array.dtype).name, "axis": axis}
    if form == "bfloat16":
        return Packed(jax.lax.bitcast_convert_type(array.astype(jnp.bfloat16), jnp.uint16), None, **about)
    values, scale = _rounded(array, form, axis)
    return Packed(_nibbles(values, axis) if form == "int4" else values, scale, **about)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _rounded(array: Array, form: str, axis: int) -> tuple[Array, Array]:
    import qwix

    length, axes = array.shape[axis], range(array.ndim)
    block = next((size for size in range(_BLOCK, _SHORTEST - 1, -1) if length % size == 0), length)
    tiled = axes[axis]
    others = [other for other in axes if other != tiled]
    wide = array.astype(jnp.float32)
    found = qwix.quantize(
        wide, jnp.dtype(form), channelwise_axes=others, tiled_axes={tiled: block}, scale_dtype=jnp.float16
    )
    return found.qvalue.astype(jnp.int8), found.scale


def unpacked(tree: Any, dtype: jax.typing.DTypeLike | None = None) -> Any:
    """A tree in which every packed matrix is an array of the given dtype; None for that before it was packed."""
    is_packed = lambda node: isinstance(node, Packed)  # noqa: E731
    return jax.tree.map(lambda node: node.dense(dtype) if is_packed(node) else node, tree, is_leaf=is_packed)


def _nibbles(values: Int[Array, "..."], axis: int) -> Array:
    """Two numbers of four bits in every byte: the lower half of the axis, and the upper one."""
    if values.shape[axis] % 2:
        values = jnp.pad(values, [(0, int(other == values.ndim + axis)) for other in range(values.ndim)])
    low, high = (jax.lax.bitcast_convert_type(half, jnp.uint8) for half in jnp.split(values, 2, axis))
    return (low & 15) | (high << 4)


def _numbers(nibbles: Array, axis: int, length: int) -> Int[Array, "..."]:
    signed = lambda byte: jax.lax.bitcast_convert_type(byte, jnp.int8) >> 4  # noqa: E731
    both = jnp.concatenate([signed(nibbles << 4), signed(nibbles)], axis)
    return jax.lax.slice_in_dim(both, 0, length, axis=axis % both.ndim) if both.shape[axis] != length else both


def product(
    x: Float[Array, "*batch n"], kernel: Packed, *, transposed: bool = False, precision: Any = None
) -> Float[Array, "*batch m"]:
    """The product of vectors with a packed matrix, which does not train.

    Args:
      x: vectors, along the last axis.
      kernel: the matrix, or its transpose.
      transposed: whether x is multiplied by the transpose.
      precision: the precision of the product.

    Returns:
      The products, in x's dtype. They can be differentiated in reverse mode only, and only by x.
    """
    leaves, structure = jax.tree.flatten(kernel)
    x, *leaves = vary_together(x, *leaves)
    return _product(transposed, precision, x, jax.tree.unflatten(structure, leaves))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(transposed, precision, x, kernel):
    dense = whole(kernel).dense(x.dtype)
    return half_product(x, dense.T if transposed else dense, precision)


def _forward(transposed, precision, x, kernel):
    return _product(transposed, precision, x, kernel), kernel


def _backward(transposed, precision, kernel, dy):
    # XLA would keep the unpacked kernel of the forward pass if it saw the same expression here.
    dense = whole(kernel, dy).dense(dy.dtype, after=dy)
    return half_product(dy, dense if transposed else dense.T, precision), None


_product.defvjp(_forward, _backward)


class PackedLinear(nnx.Module):
    """A linear layer whose kernel is packed; once an update is merged into it, the kernel is a plain array."""

    def __init__(self, layer: nnx.Linear, form: str):
        """Packs the kernel of a layer, which is left untouched."""
        self.kernel = layer.kernel.replace(pack(layer.kernel[...], form, -2))
        self.bias, self.use_bias = layer.bias, layer.use_bias
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dtype, self.precision, self.form = layer.dtype, layer.precision, form

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """Applies the layer."""
        y = _answer(self.kernel, x, self.dtype, precision=self.precision)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class PackedEmbed(nnx.Module):
    """A table of embeddings that is packed."""

    def __init__(self, table: nnx.Embed, form: str):
        """Packs a table, which is left untouched."""
        self.embedding = table.embedding.replace(pack(table.embedding[...], form, -1))
        self.num_embeddings, self.features = table.num_embeddings, table.features
        self.dtype, self.form = table.dtype, form

    def __call__(self, index: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
        """Looks rows up."""
        return self.embedding.get_value().rows(index).dense(self.dtype)

    def attend(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch rows"]:
        """The product of vectors with every row."""
        return _answer(self.embedding, x, self.dtype, transposed=True)


def _answer(variable, x, dtype, *, transposed=False, precision=None):
    """The product with a matrix that is packed or, after a merge, plain."""
    matrix = variable.get_value()
    x = x.astype(dtype or jnp.promote_types(x.dtype, matrix.dtype))
    if isinstance(matrix, Packed):
        return product(x, matrix, transposed=transposed, precision=precision)
    matrix = matrix.astype(x.dtype)
    return jnp.matmul(x, matrix.T if transposed else matrix, precision=precision)
