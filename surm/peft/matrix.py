"""A structured matrix as a module: a family's parameters as variables, and the ways to multiply by it."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict
from jax.lax import DotAlgorithm, DotAlgorithmPreset, Precision, PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm import matrices
from surm.errors import InputError
from surm.matrices.algebra import dft
from surm.matrices.algebra.platforms import kind_of, platform_of
from surm.ops.fusion import by_itself
from surm.ops.spread import by_rows, devices_of_rows
from surm.peft import kernels
from surm.peft.multiply import paths
from surm.peft.spec import PeftSpec
from surm.peft.variables import AdapterParam, FixedParam


def multiplying(precision: PrecisionLike) -> contextlib.AbstractContextManager[None]:
    """A context in which matmuls have a layer's precision.

    Of a pair of precisions, the higher one counts. None and a `DotAlgorithm` leave the precision as it is.
    """
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
    """The number of vectors per device, if x's type or `spread` tells how the batch is spread; else of all vectors."""
    sharding = jax.typeof(x).sharding
    axes = [axis for part in sharding.spec[:-1] if part for axis in ((part,) if isinstance(part, str) else part)]
    parts = math.prod(sharding.mesh.shape[axis] for axis in axes) * devices_of_rows()
    return max(math.prod(x.shape[:-1]) // parts, 1)


class StructuredMatrix(nnx.Module):
    """A trained matrix of one family; the family's parameters are its variables."""

    def __init__(
        self,
        spec: PeftSpec,
        n_out: int,
        n_in: int,
        *,
        stack: Sequence[int] = (),
        base: Callable[[], Float[Array, "*stack n_out n_in"]] | None = None,
        rngs: nnx.Rngs,
    ):
        """Draws the initial parameters: the matrix is zero, but its gradient is not.

        Args:
          spec: the spec, which names the family and its options.
          n_out: rows.
          n_in: columns.
          stack: the numbers of matrices along the leading axes that all parameters have in a stack; () for one matrix.
          base: returns the weight that is updated; it is called only for families that compute fixed arrays from it.
          rngs: source of the initial values.

        Raises:
          InputError: if an option does not fit the shape, or if there is a stack and the family's layers share trained
            arrays.
        """
        self.family, self.n_out, self.n_in, self.stack = spec.family, n_out, n_in, tuple(stack)
        family, fixed = matrices.FAMILIES[spec.family], {}
        try:
            values = self.initial(spec, rngs.params())
            if family.fixed:
                fixed = kernels.each(_compiled(family.fixed, spec.structure), len(stack))(base())
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{spec.family}: {error}") from error
        if stack and (shared := [name for name in family.shared if name in values]):
            raise InputError(f"{spec.family} shares {', '.join(shared)} among layers, but layers stacked in one array "
                             "cannot share; expected another family there")  # fmt: skip
        self.parameters = nnx.Dict({name: AdapterParam(value) for name, value in values.items()})
        self.fixed = nnx.Dict({name: FixedParam(value) for name, value in fixed.items()})
        self.target_rank = spec.structure.get("rank", matrices.options(spec.family).get("rank"))
        self.training = spec.training
        self.own_axes = tuple((name, array.ndim - len(stack)) for name, array in (values | fixed).items() if stack)

    def initial(self, spec: PeftSpec, key: PRNGKeyArray) -> matrices.Params:
        """Initial parameters, for which the matrix is zero; each matrix of a stack has others."""
        family = matrices.FAMILIES[self.family]
        init = functools.partial(family.init, n_out=self.n_out, n_in=self.n_in, **spec.structure)
        return kernels.each(init, len(self.stack))(jax.random.split(key, self.stack) if self.stack else key)

    def stacked(self, params: matrices.Params | None = None) -> int:
        """The number of leading stacked axes of the arrays, which is smaller inside `nnx.scan` and `nnx.vmap`.

        Raises:
          InputError: if the arrays have different numbers of such axes.
        """
        params = self.values() if params is None else params
        counts = {name: jnp.ndim(params[name]) - axes for name, axes in self.own_axes}
        if len({*counts.values()}) > 1:
            raise InputError(f"{self.family}: the arrays {', '.join(counts)} have {[*counts.values()]} axes in front; "
                             "expected all to be split alike, as by nnx.StateAxes({...: 0})")  # fmt: skip
        return next(iter(counts.values()), 0)

    def values(self) -> dict[str, Array]:
        """The family's parameters and fixed arrays, as plain arrays by name."""
        return {name: variable[...] for name, variable in (*self.parameters.items(), *self.fixed.items())}

    def __call__(
        self, x: Float[Array, "*batch n_in"], path: str = "branch", precision: PrecisionLike = None
    ) -> Float[Array, "*batch n_out"]:
        """The matrix times every row of x.

        Args:
          x: vectors.
          path: `branch`, `branch_dft` or `branch_dense`; see `surm.peft.multiply.paths`.
          precision: the precision of matmuls, as in the layer.

        Returns:
          The products, in x's dtype.

        Raises:
          ValueError: if the family does not have the path.
        """
        with multiplying(precision):
            if path == "branch" or (path == "branch_dft" and matrices.FAMILIES[self.family].convolutional):
                return self.matvec(self.values(), x, path)
            if path == "branch_dense":
                return self.dense_matvec(self.values(), x, by_itself(jnp.matmul), again=True)
        raise ValueError(f"given path={path!r}; expected {', '.join(paths.available('adapter', self.family))}")

    def quickest_path(self, x: Float[Array, "*batch n_in"], dtype: DTypeLike, *, fusible: bool) -> str:
        """The path that `auto` takes for a batch; see `surm.peft.multiply.paths`."""
        shapes = {name: variable[...].shape for name, variable in self.parameters.items()}
        arrays = (x, *self.values().values())
        rows, dtype, platform = _rows_of_a_device(x), jnp.dtype(dtype).name, platform_of(*arrays)
        if stacked := self.stacked():
            shapes = {name: shape[stacked:] for name, shape in shapes.items()}
            rows = max(rows // math.prod(x.shape[:stacked]), 1)
        sizes = (self.family, self.n_out, self.n_in, rows, shapes)
        return paths.quickest(*sizes, dtype, platform, fusible=fusible, device=kind_of(*arrays))

    def to_dense(self) -> Float[Array, "*stack n_out n_in"]:
        """The dense matrix, computed by its definition."""
        return self._dense(matrices.FAMILIES[self.family].to_dense, self.values())

    def matvec(
        self, params: matrices.Params, x: Float[Array, "*b n_in"], path: str = "branch"
    ) -> Float[Array, "*b n_out"]:
        """The product with every row of x by `branch` or `branch_dft`, for the given parameters instead of its own."""
        if path == "branch_dft":  # whose gradient has intermediate results of many times the parameters' size
            return by_rows(functools.partial(self._matvec, convolve=dft.convolve))(params, x)
        if path != "branch":
            raise ValueError(f"given path={path!r}; expected branch or branch_dft")
        return self._matvec(params, x)

    def dense_matvec(
        self,
        params: matrices.Params,
        x: Float[Array, "*b n_in"],
        multiply: Callable[[Array, Array], Array],
        *,
        again: bool = False,
    ) -> Float[Array, "*b n_out"]:
        """The same as `matvec`, through the dense matrix.

        Args:
          params: the parameters.
          x: vectors.
          multiply: a product such as `jnp.matmul`.
          again: whether the backward pass computes again what the matrix is made of, on accelerators. Otherwise it is
            kept, such as two n×n factors in float32.

        Returns:
          The products, in x's dtype.
        """
        return by_rows(functools.partial(self._dense_matvec, multiply=multiply, again=again))(params, x)

    def _dense_matvec(
        self,
        params: matrices.Params,
        x: Float[Array, "*b n_in"],
        *,
        multiply: Callable[[Array, Array], Array],
        again: bool,
    ) -> Float[Array, "*b n_out"]:
        family = matrices.FAMILIES[self.family]
        if family.dense_matvec and platform_of(x) == "cpu":  # elsewhere it costs more in memory traffic than it saves
            product = functools.partial(family.dense_matvec, n_out=self.n_out, matmul=multiply)
            return kernels.each(product, self.stacked(params))(params, x)
        kernel = lambda params: self.dense(params, x.dtype).mT.astype(x.dtype)  # noqa: E731
        if again and platform_of(x) != "cpu":
            kernel = jax.checkpoint(kernel)
        return kernels.each(multiply, self.stacked(params))(x, kernel(params))

    def dense(self, params: matrices.Params, dtype: DTypeLike = jnp.float32) -> Float[Array, "*stack n_out n_in"]:
        """The dense matrix for the given parameters, up to rounding, computed in the fastest way.

        Args:
          params: the family's parameters and fixed arrays.
          dtype: the dtype to which the matrix will be rounded. If it has half precision, matmuls on devices other than
            a CPU use the device's default precision, which is enough, and on a TPU halves the time to compile.

        Returns:
          The matrix, in the parameters' dtype.
        """
        family = matrices.FAMILIES[self.family]
        if not family.quick_dense:
            return self._dense(family.to_dense, params)
        half = jnp.dtype(dtype).itemsize < 4 and platform_of(*params.values()) != "cpu"
        return self._dense(functools.partial(family.quick_dense, precision=None if half else "highest"), params)

    def _dense(self, to_dense: Callable[..., Array], params: matrices.Params) -> Float[Array, "*stack n_out n_in"]:
        of_one = functools.partial(to_dense, n_out=self.n_out, n_in=self.n_in)
        return kernels.each(of_one, self.stacked(params))(params)

    def _matvec(self, params: matrices.Params, x: Array, **options: Any) -> Float[Array, "*b n_out"]:
        of_one = functools.partial(matrices.FAMILIES[self.family].matvec, n_out=self.n_out, **options)
        return kernels.each(of_one, self.stacked(params))(params, x)


@functools.cache
def _compiled(fixed: Callable[..., matrices.Params], structure: FrozenDict) -> Callable[[Array], matrices.Params]:
    """The function that computes a family's fixed arrays, compiled once for all layers of a shape."""
    return jax.jit(functools.partial(fixed, **structure))
