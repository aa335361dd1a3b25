"""What is put into a model: the trainable types, the structured matrix as a module, and its two positions."""

import contextlib
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import DotAlgorithm, DotAlgorithmPreset, Precision, PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from surm import matrices
from surm.activations import BRANCH_ACTIVATIONS
from surm.errors import InputError
from surm.matmul import dot_general, matmul
from surm.matrices import dft
from surm.peft import fused, paths
from surm.peft.spec import BOTTLENECK, PeftSpec


class Trainable(nnx.Param):
    """A parameter that trains; everything else in a model with an adapter is frozen."""


class AdapterParam(Trainable):
    """A trained parameter that belongs to the method itself, rather than to the task's head."""


class BaseKernel(nnx.Variable):
    """The frozen kernel of a merged layer, kept so that unmerging restores its bits."""


_ADAPTER_DEVIATION = 0.02
"""The authors draw an adapter's random factor so, whatever the family's update starts from."""


def _multiplying(precision: PrecisionLike) -> contextlib.AbstractContextManager[None]:
    """Where matmuls have a layer's precision: of a pair the higher; for none and a `DotAlgorithm` the device's own."""
    if isinstance(precision, str) and precision in DotAlgorithmPreset.__members__:
        precision = DotAlgorithmPreset[precision]
    if precision in (None, DotAlgorithmPreset.DEFAULT) or isinstance(precision, DotAlgorithm):
        return contextlib.nullcontext()
    if isinstance(precision, DotAlgorithmPreset):
        return jax.default_matmul_precision(precision.name)
    each = precision if isinstance(precision, tuple | list) else (precision,)
    highest = max((Precision(one) for one in each), key=lambda one: one.value)
    return jax.default_matmul_precision(highest.name.lower())


