"""The common part of all wrappers around a frozen linear layer: the layer, a trained branch, and dropout."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from surm.errors import InputError
from surm.ops.rounding import rounded
from surm.peft import linear_maps
from surm.peft.linear_maps import LinearMap
from surm.peft.spec import PeftSpec
from surm.peft.variables import BaseArray


class WrappedLinear(nnx.Module):
    """A frozen linear layer with a trained branch beside it, which still looks like the layer itself.

    The layer is one of those in `surm.peft.linear_maps`. For a stack of layers, the trained arrays have the same
    leading axes as the kernel, so `nnx.scan` and `nnx.vmap` split both in the same way.
    """

    def __init__(self, base: nnx.Module, delta: nnx.Module, spec: PeftSpec, *, rngs: nnx.Rngs):
        """Keeps the layer, the branch (mostly a `StructuredMatrix`) and the dropout of the branch's input."""
        self.base = base
        self.delta = delta
        self.dropout = nnx.Dropout(spec.dropout, rngs=rngs) if spec.dropout else None
        if self.dropout is not None:
            _split_off(self.dropout, base)
        self.enabled = True
        self.follow(spec)

    def follow(self, spec: PeftSpec) -> None:
        """Takes over the path of multiplication from another spec."""
        self.path = spec.path

    @property
    def kernel(self) -> nnx.Variable:
        """The kernel of the wrapped layer, merged if the layer is merged."""
        return self.base.kernel

    @property
    def bias(self) -> nnx.Variable | None:
        """The bias of the wrapped layer."""
        return self.base.bias

    @property
    def in_features(self) -> Any:
        """The number of inputs, as the wrapped layer itself gives it."""
        return self.base.in_features

    @property
    def out_features(self) -> Any:
        """The number of outputs, as the wrapped layer itself gives it."""
        return self.base.out_features

    @property
    def map(self) -> LinearMap:
        """The wrapped layer as a linear map."""
        return linear_maps.linear_map(self.base)

    def answer(self, x: Float[Array, "..."], options: dict[str, Any]) -> Float[Array, "..."]:
        """The output of the wrapped layer, with options of its call; InputError for an einsum of another string."""
        given, own = options.get("einsum_str"), getattr(self.base, "einsum_str", None)
        if given is not None and given.replace(" ", "") != own:
            raise InputError(f"einsum_str={given!r}, but the adapted layer is of {own!r}; expected that")
        return self.base(x, **options)

    def dropped(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The input of the branch, with entries dropped in training."""
        return x if self.dropout is None else self.dropout(x)


def like_answer(change: Float[Array, "..."], options: dict[str, Any]) -> Float[Array, "..."]:
    """A branch's output, spread over devices as the options of the layer's call demand."""
    sharding = options.get("out_sharding")
    return change if sharding is None else jax.sharding.reshard(change, sharding)


class MergeableLinear(WrappedLinear):
    """A wrapped layer that is linear itself, so its trained part can be folded into kernel and bias.

    When merged, `base` holds the folded arrays and `base_arrays` the frozen ones, bit for bit. A kernel that was packed
    (`surm.ops.packed`) is unpacked while it is merged.
    """

    def __init__(self, base: nnx.Module, delta: nnx.Module, spec: PeftSpec, *, rngs: nnx.Rngs):
        """Wraps as `WrappedLinear` does; the layer is not merged."""
        super().__init__(base, delta, spec, rngs=rngs)
        self.base_arrays = nnx.data(None)

    @property
    def merged(self) -> bool:
        """Whether the trained part is folded in."""
        return self.base_arrays is not None

    def folded(self) -> Iterable[tuple[str, Array]]:
        """The values, by name, that the layer's arrays get when it is merged, not yet rounded to their dtypes."""
        raise NotImplementedError

    def merge(self) -> None:
        """Folds the trained part into the layer unless this has happened already; InputError if it is impossible."""
        if self.merged:
            return
        if linear_maps.more_than_multiplies(self.base):
            raise InputError(f"the layer is {linear_maps.named(self.base)}, which has a __call__ of its own; the "
                             "trained part cannot be folded into its kernel")  # fmt: skip
        folded = dict(self.folded())
        self.base_arrays = nnx.Dict({name: BaseArray(getattr(self.base, name).get_value()) for name in folded})
        for name, array in folded.items():
            variable = getattr(self.base, name)
            setattr(self.base, name, variable.replace(rounded(array, variable.dtype)))

    def unmerge(self) -> None:
        """Puts the frozen arrays back; nothing happens if the layer is not merged."""
        if self.merged:
            for name, kept in self.base_arrays.items():
                setattr(self.base, name, getattr(self.base, name).replace(kept.get_value()))
            self.base_arrays = nnx.data(None)


def _split_off(dropout: nnx.Dropout, base: nnx.Module) -> None:
    """Gives each layer of a stack its own random numbers, in place."""
    stack = base.kernel.shape[: linear_maps.linear_map(base).split_off]
    if stack:
        stream = dropout.rngs
        stream.key = stream.key.replace(jax.random.split(stream.key[...], stack))
        stream.count = stream.count.replace(jnp.zeros(stack, stream.count.dtype))
