"""Warm starts: updates of any family that start close to a given dense ΔW.

    deltas = surm.difference(finetuned, base, targets=spec.targets)     a full fine-tune minus its base
    adapted, errors = surm.warm_start(surm.attach(base, spec, rngs), deltas)

or with one gradient step of the full weights, as far as the family can follow it:

    gradients = surm.kernel_gradients(adapted, lambda model: loss(model(x), labels))
    adapted, errors = surm.warm_start(adapted, {path: -rate * g for path, g in gradients.items()})

The error of a layer is ‖scale·ΔW - delta‖_F / ‖delta‖_F: 0 if the family contains delta, 1 if it captures nothing of
it.
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from surm import matrices
from surm.errors import InputError
from surm.matrices.algebra.params import working_dtype
from surm.peft import kernels, select, store, surgery
from surm.peft.layers import UpdatedLinear
from surm.peft.linear_maps import linear_map
from surm.peft.spec import PeftSpec
from surm.peft.together import bases

Model = TypeVar("Model", bound=nnx.Module)


def warm_start(model: Model, deltas: Mapping[str, ArrayLike]) -> tuple[Model, dict[str, float]]:
    """Returns the model with every update as close to a given matrix as its family allows.

    Each family's `project` finds the parameters, so that scale·ΔW is nearest, or close, in Frobenius norm. If delta is
    0, the update gets initial values, from which it can train. A magnitude becomes the norm of the new weight's rows.

    Args:
      model: a model with updates, from `attach` or `load_adapter`; left untouched.
      deltas: for each adapted layer, by dotted path, the n_out×n_in matrix that is to be added to its weight; for
        stacked layers with the stacked axes in front.

    Returns:
      A new model, not merged, and the relative error of each layer in Frobenius norm.

    Raises:
      InputError: if the model has no update; if paths are missing or unknown, or shapes are wrong (the message lists
        them); if two names of one layer have different matrices; if a matrix is not finite or a scale is 0; or if
        layers share trained arrays of their family.
    """
    model = bases.updated("the model", model, magnitude=True)
    layers = surgery.layers_by_path(model)
    own = surgery.specs(model, surgery.spec_of(model))
    given = _by_layer(model, layers, deltas)
    return model, {path: fit(path, layer, given[path], own[path]) for path, layer in layers.items()}


def difference(
    finetuned: nnx.Module, base: nnx.Module, targets: Sequence[str] | str = ()
) -> dict[str, Float[Array, "*stack n_out n_in"]]:
    """The matrices that fine-tuning has added to the weights of a model's linear layers.

    Args:
      finetuned: any NNX module; updates in it are merged first, in a copy.
      base: the model before fine-tuning, with the same linear layers.
      targets: patterns of layer paths, as in `PeftSpec`; empty for all linear layers.

    Returns:
      The matrices by dotted path, in float32 at least.

    Raises:
      InputError: if only one model has a layer, or a layer has different shapes; if a pattern matches nothing; or if a
        model has adapters that are not linear.
    """
    after, before = (weights(surgery.detach(surgery.merge(model))) for model in (finetuned, base))
    if targets:
        chosen = select.matching((targets,) if isinstance(targets, str) else targets, before, "linear layer")
        before = {path: before[path] for path in chosen}
        after = {path: after[path] for path in chosen if path in after}
    store.check_arrays("finetuned", after, before)
    wide = working_dtype(*before.values(), *after.values())
    return {path: after[path].astype(wide) - weight.astype(wide) for path, weight in before.items()}


def kernel_gradients(
    model: Model, loss: Callable[[Model], Float[Array, ""]]
) -> dict[str, Float[Array, "*stack n_out n_in"]]:
    """The gradient of a loss with respect to the frozen weights of all adapted layers.

    Args:
      model: a model with an adapter; left untouched, even if the loss changes its argument.
      loss: a function from such a model to a number, which is compiled.

    Returns:
      The gradients by dotted path. Multiplied by minus a learning rate, they are deltas for `warm_start`.

    Raises:
      InputError: if the model has no adapted layers, or the loss is not a single number.
    """
    model = surgery.unmerge(model)
    kernels = {path: layer.base.kernel[...] for path, layer in surgery.wrapped_layers(model)}
    if not kernels:
        raise InputError("the model has no layer with an adapter; attach one first")

    def of_kernels(kernels: dict[select.Path, Array]) -> Float[Array, ""]:
        other = nnx.clone(model)
        for path, layer in surgery.wrapped_layers(other):
            layer.base.kernel = layer.base.kernel.replace(kernels[path])
        value = loss(other)
        if jnp.shape(value) != ():
            raise InputError(f"the loss has shape {jnp.shape(value)}, expected one number")
        return value

    layouts = {path: layer.map.layout for path, layer in surgery.wrapped_layers(model)}
    found = jax.jit(jax.grad(of_kernels))(kernels)
    return {select.dotted(path): layouts[path].matrices(gradient) for path, gradient in found.items()}


def fit(path: str, layer: UpdatedLinear, delta: Float[Array, "*stack n_out n_in"], spec: PeftSpec) -> float:
    """Sets one layer's update close to a matrix, in place.

    Args:
      path: the layer's path, for messages and the random key of initial values.
      layer: the layer, which is not merged.
      delta: the matrix that is to be added to its weight.
      spec: the spec for this layer.

    Returns:
      The relative error.

    Raises:
      InputError: if the matrix is not finite, the scale is 0, or a trained array is shared with other layers.
    """
    _check(path, layer, delta)
    delta, matrix = delta.astype(working_dtype(delta)), layer.delta
    norm = float(jnp.linalg.norm(delta))
    if norm:
        fixed = {name: variable[...] for name, variable in matrix.fixed.items()}
        project = kernels.each(_projecting(matrix.family, spec.structure), len(matrix.stack))
        found = project(delta / layer.scale, **({"fixed": fixed} if fixed else {}))
    else:  # the projection of 0 may have no gradient
        key = jax.random.fold_in(jax.random.key(0), zlib.crc32(path.encode()))  # a different key for every layer
        found = matrix.initial(spec, key)
    put(layer, found)
    error = float(jnp.linalg.norm(layer.scale * matrix.to_dense().astype(delta.dtype) - delta))
    return error / norm if norm else error


def put(layer: UpdatedLinear, params: matrices.Params) -> None:
    """Replaces the trained arrays of a layer's update, and its magnitude, which depends on them, in place."""
    parameters = layer.delta.parameters
    for name, variable in list(parameters.items()):
        parameters[name] = variable.replace(params[name].astype(variable.dtype))
    if layer.magnitude is not None:
        kernel = layer.base.kernel[...]
        weight = layer.map.layout.matrices(kernel).astype(working_dtype(kernel)) + layer.scale * layer.delta.to_dense()
        norms = jnp.linalg.norm(weight, axis=-1)
        layer.magnitude = layer.magnitude.replace(norms.astype(layer.magnitude.dtype))