def _rows_of_a_device(x: Float[Array, "*batch n"]) -> int:
    """The vectors of a batch that one device has: as many as there are, unless x's type tells how they are spread."""
    sharding = jax.typeof(x).sharding
    axes = [axis for part in sharding.spec[:-1] if part for axis in ((part,) if isinstance(part, str) else part)]
    return max(math.prod(x.shape[:-1]) // math.prod(sharding.mesh.shape[axis] for axis in axes), 1)


class StructuredMatrix(nnx.Module):
    """A trained matrix of one family; the family's parameters are its variables."""

    def __init__(self, spec: PeftSpec, n_out: int, n_in: int, *, rngs: nnx.Rngs):
        """Draws the initial parameters: the matrix is zero, its gradient is not."""
        family = matrices.FAMILIES[spec.family]
        try:
            values = family.init(rngs.params(), n_out, n_in, **spec.options)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{spec.family}: {error}") from error
        self.parameters = nnx.Dict({name: AdapterParam(value) for name, value in values.items()})
        self.family, self.n_out, self.n_in = spec.family, n_out, n_in

    def values(self) -> dict[str, Array]:
        """The family's parameters as plain arrays."""
        return {name: variable[...] for name, variable in self.parameters.items()}

    def __call__(
        self, x: Float[Array, "*batch n_in"], path: str = "branch", precision: PrecisionLike = None
    ) -> Float[Array, "*batch n_out"]:
        """The matrix times every row of x.

        Args:
          x: vectors.
          path: one of the paths beside the layer.
          precision: of matmuls, as the layer's.

        Returns:
          The products, in x's type.

        Raises:
          ValueError: if the path is no such one.
        """
        with _multiplying(precision):
            if path == "branch":
                return self.matvec(self.values(), x)
            if path == "branch_dft" and self.family in paths.CONVOLUTIONAL:
                return matrices.FAMILIES[self.family].matvec(self.values(), x, self.n_out, convolve=dft.convolve)
            if path == "branch_dense":
                return self.dense_matvec(self.values(), x, jnp.matmul)
        raise ValueError(f"given path={path!r}; expected {', '.join(paths.available('adapter', self.family))}")

    def quickest_path(self, x: Float[Array, "*batch n_in"], dtype: DTypeLike, *, fusible: bool) -> str:
        """The path that `auto` takes for a batch; see `surm.peft.paths`."""
        shapes = {name: variable[...].shape for name, variable in self.parameters.items()}
        rows, dtype, platform = _rows_of_a_device(x), jnp.dtype(dtype).name, jax.default_backend()
        return paths.quickest(self.family, self.n_out, self.n_in, rows, shapes, dtype, platform, fusible=fusible)

    def to_dense(self) -> Float[Array, "n_out n_in"]:
        """The matrix in full, by its definition."""
        return matrices.FAMILIES[self.family].to_dense(self.values(), self.n_out, self.n_in)

    def matvec(self, params: matrices.Params, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """The matrix that other parameters make, times every row of x."""
        return matrices.FAMILIES[self.family].matvec(params, x, self.n_out)

    def dense_matvec(
        self, params: matrices.Params, x: Float[Array, "*batch n_in"], multiply: Callable[[Array, Array], Array]
    ) -> Float[Array, "*batch n_out"]:
        """The same through the dense matrix, by a product of vectors with a kernel as `jnp.matmul` or surm's."""
        family = matrices.FAMILIES[self.family]
        if hasattr(family, "dense_matvec"):
            return family.dense_matvec(params, x, self.n_out, matmul=multiply)
        return multiply(x, self.dense(params).T.astype(x.dtype))

    def dense(self, params: matrices.Params) -> Float[Array, "n_out n_in"]:
        """The matrix that other parameters make, in full, the quickest way: up to rounding."""
        family = matrices.FAMILIES[self.family]
        return getattr(family, "quick_dense", family.to_dense)(params, self.n_out, self.n_in)


class WrappedLinear(nnx.Module):
    """A frozen linear layer with a trained branch beside it; still looks like the layer itself."""

    def __init__(self, base: nnx.Linear, delta: "StructuredMatrix | Bottleneck", spec: PeftSpec, *, rngs: nnx.Rngs):
        """Keeps the layer, the branch (mostly a structured matrix) and the dropout of the branch's input."""
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


class UpdatedLinear(WrappedLinear):
    """A frozen linear layer with a trained update: y = base(x) + scale·ΔW·dropout(x).

    Several paths lead there, see `surm.peft.paths`.

    When merged, `base.kernel` holds kernel + scale·ΔWᵀ and `base_kernel` the frozen kernel, bit for bit.
    """

    def __init__(self, base: nnx.Linear, spec: PeftSpec, *, rngs: nnx.Rngs):
        """Wraps a layer; the output is unchanged until the update has trained."""
        n_in, n_out = base.kernel.shape
        super().__init__(base, StructuredMatrix(spec, n_out, n_in, rngs=rngs), spec, rngs=rngs)
        self.base_kernel = nnx.data(None)

    @property
    def merged(self) -> bool:
        """Whether the update is folded into the kernel."""
        return self.base_kernel is not None

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """Applies the layer with its update."""
        if self.merged or not self.enabled:
            return self.base(x)
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
        with _multiplying(self.base.precision):
            if not through_dense:
                return self.scale * self.delta.matvec(params, x)
            plain = self.base.dot_general is not dot_general or self.base.precision is not None
            multiply = jnp.matmul if plain else matmul
            return self.scale * self.delta.dense_matvec(params, x, multiply)

    def _merged_kernel(self, update: Float[Array, "n_out n_in"]) -> Float[Array, "n_in n_out"]:
        kernel = self.base.kernel[...]
        return (kernel + update.T).astype(kernel.dtype)

    def merge(self) -> None:
        """Folds the update into the kernel; nothing happens if it is already."""
        if self.merged:
            return
        kernel = self.base.kernel
        self.base_kernel = BaseKernel(kernel[...])
        self.base.kernel = kernel.replace(self._merged_kernel(self.scale * self.delta.to_dense()))

    def unmerge(self) -> None:
        """Puts the frozen kernel back; nothing happens if the layer is not merged."""
        if self.merged:
            self.base.kernel = self.base.kernel.replace(self.base_kernel[...])
            self.base_kernel = None


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
        size = spec.options.get("size", BOTTLENECK["size"])
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
