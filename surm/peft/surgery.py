"""Attaches an adapter to a model, detaches it, merges it, and switches it off.

Every function returns a new model and leaves its argument untouched. The arrays themselves never change and are shared,
so a new model takes no memory for the base.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

import jax
from flax import nnx

from surm.errors import InputError, quoted
from surm.peft import arguments, passed_over, placement, select
from surm.peft.layers import MergeableLinear, WrappedLinear
from surm.peft.matrix import StructuredMatrix
from surm.peft.spec import PeftSpec
from surm.peft.variables import AdapterParam, Trainable

Model = TypeVar("Model", bound=nnx.Module)
_SPEC = "peft_spec"


def spec_of(model: nnx.Module) -> PeftSpec | None:
    """The spec that was attached to a model, or None."""
    return getattr(model, _SPEC, None)


def attach(model: Model, spec: PeftSpec, rngs: nnx.Rngs) -> Model:
    """Returns the model with the spec's adapter in it; all other variables are frozen, except those that `train` names.

    The outputs are those of the model itself until the adapter has trained. The adapter's dropout starts in training
    mode, as every new NNX layer does; `model.eval()` switches it off.

    Args:
      model: any NNX module, which is left untouched. Its layers of `nnx.Linear`, `nnx.LinearGeneral` (as in
        `nnx.MultiHeadAttention`) and `nnx.Einsum` can be adapted, single or stacked by `nnx.vmap`.
      spec: what to train and where. A pattern leaves out layers that `train` trains as a whole; if it matches no other
        layers, this is an error.
      rngs: source of the adapter's initial values (stream `params`) and dropout masks.

    Returns:
      A new model. Trained variables have the type `Trainable`; those of the method have its subclass `AdapterParam`.

    Raises:
      InputError: if a pattern matches nothing (the message names the nearest paths), or a module with a kernel that
        cannot be adapted (`exclude` leaves it alone); if an option does not fit a layer's shape; or if the model has an
        adapter already.
    """
    return reattach(model, spec, rngs)


def reattach(model: Model, spec: PeftSpec, rngs: nnx.Rngs, *, saved: Collection[str] | None = None) -> Model:
    """Attaches as `attach` does, or as was done for a saved adapter, perhaps by surm 0.1.0, which adapted fewer layers.

    Args:
      model: left untouched.
      spec: the spec of the adapter.
      rngs: source of initial values.
      saved: the paths of a saved adapter's arrays; None for a new adapter. A layer gets an update exactly if there are
        arrays of it, even if it trains as a whole.

    Returns:
      A new model.

    Raises:
      InputError: as in `attach`.
    """
    arguments.check(model, spec, rngs)
    spec = spec.on(model)
    if spec_of(model) is not None:
        raise InputError("the model has an adapter already; detach it first")
    model = nnx.clone(model)
    passed_over.check_present(model, (*spec.targets, *spec.rules, *spec.train), select.walk(model))
    if spec.train:
        paths = select.variables(model)
        _retype(model, [paths[dotted] for dotted in passed_over.trained_whole(model, spec.train, paths)], Trainable)
    if spec.position in placement.WRAPPERS:
        placement.wrap_targets(model, spec, rngs, saved=saved)
    frozen = {dotted: path for dotted, path in select.variables(model).items()
              if not isinstance(select.get(model, path), Trainable)}  # fmt: skip
    by_itself = spec.position == "variables"
    chosen = placement.own_variables(spec, frozen) if by_itself else placement.norms(model, spec, frozen)
    _retype(model, [frozen[dotted] for dotted in chosen], AdapterParam)
    if not nnx.to_flat_state(nnx.state(model, Trainable)):
        raise InputError(f"method={spec.method!r} with train={quoted(spec.train)} trains nothing; set train or targets")
    setattr(model, _SPEC, spec)
    return model


def detach(model: Model) -> Model:
    """Returns the model without its adapter, with plain layers; merged layers keep their merged kernel.

    Args:
      model: a model from `attach`, `merge` or `load_adapter`; left untouched. The trained head stays.

    Returns:
      A new model of plain layers and plain `nnx.Param` variables.
    """
    model = nnx.clone(model)
    for path, node in select.walk(model):
        if isinstance(node, WrappedLinear):
            select.put(model, path, node.base)
    trained = [path for path in select.variables(model).values() if isinstance(select.get(model, path), Trainable)]
    _retype(model, trained, nnx.Param)
    if spec_of(model) is not None:
        delattr(model, _SPEC)
    return model


def merge(model: Model) -> Model:
    """Returns the model with every update folded into its kernel, so that inference costs no more than without it.

    Args:
      model: a model with an update or a Hadamard adapter (or one that trains the layers themselves); left untouched.

    Returns:
      A new model with the same outputs up to rounding; `unmerge` restores the base bit for bit, `detach` forgets it.

    Raises:
      InputError: if the model has adapters, which are not linear.
    """
    model = nnx.clone(model)
    for path, layer in layers_by_path(model).items():
        if not isinstance(layer, MergeableLinear):
            raise InputError(f"{path} has an adapter, which is not linear and cannot be merged")
        try:
            layer.merge()
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return model


def unmerge(model: Model) -> Model:
    """Returns the model with every merged update removed from its kernel; the frozen kernels return bit for bit."""
    model = nnx.clone(model)
    for _, layer in wrapped_layers(model):
        if isinstance(layer, MergeableLinear):
            layer.unmerge()
    return model


def with_path(model: Model, path: str) -> Model:
    """Returns the model with another way of multiplying for its updates or adapters.

    Args:
      model: a model from `attach` or `load_adapter` (whose path is `auto`); left untouched.
      path: one of the paths in `surm.peft.multiply.paths`, or `auto`.

    Returns:
      A new model with the same outputs up to rounding.

    Raises:
      InputError: if the model has no adapter, or its method, family or layers do not have this path.
    """
    return _following(model, path=path)


def with_scale(model: Model, scale: float) -> Model:
    """Returns the model with another scale for its updates.

    Args:
      model: a model from `attach` or `load_adapter`; left untouched.
      scale: the factor of every ΔW.

    Returns:
      A new model.

    Raises:
      InputError: if the model has no adapter or is merged, if its method has no scale, or if the scale is not finite.
    """
    if any(getattr(layer, "merged", False) for _, layer in wrapped_layers(model)):
        raise InputError(f"scale={scale}, but the model is merged; unmerge it first")
    return _following(model, scale=scale)


def _following(model: Model, **change: Any) -> Model:
    """The model with one field of its spec changed, in every layer that reads it."""
    (name, value), spec = *change.items(), spec_of(model)
    if spec is None:
        raise InputError(f"{name}={value!r}, but the model has no adapter")
    spec = dataclasses.replace(spec, **change)
    model = nnx.clone(model)
    own = specs(model, spec)
    for path, layer in layers_by_path(model).items():
        try:
            layer.follow(own[path])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    setattr(model, _SPEC, spec)
    return model


@contextlib.contextmanager
def disabled(model: Model) -> Iterator[Model]:
    """Switches the adapter off inside a `with` block: the layers compute as if it were not there.

    The variables that `PeftSpec.train` names, such as the head, keep their trained values.

    Args:
      model: a model with an adapter; it is switched in place, and back at the end of the block.

    Yields:
      The model.

    Raises:
      InputError: if the model has no adapter layers, or is merged; unmerge it first.
    """
    layers = [layer for _, layer in wrapped_layers(model)]
    if not layers:
        raise InputError("the model has no layer with an adapter to switch off (full, bitfit and head add none)")
    if any(getattr(layer, "merged", False) for layer in layers):
        raise InputError("the model is merged, so its adapter cannot be switched off; unmerge it first")
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield model
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, jax.Array | jax.ShapeDtypeStruct], nnx.State]:
    """Splits a model for a training step: its structure, the trained arrays by dotted path, and all other state.

    A model that has shapes in place of arrays gives shapes.
    """
    graphdef, trainable, frozen = nnx.split(model, Trainable, ...)
    return graphdef, {select.dotted(path): var.get_value() for path, var in nnx.to_flat_state(trainable)}, frozen


def join(
    graphdef: nnx.GraphDef,
    trainable: dict[str, jax.Array],
    frozen: nnx.State,
    *,
    scale: jax.typing.ArrayLike | None = None,
) -> nnx.Module:
    """Puts a model together again from the parts of `split`.

    Args:
      graphdef: the structure.
      trainable: trained arrays by path, possibly other ones of the same shapes.
      frozen: all other state.
      scale: the scale of the updates; None for the model's own.

    Returns:
      The model.
    """
    state = nnx.from_flat_state((select.parts(path), value) for path, value in trainable.items())
    model = nnx.merge(graphdef, state, frozen, copy=True)
    if scale is not None:
        for _, layer in wrapped_layers(model):
            layer.scale = scale
    return model


def wrapped_layers(model: nnx.Module) -> list[tuple[select.Path, WrappedLinear]]:
    """The layers of a model that have an adapter, each once, with a path to it."""
    return [(path, module) for path, module in nnx.iter_modules(model) if isinstance(module, WrappedLinear)]


def layers_by_path(model: nnx.Module) -> dict[str, WrappedLinear]:
    """The layers of a model that have an adapter, each once, by a dotted path to it."""
    return {select.dotted(path): layer for path, layer in wrapped_layers(model)}


def structured_matrices(model: nnx.Module) -> dict[str, StructuredMatrix]:
    """The structured matrices of a model's layers, by path."""
    deltas = {path: layer.delta for path, layer in layers_by_path(model).items()}
    return {path: delta for path, delta in deltas.items() if isinstance(delta, StructuredMatrix)}


