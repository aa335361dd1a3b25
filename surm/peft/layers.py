"""A frozen linear layer with a trained update of its kernel, and the table of all wrappers of layers."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from surm import matrices
from surm.errors import InputError
from surm.ops.matmul import dot_general, matmul
from surm.peft import linear_maps
from surm.peft.adapters import (
    AdaptedLinear,
    Affine,
    Bottleneck,
    BottleneckLinear,
    Hadamard,
    HadamardLinear,
)
from surm.peft.dropout import reseed_dropout
from surm.peft.matrix import StructuredMatrix, multiplying
from surm.peft.multiply import fused, paths
from surm.peft.spec import PeftSpec
from surm.peft.variables import AdapterParam
from surm.peft.wrapped import MergeableLinear, WrappedLinear, like_answer

__all__ = [
    "AdaptedLinear",
    "Affine",
    "Bottleneck",
    "BottleneckLinear",
    "Hadamard",
    "HadamardLinear",
    "MergeableLinear",
    "UpdatedLinear",
    "WrappedLinear",
    "reseed_dropout",
]


class UpdatedLinear(MergeableLinear):
    """A frozen linear layer with a trained update: y = base(x) + scale·ΔW·dropout(x).

    There are several ways to compute this, see `surm.peft.multiply.paths`. With a `magnitude` m, the rows of the weight
    keep their direction and get the norm m: y = m/‖W + scale·ΔW‖ ⊙ (W + scale·ΔW) x + bias. m starts as the norms of
    the weight's rows (up to rounding, if the run keeps the weight in half precision). The norms in the denominator
    count as constants in the derivative (arXiv 2402.09353, section 4.3).

    For a layer with several input or output axes, x and y are the vectors along them (`surm.peft.linear_maps`).
    """

    def __init__(self, base: nnx.Module, spec: PeftSpec, *, rngs: nnx.Rngs):
        """Wraps a layer; the output is unchanged until the update has trained."""
        self._check_magnitude(base, spec)
        of, shape = linear_maps.linear_map(base), base.kernel.shape
        sizes, stack = of.layout.sizes(shape), of.layout.stack(shape)
        weight = lambda: of.layout.matrices(base.kernel[...])  # noqa: E731
        super().__init__(base, StructuredMatrix(spec, *sizes, stack=stack, base=weight, rngs=rngs), spec, rngs=rngs)
        self.magnitude = AdapterParam(of.row_norms(base.kernel[...])) if spec.magnitude else None

    def __call__(self, x: Float[Array, "..."], **options: Any) -> Float[Array, "..."]:
        """Applies the layer with its update."""
        if self.merged or not self.enabled:
            return self.answer(x, options)
        y = self._updated(x, options)
        if self.magnitude is None:
            return y
        bias = 0 if self.bias is None else self.map.bias_beside(self.bias[...], y).astype(y.dtype)
        gain = self.map.beside(self._gain(), y)
        return y + ((gain - 1) * (y - bias)).astype(y.dtype)  # where the gain is 1, this is exactly y

    def _updated(self, x: Float[Array, "..."], options: dict[str, Any]) -> Float[Array, "..."]:
        path = self._path(x)
        if path in paths.FUSED:
            matvec = functools.partial(self._matvec, path=paths.FUSED[path])
            to_dense = functools.partial(self._dense, dtype=self.base.dtype or self.base.kernel.dtype)
            y = fused.product(self.base, self.delta.values(), to_dense, matvec, x, keep=path == "fused_dense")
            return like_answer(y, options)
        y = self.answer(x, options)
        update = self.delta(self.map.vectors(self.dropped(x)).astype(y.dtype), path, self.base.precision)
        return y + like_answer(self.map.output((self.scale * update).astype(y.dtype), y), options)

    def follow(self, spec: PeftSpec) -> None:
        """Takes over the path and the scale of another spec; InputError if the layer does not support the path."""
        self._check_fusible(spec.path)
        super().follow(spec)
        self.scale = spec.scale

    @staticmethod
    def _check_magnitude(base: nnx.Module, spec: PeftSpec) -> None:
        if spec.magnitude and linear_maps.more_than_multiplies(base):
            raise InputError(f"magnitude=True, but the layer is {linear_maps.named(base)}, which has a "
                             "__call__ of its own; expected one that only multiplies and adds a bias")  # fmt: skip

    def _check_fusible(self, path: str, *of_x: DTypeLike) -> None:
        if path in paths.FUSED and (obstacle := fused.obstacle(self.base, *of_x)):
            beside = [other for other in paths.available("update", self.delta.family) if other not in paths.FUSED]
            raise InputError(f"path={path!r}, but the layer {obstacle}; expected {', '.join(beside)} or auto")

    def _path(self, x: Array) -> str:
        self._check_fusible(self.path, x.dtype)  # again: `jax.default_matmul_precision` may have changed since
        if self.path != "auto":
            return self.path
        fusible = self.dropout is None and not fused.obstacle(self.base, x.dtype)
        dtype = self.base.dtype or self.base.kernel.dtype
        return self.delta.quickest_path(self.map.vectors(x), dtype, fusible=fusible)

    def _dense(self, params: matrices.Params, dtype: DTypeLike = jnp.float32) -> Float[Array, "*stack n_out n_in"]:
        return self.scale * self.delta.dense(params, dtype)

    def _matvec(
        self, params: matrices.Params, x: Float[Array, "*batch n_in"], *, path: str
    ) -> Float[Array, "*batch n_out"]:
        with multiplying(self.base.precision):
            if path != "branch_dense":
                return self.scale * self.delta.matvec(params, x, path)
            own = getattr(self.base, "dot_general", dot_general) is not dot_general
            plain = own or self.base.precision is not None
            multiply = jnp.matmul if plain else matmul
            return self.scale * self.delta.dense_matvec(params, x, multiply)

    def _gain(self) -> Float[Array, "*stack n_out"]:
        """The factor by which the magnitude multiplies the outputs."""
        kernel = self.base.kernel[...]
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        norms = self.map.row_norms(self._summed(kernel.astype(wide), self._dense(self.delta.values())))
        return self.magnitude[...] / jax.lax.stop_gradient(norms)

    def _summed(self, kernel: Float[Array, "..."], update: Float[Array, "*stack n_out n_in"]) -> Float[Array, "..."]:
        return kernel + self.map.layout.kernel(update, kernel.shape)

    def folded(self) -> Iterable[tuple[str, Array]]:
        """The kernel plus the dense update, computed by the family's `to_dense`."""
        kernel, of = jnp.asarray(self.base.kernel[...]), self.map  # while a run trains, it may be an array of NumPy
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        kernel = self._summed(kernel.astype(wide), self.scale * self.delta.to_dense())
        if self.magnitude is not None:
            gains = self.magnitude[...] / of.row_norms(kernel)
            kernel = of.layout.kernel(of.layout.matrices(kernel) * gains[..., None], kernel.shape)
        yield "kernel", kernel
