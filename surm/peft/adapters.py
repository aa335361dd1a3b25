"""What is put around a linear layer: an update of its kernel, an adapter behind it, or a scale of its output."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from surm import matrices
from surm.activations import BRANCH_ACTIVATIONS
from surm.errors import InputError
from surm.matmul import dot_general, matmul
from surm.peft import fused, paths
from surm.peft.matrix import StructuredMatrix, multiplying
from surm.peft.spec import METHODS, PeftSpec
from surm.peft.variables import AdapterParam, BaseArray

_ADAPTER_DEVIATION = 0.02
"""The authors draw an adapter's random factor so, whatever the family's update starts from."""


class WrappedLinear(nnx.Module):
    """A frozen linear layer with a trained branch beside it; still looks like the layer itself."""

    def __init__(self, base: nnx.Linear, delta: nnx.Module, spec: PeftSpec, *, rngs: nnx.Rngs):
        """Keeps the layer, the branch (mostly a `StructuredMatrix`) and the dropout of the branch's input."""
        self.base = base
        self.delta = delta
        self.dropout = nnx.Dropout(spec.dropout, rngs=rngs) if spec.dropout else None
        self.enabled = True
        self.follow(spec)

    def follow(self, spec: PeftSpec) -> None:
        """Multiplies as a spec says, which is otherwise that of the layer; see `surm.peft.paths`."""
        self.path = spec.path

    @property
    def kernel(self) -> nnx.Variable:
        """The kernel of the wrapped layer; merged, if the layer is."""
        return self.base.kernel

    @property
    def bias(self) -> nnx.Variable | None:
        """The bias of the wrapped layer."""
        return self.base.bias

    def dropped(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_in"]:
        """The input of the branch, with entries dropped in training."""
        return x if self.dropout is None else self.dropout(x)


class MergeableLinear(WrappedLinear):
    """A wrapped layer that is linear itself: what is trained folds into kernel and bias.

    When merged, `base` holds the folded arrays and `base_arrays` the frozen ones, bit for bit.
    """

    def __init__(self, base: nnx.Linear, delta: nnx.Module, spec: PeftSpec, *, rngs: nnx.Rngs):
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
        """Folds what is trained into the layer; nothing happens if it is already."""
        if self.merged:
            return
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


class UpdatedLinear(MergeableLinear):
    """A frozen linear layer with a trained update: y = base(x) + scale·ΔW·dropout(x).

    Several paths lead there, see `surm.peft.paths`. With a `magnitude` m the rows of the weight then keep their
    direction and get the norm m, which starts as the weight's (where a run keeps that in half precision, up to its
    rounding): y = m/‖W + scale·ΔW‖ ⊙ (W + scale·ΔW) x + bias, where the norms, of rows, count as
    constants in the derivative (arXiv 2402.09353, section 4.3).
    """

    def __init__(self, base: nnx.Linear, spec: PeftSpec, *, rngs: nnx.Rngs):
        """Wraps a layer; the output is unchanged until the update has trained."""
        n_in, n_out = base.kernel.shape
        delta = StructuredMatrix(spec, n_out, n_in, base=base.kernel[...].T, rngs=rngs)
        super().__init__(base, delta, spec, rngs=rngs)
        self.magnitude = AdapterParam(_row_norms(base.kernel[...])) if spec.magnitude else None

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """Applies the layer with its update."""
        if self.merged or not self.enabled:
            return self.base(x)
        y = self._updated(x)
        if self.magnitude is None:
            return y
        bias = 0 if self.bias is None else self.bias[...].astype(y.dtype)
        return y + ((self._gain() - 1) * (y - bias)).astype(y.dtype)  # where the gain is 1, y to the last bit

    def _updated(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        path = self._path(x)
        if path in paths.FUSED:
            through_dense = path == "fused_dense"
            matvec = functools.partial(self._matvec, through_dense=through_dense)
            return fused.product(self.base, self.delta.values(), self._dense, matvec, x, keep=through_dense)
        y = self.base(x)
        update = self.delta(self.dropped(x).astype(y.dtype), path, self.base.precision)
        return y + (self.scale * update).astype(y.dtype)

    def follow(self, spec: PeftSpec) -> None:
        """Multiplies and scales as a spec says, otherwise that of the layer; InputError if the layer cannot."""
        self._check_fusible(spec.path)
        super().follow(spec)
        self.scale = spec.scale

    def _check_fusible(self, path: str) -> None:
        if path in paths.FUSED and (obstacle := fused.obstacle(self.base)):
            beside = [other for other in paths.available("update", self.delta.family) if other not in paths.FUSED]
            raise InputError(f"path={path!r}, but the layer {obstacle}; expected {', '.join(beside)} or auto")

    def _path(self, x: Array) -> str:
        self._check_fusible(self.path)  # anew: `jax.default_matmul_precision` may have been another then
        if self.path != "auto":
            return self.path
        fusible = self.dropout is None and not fused.obstacle(self.base)
        return self.delta.quickest_path(x, self.base.dtype or self.base.kernel.dtype, fusible=fusible)

    def _dense(self, params: matrices.Params) -> Float[Array, "n_out n_in"]:
        return self.scale * self.delta.dense(params)

    def _matvec(
        self, params: matrices.Params, x: Float[Array, "*batch n_in"], *, through_dense: bool
    ) -> Float[Array, "*batch n_out"]:
        with multiplying(self.base.precision):
            if not through_dense:
                return self.scale * self.delta.matvec(params, x)
            plain = self.base.dot_general is not dot_general or self.base.precision is not None
            multiply = jnp.matmul if plain else matmul
            return self.scale * self.delta.dense_matvec(params, x, multiply)

    def _sum(self, update: Float[Array, "n_out n_in"]) -> Float[Array, "n_in n_out"]:
        kernel = self.base.kernel[...]
        return (kernel + update.T).astype(kernel.dtype)

    def _gain(self) -> Float[Array, " n_out"]:
        """What the magnitude multiplies the outputs by."""
        kernel = self.base.kernel[...]
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        norms = _row_norms(kernel.astype(wide) + self._dense(self.delta.values()).T)
        return self.magnitude[...] / jax.lax.stop_gradient(norms)

    def folded(self) -> Iterable[tuple[str, Array]]:
        """The kernel with the update in it, by the definition of the family."""
        kernel = self._sum(self.scale * self.delta.to_dense())
        yield "kernel", kernel if self.magnitude is None else kernel * (self.magnitude[...] / _row_norms(kernel))


def _row_norms(kernel: Float[Array, "n_in n_out"]) -> Float[Array, " n_out"]:
    """The norm of every row of a weight, which is a column of the kernel; float32 at least."""
    return jnp.linalg.norm(kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32)), axis=0)