def _by_layer(
    model: nnx.Module, layers: Mapping[str, UpdatedLinear], deltas: Mapping[str, ArrayLike]
) -> dict[str, Array]:
    """The matrices by the first path of each layer; InputError if paths or shapes are not those of the layers."""
    walked = select.walk(model)
    first = {id(layer): path for path, layer in layers.items()}
    names = {select.dotted(place): first[id(node)] for place, node in walked if id(node) in first}
    found: dict[str, tuple[str, Array]] = {}
    for path, delta in ((path, jnp.asarray(delta)) for path, delta in deltas.items()):
        other, before = found.setdefault(names.get(path, path), (path, delta))
        if not bases.same(before, delta):
            raise InputError(f"deltas for {other} and {path}, which are one layer, differ; expected one of them")
    given = {path: delta for path, (_, delta) in found.items()}
    shapes = {path: (*layer.delta.stack, layer.delta.n_out, layer.delta.n_in) for path, layer in layers.items()}
    expected = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    store.check_arrays("deltas", given, expected)
    return given


def _check(path: str, layer: UpdatedLinear, delta: Float[Array, "*stack n_out n_in"]) -> None:
    matrix = layer.delta
    shared = [name for name in matrices.FAMILIES[matrix.family].shared if name in matrix.parameters]
    if shared:
        raise InputError(f"{path}: {matrix.family} shares {', '.join(shared)} among layers, expected a family where "
                         "each layer has its own arrays")  # fmt: skip
    if layer.scale == 0:
        raise InputError(f"{path}: scale=0, so ΔW has no effect; expected another scale")
    if not jnp.isfinite(delta).all():
        raise InputError(f"{path}: the given matrix has entries that are not finite")


def weights(model: nnx.Module) -> dict[str, Float[Array, "*stack n_out n_in"]]:
    """The weights of all linear layers of a model without adapters, by dotted path."""
    layers = {dotted: select.get(model, path) for dotted, path in select.linear_layers(model).items()}
    return {path: linear_map(layer).layout.matrices(layer.kernel[...]) for path, layer in layers.items()}


@functools.cache
def _projecting(family: str, structure: FrozenDict) -> Callable[..., Any]:
    """A family's projection, compiled once for all layers of a shape."""
    return jax.jit(functools.partial(matrices.FAMILIES[family].project, **structure))
