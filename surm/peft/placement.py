"""Finds the layers of a model that a spec adapts, and wraps them."""

from collections.abc import Collection, Iterable, Mapping

from flax import nnx

from surm import matrices
from surm.errors import InputError, pasted, quoted
from surm.peft import linear_maps, passed_over, select
from surm.peft.layers import AdaptedLinear, BottleneckLinear, HadamardLinear, UpdatedLinear, WrappedLinear
from surm.peft.matrix import StructuredMatrix
from surm.peft.spec import METHODS, PeftSpec
from surm.peft.variables import Trainable

WRAPPERS: dict[str, type[WrappedLinear]] = {
    "update": UpdatedLinear,
    "adapter": AdaptedLinear,
    "bottleneck": BottleneckLinear,
    "hadamard": HadamardLinear,
}
"""The positions in which linear layers are adapted, with their wrappers."""


def wrap_targets(model: nnx.Module, spec: PeftSpec, rngs: nnx.Rngs, *, saved: Collection[str] | None = None) -> None:
    """Wraps every layer that a spec targets, in place.

    Args:
      model: the model, which is changed. The variables that the spec's `train` names are `Trainable` already.
      spec: a spec whose position is in `WRAPPERS`.
      rngs: source of initial values and dropout masks.
      saved: the paths of a saved adapter's arrays, which tell what was adapted then; None for a new adapter.

    Raises:
      InputError: if a pattern matches no layer, or only layers that train as a whole or cannot be adapted; if two rules
        claim a layer; or if an option does not fit a layer.
    """
    wrapper = WRAPPERS[spec.position]
    layers, walked = select.linear_layers(model), select.walk(model)
    places = select.places(walked)
    names = {}  # all names of every layer, by the first one
    for path in layers.values():
        every = [select.dotted(place) for place in places[id(select.get(model, path))]]
        names[every[0]] = every
    whole = {first for first in names if isinstance(select.get(model, layers[first]).kernel, Trainable)}
    whole -= {first for first in whole if f"{first}.base.kernel" in (saved or ())}  # surm 0.1.0 adapted such layers too
    shared: dict[tuple, nnx.Variable] = {}
    for dotted, own in _targets(model, spec, names, whole, strict=saved is None).items():
        if saved is not None and not _was_adapted(own, names[dotted], saved):
            continue
        base = select.get(model, layers[dotted])
        try:
            _check_layer(model, base, places[id(base)])
            wrapped = wrapper(base, own, rngs=rngs)
        except InputError as error:
            raise InputError(f"{dotted}: {error}") from error
        if isinstance(wrapped.delta, StructuredMatrix):
            _share(wrapped.delta, layers[dotted], shared)
        for path in places[id(base)]:
            select.put(model, path, wrapped)


def _targets(
    model: nnx.Module, spec: PeftSpec, names: Mapping[str, list[str]], whole: Collection[str], *, strict: bool
) -> dict[str, PeftSpec]:
    """The spec of every adapted layer; every pattern must match some layer."""
    walked = select.walk(model)
    every = {name: first for first, of_layer in names.items() for name in of_layer}
    for pattern in (*spec.targets, *spec.rules, *spec.exclude):
        _check_pattern(pattern, spec, walked, every, whole)
    found = {first: own for first, of_layer in names.items() if first not in whole and (own := spec.at(*of_layer))}
    if not found:
        targets, exclude = quoted(spec.targets), quoted(spec.exclude)
        raise InputError(f"targets={targets} without exclude={exclude} and rules' off leaves no layer")
    if strict:
        claiming = [pattern for pattern, change in spec.rules.items() if change is not None]
        adapted = [name for name, first in every.items() if first in found]
        passed_over.check((*spec.targets, *claiming), lambda path: _is_off(spec, path), walked, adapted)
    return found