class AdaptedLinear(WrappedLinear):
    """A frozen linear layer followed by a SURM adapter: h = base(x), y = h + act(S·dropout(h)) + bias.

    S is one square structured matrix; there is no projection down or up. It is not linear, so it does not merge. (The
    authors' Kronecker adapter multiplies by kron(B, A) from the other side: their B and A are our factors transposed.)

    Source: arXiv 2406.17740, section 4.
    """

    def __init__(self, base: nnx.Linear, spec: PeftSpec, *, rngs: nnx.Rngs):
        """Wraps a layer; the output is unchanged until the adapter has trained (act(0) = 0)."""
        width = base.kernel.shape[1]
        super().__init__(base, StructuredMatrix(spec, width, width, rngs=rngs), spec, rngs=rngs)
        if "a" in self.delta.parameters:
            a = self.delta.parameters["a"]
            drawn = _ADAPTER_DEVIATION * jax.random.normal(rngs.params(), a.shape, a.dtype)
            self.delta.parameters["a"] = a.replace(drawn)
        self.shift = AdapterParam(jnp.zeros(width))
        self.activation = spec.activation

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """Applies the layer and its adapter."""
        h = self.base(x)
        if not self.enabled:
            return h
        path = self.delta.quickest_path(h, h.dtype, fusible=False) if self.path == "auto" else self.path
        product = self.delta(self.dropped(h), path, self.base.precision)
        change = BRANCH_ACTIVATIONS[self.activation](product) + self.shift[...]
        return h + change.astype(h.dtype)


