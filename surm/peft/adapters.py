"""Trained parts that follow a frozen linear layer: an adapter, an ordinary bottleneck, or a scale and shift."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from surm.errors import InputError
from surm.ops.activations import BRANCH_ACTIVATIONS
from surm.ops.matmul import matmul
from surm.peft import kernels, linear_maps
from surm.peft.matrix import StructuredMatrix
from surm.peft.spec import METHODS, PeftSpec
from surm.peft.variables import AdapterParam
from surm.peft.wrapped import MergeableLinear, WrappedLinear, like_answer

_ADAPTER_DEVIATION = 0.02
"""The standard deviation of an adapter's random factor in the authors' code, for every family."""


def _widths(base: nnx.Module) -> tuple[tuple[int, ...], int]:
    """The number of layers, or matrices, along each stacked axis, and the number of outputs of each."""
    layout, shape = linear_maps.linear_map(base).layout, base.kernel.shape
    return layout.stack(shape), layout.sizes(shape)[0]


class AdaptedLinear(WrappedLinear):
    """A frozen linear layer followed by a SURM adapter: h = base(x), y = h + act(S·dropout(h)) + bias.

    S is one square structured matrix, without a projection down or up. The adapter is not linear, so it cannot be
    merged. (The authors' Kronecker adapter multiplies by kron(B, A) from the other side, so their B and A are our
    factors transposed.)

    Source: arXiv 2406.17740, section 4.
    """

    def __init__(self, base: nnx.Module, spec: PeftSpec, *, rngs: nnx.Rngs):
        """Wraps a layer; the output is unchanged until the adapter has trained (act(0) = 0)."""
        stack, width = _widths(base)
        super().__init__(base, StructuredMatrix(spec, width, width, stack=stack, rngs=rngs), spec, rngs=rngs)
        if "a" in self.delta.parameters:
            a = self.delta.parameters["a"]
            drawn = _ADAPTER_DEVIATION * jax.random.normal(rngs.params(), a.shape, a.dtype)
            self.delta.parameters["a"] = a.replace(drawn)
        self.shift = AdapterParam(jnp.zeros((*stack, width)))
        self.activation = spec.activation

    def __call__(self, x: Float[Array, "..."], **options: Any) -> Float[Array, "..."]:
        """Applies the layer and its adapter."""
        y = self.answer(x, options)
        if not self.enabled:
            return y
        h = self.map.answers(y)
        path = self.delta.quickest_path(h, h.dtype, fusible=False) if self.path == "auto" else self.path
        product = self.delta(self.map.answers(self.dropped(y)), path, self.base.precision)
        change = self.map.output(BRANCH_ACTIVATIONS[self.activation](product), y)
        change = change + self.map.beside(self.shift[...], y)
        return y + like_answer(change.astype(y.dtype), options)


class Hadamard(nnx.Module):
    """A trained scale and shift of every entry: h ↦ scale ⊙ h + shift, 2·n parameters."""

    family = "hadamard"

    def __init__(self, *shape: int):
        """Starts as the identity; n is the last axis of the shape, and the axes of a stack precede it."""
        self.scale, self.shift = AdapterParam(jnp.ones(shape)), AdapterParam(jnp.zeros(shape))

    def __call__(self, h: Float[Array, "..."], beside: Callable[[Array], Array] = lambda each: each) -> Array:
        """Applies the map, in h's dtype.

        Args:
          h: the vectors, along the last axis.
          beside: a function that reshapes scale and shift so that they broadcast to h.

        Returns:
          The mapped vectors.
        """
        return beside(self.scale[...]).astype(h.dtype) * h + beside(self.shift[...]).astype(h.dtype)


class HadamardLinear(MergeableLinear):
    """A frozen linear layer with a trained scale and shift of its output: y = scale ⊙ base(x) + shift.

    Source: Hadamard adapter, arXiv 2407.11033.
    """

    def __init__(self, base: nnx.Module, spec: PeftSpec, *, rngs: nnx.Rngs):
        """Wraps a layer; the output is unchanged until scale and shift have trained."""
        stack, width = _widths(base)
        super().__init__(base, Hadamard(*stack, width), spec, rngs=rngs)

    def __call__(self, x: Float[Array, "..."], **options: Any) -> Float[Array, "..."]:
        """Applies the layer with its scale and shift."""
        y = self.answer(x, options)
        return y if self.merged or not self.enabled else self.delta(y, lambda each: self.map.beside(each, y))

    def folded(self) -> Iterable[tuple[str, Array]]:
        """The scaled kernel, and the bias after scale and shift; InputError if the layer has no bias."""
        if self.bias is None:
            raise InputError("the layer has no bias into which the shift could be folded")
        layout, shape, bias = self.map.layout, self.kernel.shape, self.bias[...]
        scaled = layout.matrices(self.kernel[...]) * self.delta.scale[...][..., None]
        yield "kernel", layout.kernel(scaled, shape)
        yield "bias", self.delta(bias.reshape(self.delta.scale.shape)).reshape(bias.shape)


class Affine(nnx.Module):
    """A small trained map x ↦ x·kernel + bias, or a stack of them."""

    def __init__(self, kernel: Float[Array, "*stack n_in n_out"]):
        """Starts with the given kernel and a bias of 0."""
        self.kernel = AdapterParam(kernel)
        self.bias = AdapterParam(jnp.zeros((*kernel.shape[:-2], kernel.shape[-1])))

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """Applies the map, in x's dtype."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        return kernels.each(lambda x, kernel, bias: matmul(x, kernel) + bias, kernel.ndim - 2)(x, kernel, bias)


class Bottleneck(nnx.Module):
    """The branch of an ordinary adapter: up(act(down(h))), 2·n·size + size + n parameters."""

    family = "bottleneck"

    def __init__(self, spec: PeftSpec, width: int, *, stack: Sequence[int] = (), rngs: nnx.Rngs):
        """Draws `down`; `up` is 0, so that the branch adds nothing at first. Each layer of a stack has its own."""
        size = spec.options.get("size", METHODS["bottleneck"].options["size"])
        if size < 1:
            raise InputError(f"bottleneck: size={size}, expected at least 1")
        self.down = Affine(_ADAPTER_DEVIATION * jax.random.normal(rngs.params(), (*stack, width, size)))
        self.up = Affine(jnp.zeros((*stack, size, width)))
        self.activation = spec.activation

    def __call__(self, h: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """The branch's output, which is added to h."""
        return self.up(BRANCH_ACTIVATIONS[self.activation](self.down(h)))


class BottleneckLinear(WrappedLinear):
    """A frozen linear layer followed by an ordinary adapter: h = base(x), y = h + up(act(down(dropout(h)))).

    Source: Houlsby et al., arXiv 1902.00751, figure 2.
    """

    def __init__(self, base: nnx.Module, spec: PeftSpec, *, rngs: nnx.Rngs):
        """Wraps a layer; the output is unchanged until the adapter has trained."""
        stack, width = _widths(base)
        super().__init__(base, Bottleneck(spec, width, stack=stack, rngs=rngs), spec, rngs=rngs)

    def __call__(self, x: Float[Array, "..."], **options: Any) -> Float[Array, "..."]:
        """Applies the layer and its adapter."""
        y = self.answer(x, options)
        if not self.enabled:
            return y
        change = self.map.output(self.delta(self.map.answers(self.dropped(y))), y)
        return y + like_answer(change, options)
