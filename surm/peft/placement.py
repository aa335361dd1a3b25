"""Which layers of a model are adapted, by which spec, and what is put around each of them."""

from collections.abc import Iterable, Mapping

from flax import nnx

from surm import matrices
from surm.errors import InputError
from surm.peft import select
from surm.peft.layers import AdaptedLinear, BottleneckLinear, HadamardLinear, UpdatedLinear, WrappedLinear
from surm.peft.matrix import StructuredMatrix
from surm.peft.spec import PeftSpec

WRAPPERS: dict[str, type[WrappedLinear]] = {
    "update": UpdatedLinear,
    "adapter": AdaptedLinear,
    "bottleneck": BottleneckLinear,
    "hadamard": HadamardLinear,
}
"""The positions in which linear layers are adapted, with what they are wrapped in."""


def wrap_targets(model: nnx.Module, spec: PeftSpec, rngs: nnx.Rngs) -> None:
    """Wraps every layer that a spec targets, in place.

    Args:
      model: changed.
      spec: of a position in `WRAPPERS`.
      rngs: source of initial values and dropout masks.

    Raises:
      InputError: if a pattern matches nothing, two rules claim a layer, or an option does not fit one.
    """
    wrapper = WRAPPERS[spec.position]
    layers, walked = select.linear_layers(model), select.walk(model)
    places = select.places(walked)
    names = {}  # of every layer, by the first of them
    for path in layers.values():
        every = [select.dotted(place) for place in places[id(select.get(model, path))]]
        names[every[0]] = every
    shared: dict[tuple, nnx.Variable] = {}
    for dotted, own in _targets(spec, names).items():
        base = select.get(model, layers[dotted])
        try:
            wrapped = wrapper(base, own, rngs=rngs)
        except InputError as error:
            raise InputError(f"{dotted}: {error}") from error
        if isinstance(wrapped.delta, StructuredMatrix):
            _share(wrapped.delta, layers[dotted], shared)
        for path in places[id(base)]:
            select.put(model, path, wrapped)


def _targets(spec: PeftSpec, names: Mapping[str, list[str]]) -> dict[str, PeftSpec]:
    """What holds for every layer that is adapted; every pattern of the spec must match some layer."""
    every = [name for of_layer in names.values() for name in of_layer]
    select.matching((*spec.targets, *spec.rules, *spec.exclude), every, "linear layer")
    found = {first: own for first, of_layer in names.items() if (own := spec.at(*of_layer)) is not None}
    if not found:
        raise InputError(f"targets={spec.targets!r} without exclude={spec.exclude!r} and rules' off leaves no layer")
    return found


def _share(delta: StructuredMatrix, path: select.Path, shared: dict[tuple, nnx.Variable]) -> None:
    """Replaces what a family shares over a model by what an earlier matrix of the same shape has.

    What is fixed is the same for all matrices that it fits.
    """
    scopes = getattr(matrices.FAMILIES[delta.family], "SHARED", {})
    numbers = [place for place, part in enumerate(path) if isinstance(part, int)]
    of_layer = path[: numbers[-1] + 1] if numbers else ()
    within = {"model": (), "layer": of_layer, "kind": path[len(of_layer) :]}
    for held, matrix in ((delta.parameters, (delta.n_out, delta.n_in)), (delta.fixed, ())):
        for name, variable in list(held.items()):
            if name in scopes:
                key = (delta.family, name, scopes[name], within[scopes[name]], matrix, variable[...].shape)
                held[name] = shared.setdefault(key, variable)


def norms(spec: PeftSpec, variables: Iterable[str]) -> list[str]:
    """The variables of the norms that a Hadamard adapter trains; none of any other method.

    Args:
      spec: of the adapter.
      variables: dotted paths.

    Returns:
      Those whose path, or a leading part of it, the option `norm` matches.

    Raises:
      InputError: if the option is not given, or matches nothing.
    """
    if spec.position != "hadamard":
        return []
    if "norm" not in spec.options:
        raise InputError(
            "hadamard_adapter trains the norm behind attention too, which its option names: "
            r"norm='.*\.norm1' in a BERT, norm='.*\.norm2' in a ViT, norm='' for none"
        )
    try:
        return select.under((spec.options["norm"],), variables) if spec.options["norm"] else []
    except InputError as error:
        raise InputError(f"hadamard_adapter: norm: {error}") from error
