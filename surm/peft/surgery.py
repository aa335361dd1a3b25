"""Putting an adapter into a model, taking it out, folding it in, switching it off.

Every function returns a new model and leaves its argument as it was; the arrays themselves, which never change, are
shared, so a new model costs no memory for the base.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

import jax
from flax import nnx

from surm.errors import InputError, quoted
from surm.peft import arguments, placement, select
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
    """Returns the model with the spec's adapter in it, everything but the trained part frozen.

    The outputs are those of the model itself until the adapter has trained. The adapter's dropout starts in training
    mode, as every new NNX layer does; `model.eval()` switches it off.

    Args:
      model: any NNX module; its layers are those of `nnx.Linear`, `nnx.LinearGeneral` (as `nnx.MultiHeadAttention` has)
        and `nnx.Einsum`, one by one or stacked by `nnx.vmap`. Left untouched.
      spec: what to train and where. A layer that `train` trains as a whole is no target of a pattern that matches
        others too, and an error of one that matches nothing else.
      rngs: source of the adapter's initial values (stream `params`) and dropout masks.

    Returns:
      A new model. Trained variables are of type `Trainable`, the method's own of its subclass `AdapterParam`.

    Raises:
      InputError: if a pattern matches nothing (the nearest paths are named), or what has a kernel and cannot be adapted
        (`exclude` leaves it alone); an option does not fit a layer's shape; or the model has an adapter already.
    """
    return reattach(model, spec, rngs)


def reattach(model: Model, spec: PeftSpec, rngs: nnx.Rngs, *, saved: Collection[str] | None = None) -> Model:
    """As `attach`, or as it was when an adapter was saved, by surm 0.1.0 perhaps, which knew fewer layers.

    Args:
      model: left untouched.
      spec: of the adapter.
      rngs: source of initial values.
      saved: the paths of a saved adapter's arrays: where it has none a layer has no update, and where it has one beside
        a layer that trains as a whole there is one; None for a new adapter.

    Returns:
      A new model.

    Raises:
      InputError: as of `attach`.
    """
    arguments.check(model, spec, rngs)
    if spec_of(model) is not None:
        raise InputError("the model has an adapter already; detach it first")
    model = nnx.clone(model)
    if spec.train:
        paths = select.variables(model)
        _retype(model, [paths[dotted] for dotted in select.under(spec.train, paths)], Trainable)
    if spec.position in placement.WRAPPERS:
        placement.wrap_targets(model, spec, rngs, saved=saved)
    frozen = {dotted: path for dotted, path in select.variables(model).items()
              if not isinstance(select.get(model, path), Trainable)}  # fmt: skip
    by_itself = spec.position == "variables"
    chosen = select.matching(spec.targets, frozen) if by_itself else placement.norms(model, spec, frozen)
    _retype(model, [frozen[dotted] for dotted in chosen], AdapterParam)
    if not nnx.to_flat_state(nnx.state(model, Trainable)):
        raise InputError(f"method={spec.method!r} with train={quoted(spec.train)} trains nothing; name what trains")
    setattr(model, _SPEC, spec)
    return model


def detach(model: Model) -> Model:
    """Returns the model without its adapter: the plain layers, merged ones with their merged kernel.

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
    """Returns the model with every update folded into its kernel: no cost at inference.

    Args:
      model: a model with an update or a Hadamard adapter (or one that trains the layers themselves); left untouched.

    Returns:
      A new model with the same outputs up to rounding; `unmerge` restores the base bit for bit, `detach` forgets it.

    Raises:
      InputError: for adapters, which are not linear.
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
    """Returns the model with every merged update taken out of its kernel again; the frozen kernels return exactly."""
    model = nnx.clone(model)
    for _, layer in wrapped_layers(model):
        if isinstance(layer, MergeableLinear):
            layer.unmerge()
    return model


def with_path(model: Model, path: str) -> Model:
    """Returns the model with its updates or adapters multiplying another way.

    Args:
      model: a model from `attach` or `load_adapter` (whose path is `auto`); left untouched.
      path: one of those in `surm.peft.multiply.paths`, or `auto`.

    Returns:
      A new model with the same outputs up to rounding.

    Raises:
      InputError: if the model has no adapter, or the path is none of its method's, family's and layers'.
    """
    return _following(model, path=path)


def with_scale(model: Model, scale: float) -> Model:
    """Returns the model with another scale of its updates.

    Args:
      model: a model from `attach` or `load_adapter`; left untouched.
      scale: what multiplies every ΔW.

    Returns:
      A new model.

    Raises:
      InputError: if the model has no adapter or is merged, its method has no scale, or the scale is no finite number.
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
    """Switches the adapter off inside a `with` block: the layers answer as if it were not there.

    What `PeftSpec.train` names, such as the head, stays as it is trained.

    Args:
      model: a model with an adapter; switched in place, and back again at the end of the block.

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


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, jax.Array], nnx.State]:
    """Takes a model apart for a training step: structure, trained arrays by dotted path, all the rest."""
    graphdef, trainable, frozen = nnx.split(model, Trainable, ...)
    return graphdef, {select.dotted(path): var[...] for path, var in nnx.to_flat_state(trainable)}, frozen


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
      trainable: trained arrays by path; they may be others of the same shapes.
      frozen: all the rest.
      scale: of the updates; None for the model's own.

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
    """The trained matrices of a model's layers that are of some family, by path."""
    deltas = {path: layer.delta for path, layer in layers_by_path(model).items()}
    return {path: delta for path, delta in deltas.items() if isinstance(delta, StructuredMatrix)}


def plain_variables(model: nnx.Module, *kinds: type[nnx.Variable]) -> Iterator[tuple[str, nnx.Variable]]:
    """The variables of a model, or those of some kinds, by their paths in the plain model, without `base`."""
    wrapped = {path for path, _ in wrapped_layers(model)}
    for path, variable in nnx.to_flat_state(nnx.state(model, *kinds)):
        yield select.dotted(part for i, part in enumerate(path) if part != "base" or path[:i] not in wrapped), variable


def specs(model: nnx.Module, spec: PeftSpec) -> dict[str, PeftSpec]:
    """What holds for each adapted layer of a model, by its first path; rules may name it by any other."""
    walked = select.walk(model)
    places = select.places(walked)
    return {
        path: spec.at(*(select.dotted(place) for place in places[id(layer)])) or spec
        for path, layer in layers_by_path(model).items()
    }


def _retype(model: nnx.Module, paths: list[select.Path], kind: type[nnx.Variable]) -> None:
    """Gives variables another type, wherever they stand: tied ones stay tied."""
    chosen = [select.get(model, path) for path in paths]
    retyped = {id(variable): kind.from_metadata(variable[...], variable.get_metadata()) for variable in chosen}
    for place, node in select.walk(model):
        if id(node) in retyped:
            select.put(model, place, retyped[id(node)])