class Hadamard(nnx.Module):
    """A trained scale and shift of every entry: h ↦ scale ⊙ h + shift, 2·n parameters."""

    family = "hadamard"

    def __init__(self, width: int):
        """Starts as the identity."""
        self.scale, self.shift = AdapterParam(jnp.ones(width)), AdapterParam(jnp.zeros(width))

    def __call__(self, h: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the map, in h's type."""
        return self.scale[...].astype(h.dtype) * h + self.shift[...].astype(h.dtype)


class HadamardLinear(MergeableLinear):
    """A frozen linear layer with a trained scale and shift of its output: y = scale ⊙ base(x) + shift.

    Source: Hadamard adapter, arXiv 2407.11033.
    """

    def __init__(self, base: nnx.Linear, spec: PeftSpec, *, rngs: nnx.Rngs):
        """Wraps a layer; the output is unchanged until scale and shift have trained."""
        super().__init__(base, Hadamard(base.kernel.shape[1]), spec, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """Applies the layer with its scale and shift."""
        h = self.base(x)
        return h if self.merged or not self.enabled else self.delta(h)

    def folded(self) -> Iterable[tuple[str, Array]]:
        """The kernel with the scale in it, the bias with scale and shift; InputError for a layer that has no bias."""
        if self.bias is None:
            raise InputError("the layer has no bias, which the shift could be folded into")
        yield "kernel", self.kernel[...] * self.delta.scale[...]
        yield "bias", self.delta(self.bias[...])


class Affine(nnx.Module):
    """A small trained map x ↦ x·kernel + bias."""

    def __init__(self, kernel: Float[Array, "n_in n_out"]):
        """Starts from a kernel, and a bias of 0."""
        self.kernel = AdapterParam(kernel)
        self.bias = AdapterParam(jnp.zeros(kernel.shape[1]))

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """Applies the map, in x's type."""
        return matmul(x, self.kernel[...].astype(x.dtype)) + self.bias[...].astype(x.dtype)


class Bottleneck(nnx.Module):
    """The branch of an ordinary adapter: up(act(down(h))), 2·n·size + size + n parameters."""

    family = "bottleneck"

    def __init__(self, spec: PeftSpec, width: int, *, rngs: nnx.Rngs):
        """Draws `down`; `up` starts at 0, so that nothing is added yet."""
        size = spec.options.get("size", METHODS["bottleneck"].options["size"])
        if size < 1:
            raise InputError(f"bottleneck: size={size}, expected at least 1")
        self.down = Affine(_ADAPTER_DEVIATION * jax.random.normal(rngs.params(), (width, size)))
        self.up = Affine(jnp.zeros((size, width)))
        self.activation = spec.activation

    def __call__(self, h: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """What is added to h."""
        return self.up(BRANCH_ACTIVATIONS[self.activation](self.down(h)))


class BottleneckLinear(WrappedLinear):
    """A frozen linear layer followed by an ordinary adapter: h = base(x), y = h + up(act(down(dropout(h)))).

    Source: Houlsby et al., arXiv 1902.00751, figure 2.
    """

    def __init__(self, base: nnx.Linear, spec: PeftSpec, *, rngs: nnx.Rngs):
        """Wraps a layer; the output is unchanged until the adapter has trained."""
        super().__init__(base, Bottleneck(spec, base.kernel.shape[1], rngs=rngs), spec, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """Applies the layer and its adapter."""
        h = self.base(x)
        return h + self.delta(self.dropped(h)) if self.enabled else h


def reseed_dropout(model: nnx.Module, key: jax.Array) -> None:
    """Gives every dropout layer of a model its own stream, derived from one key; in place.

    A training step that calls it is a pure function of its arguments, so a resumed run draws the same masks.
    """
    streams = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.RngStream)]
    for index, (_, stream) in enumerate(sorted(streams, key=lambda item: str(item[0]))):
        stream.key[...] = jax.random.fold_in(key, index)
        stream.count[...] = jnp.zeros_like(stream.count[...])