def _check_pattern(
    pattern: str, spec: PeftSpec, walked: passed_over.Walked, every: Mapping[str, str], whole: Collection[str]
) -> None:
    """Raises InputError if a pattern matches no layer, or only layers that train as a whole."""
    match = select.compiled(pattern).fullmatch
    matched = [name for name in every if match(name)]
    off = pattern in spec.exclude or spec.rules.get(pattern, {}) is None
    if not matched and not (off and passed_over.names_others(pattern, walked, every)):
        error = passed_over.refused(pattern, walked, every)
        if not off and spec.targets == METHODS[spec.method].targets:
            raise InputError(f"{error}; where no targets are given, {spec.method!r} has {pasted(pattern)}: set targets")
        raise error
    if not off and all(every[name] in whole for name in matched):
        raise InputError(f"pattern {pasted(pattern)} matches {matched[0]}, which train={quoted(spec.train)} "
                         "trains as a whole, so it takes no adapter; expected one of them to name it")  # fmt: skip


def _check_layer(model: nnx.Module, layer: nnx.Module, places: Iterable[select.Path]) -> None:
    """Raises InputError, with a remedy, if a layer cannot be adapted."""
    try:
        passed_over.check_parent(model, places)
        linear_maps.linear_map(layer)
    except InputError as error:
        raise InputError(f"{error}; name it in exclude to leave it as it is") from error


def _is_off(spec: PeftSpec, path: str) -> bool:
    off = [pattern for pattern, change in spec.rules.items() if change is None]
    return any(select.compiled(pattern).fullmatch(path) for pattern in (*spec.exclude, *off))


def _was_adapted(spec: PeftSpec, names: Iterable[str], saved: Collection[str]) -> bool:
    """Whether a saved adapter has arrays of a layer; if layers share arrays, all targets count."""
    shared = spec.position in ("update", "adapter") and matrices.FAMILIES[spec.family].trained_shared
    return shared or any(path.startswith(f"{name}.delta.") for name in names for path in saved)


def _share(delta: StructuredMatrix, path: select.Path, shared: dict[tuple, nnx.Variable]) -> None:
    """Replaces the shared arrays of a matrix by those of an earlier matrix of the same shape.

    Fixed arrays are the same for all matrices of that shape.
    """
    scopes = matrices.FAMILIES[delta.family].shared
    numbers = [place for place, part in enumerate(path) if isinstance(part, int)]
    of_layer = path[: numbers[-1] + 1] if numbers else ()
    within = {"model": (), "layer": of_layer, "kind": path[len(of_layer) :]}
    for held, matrix in ((delta.parameters, (delta.n_out, delta.n_in)), (delta.fixed, ())):
        for name, variable in list(held.items()):
            if name in scopes:
                key = (delta.family, name, scopes[name], within[scopes[name]], matrix, variable[...].shape)
                held[name] = shared.setdefault(key, variable)


def own_variables(spec: PeftSpec, variables: Iterable[str]) -> list[str]:
    """The variables that a spec targets, by dotted path; InputError if a pattern matches none."""
    try:
        return select.matching(spec.targets, variables)
    except InputError as error:
        default = spec.method == "bitfit" and spec.targets == METHODS["bitfit"].targets
        raise InputError("method='bitfit' trains biases, but the model has none") if default else error from None


def norms(model: nnx.Module, spec: PeftSpec, variables: Iterable[str]) -> list[str]:
    """The variables of the norms that a Hadamard adapter trains too; no variables for other methods.

    Args:
      model: the model, whose attribute `norm_behind_attention` is the default of the option `norm`.
      spec: the spec of the adapter.
      variables: the dotted paths of variables.

    Returns:
      The paths that the pattern `norm` matches as a whole or up to a dot.

    Raises:
      InputError: if neither option nor attribute is given, or the pattern matches nothing.
    """
    if spec.position != "hadamard":
        return []
    pattern = spec.options.get("norm", getattr(model, "norm_behind_attention", None))
    if not isinstance(pattern, str):
        raise InputError(
            f"hadamard_adapter trains the norm behind attention too, which {linear_maps.named(model)} does not name; "
            r"expected the option norm, such as norm='.*\.norm1' (of a BERT), norm='.*\.norm2' (of a ViT) or norm='' "
            "for none, or such an attribute norm_behind_attention of the model"
        )
    try:
        return select.under((pattern,), variables) if pattern else []
    except InputError as error:
        raise InputError(f"hadamard_adapter: norm: {error}") from error