def plain_variables(model: nnx.Module, *kinds: type[nnx.Variable]) -> Iterator[tuple[str, nnx.Variable]]:
    """The variables of a model, or those of some kinds, by their paths in the plain model, without `base`."""
    wrapped = {path for path, _ in wrapped_layers(model)}
    for path, variable in nnx.to_flat_state(nnx.state(model, *kinds)):
        yield select.dotted(part for i, part in enumerate(path) if part != "base" or path[:i] not in wrapped), variable


def specs(model: nnx.Module, spec: PeftSpec) -> dict[str, PeftSpec]:
    """The spec of each adapted layer of a model, by its first path; rules may use any of its paths."""
    walked = select.walk(model)
    places = select.places(walked)
    return {
        path: spec.at(*(select.dotted(place) for place in places[id(layer)])) or spec
        for path, layer in layers_by_path(model).items()
    }


def _retype(model: nnx.Module, paths: list[select.Path], kind: type[nnx.Variable]) -> None:
    """Gives variables another type wherever they occur, so that tied ones stay tied."""
    chosen = [select.get(model, path) for path in paths]
    retyped = {id(variable): kind.from_metadata(variable[...], variable.get_metadata()) for variable in chosen}
    for place, node in select.walk(model):
        if id(node) in retyped:
            select.put(model, place, retyped[id(node)])
