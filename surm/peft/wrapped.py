"""What stands around a frozen layer that is a linear map: a trained branch, and what there is to all of them."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from surm.errors import InputError
from surm.peft import linear_maps
from surm.peft.linear_maps import LinearMap
from surm.peft.spec import PeftSpec
from surm.peft.variables import BaseArray


class WrappedLinear(nnx.Module):
    """A frozen linear layer with a trained branch beside it; still looks like the layer itself.

    The layer is one of those in `surm.peft.linear_maps`. What trains of a stack of layers has the same axes in front as
    the stack's kernel, so `nnx.scan` and `nnx.vmap` split both alike.
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
        """Multiplies as a spec says, which is otherwise that of the layer; see `surm.peft.multiply.paths`."""
        self.path = spec.path

    @property
    def kernel(self) -> nnx.Variable:
        """The kernel of the wrapped layer; merged, if the layer is."""
        return self.base.kernel

    @property
    def bias(self) -> nnx.Variable | None:
        """The bias of the wrapped layer."""
        return self.base.bias

    @property
    def in_features(self) -> Any:
        """How many inputs the wrapped layer has, as it says it itself."""
        return self.base.in_features

    @property
    def out_features(self) -> Any:
        """How many outputs the wrapped layer has, as it says it itself."""
        return self.base.out_features

    @property
    def map(self) -> LinearMap:
        """How the wrapped layer is a linear map."""
        return linear_maps.linear_map(self.base)

    def answer(self, x: Float[Array, "..."], options: dict[str, Any]) -> Float[Array, "..."]:
        """What the wrapped layer answers, to options of its call too; InputError for an einsum of another string."""
        given, own = options.get("einsum_str"), getattr(self.base, "einsum_str", None)
        if given is not None and given.replace(" ", "") != own:
            raise InputError(f"einsum_str={given!r}, but the layer that has an adapter is of {own!r}; expected that")
        return self.base(x, **options)

    def dropped(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The input of the branch, with entries dropped in training."""
        return x if self.dropout is None else self.dropout(x)


def like_answer(change: Float[Array, "..."], options: dict[str, Any]) -> Float[Array, "..."]:
    """What a branch adds to a layer's answer, spread over devices as a call's options want that."""
    sharding = options.get("out_sharding")
    return change if sharding is None else jax.sharding.reshard(change, sharding)


class MergeableLinear(WrappedLinear):
    """A wrapped layer that is linear itself: what is trained folds into kernel and bias.

    When merged, `base` holds the folded arrays and `base_arrays` the frozen ones, bit for bit.
    """

    def __init__(self, base: nnx.Module, delta: nnx.Module, spec: PeftSpec, *, rngs: nnx.Rngs):
        """As `WrappedLinear`; not merged."""
        super().__init__(base, delta, spec, rngs=rngs)
        self.base_arrays = nnx.data(None)

    @property
    def merged(self) -> bool:
        """Whether what is trained is folded in."""
        return self.base_arrays is not None

    def folded(self) -> Iterable[tuple[str, Array]]:
        """The arrays of the layer that change when it is merged, by name, as they are then."""
        raise NotImplementedError

    def merge(self) -> None:
        """Folds what is trained into the layer; nothing happens if it is already; InputError if it does not fold."""
        if self.merged:
            return
        if linear_maps.more_than_multiplies(self.base):
            raise InputError(f"the layer is {linear_maps.named(self.base)}, which answers in a way of its own; what is "
                             "trained does not fold into its kernel")  # fmt: skip
        folded = dict(self.folded())
        self.base_arrays = nnx.Dict({name: BaseArray(getattr(self.base, name)[...]) for name in folded})
        for name, array in folded.items():
            variable = getattr(self.base, name)
            setattr(self.base, name, variable.replace(array.astype(variable.dtype)))

    def unmerge(self) -> None:
        """Puts the frozen arrays back; nothing happens if the layer is not merged."""
        if self.merged:
            for name, kept in self.base_arrays.items():
                setattr(self.base, name, getattr(self.base, name).replace(kept[...]))
            self.base_arrays = nnx.data(None)


def _split_off(dropout: nnx.Dropout, base: nnx.Module) -> None:
    """Gives each layer of a stack random numbers of its own, in place."""
    stack = base.kernel.shape[: linear_maps.linear_map(base).split_off]
    if stack:
        stream = dropout.rngs
        stream.key = stream.key.replace(jax.random.split(stream.key[...], stack))
        stream.count = stream.count.replace(jnp.zeros(stack, stream.count.dtype))
