"""Modules that targets match but that cannot be adapted: they are refused or reported, never skipped silently."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from flax import nnx

from surm.errors import InputError, pasted
from surm.peft import linear_maps, select
from surm.peft.kernels import in_words
from surm.peft.variables import Trainable

Walked = list[tuple[select.Path, nnx.Pytree | nnx.Variable]]
_CLASSES = "a layer of " + " or ".join(
    f"nnx.{kind.__name__}" for kind in linear_maps.LAYERS if kind.__module__.startswith("flax")
)
_NORMALISING = (nnx.SpectralNorm, nnx.WeightNorm)


def refused(pattern: str, walked: Walked, layers: Iterable[str]) -> InputError:
    """Explains why a pattern of targets matches no layer.

    Args:
      pattern: a pattern that matches no layer's path.
      walked: the nodes of the model.
      layers: the dotted paths of its layers.

    Returns:
      The error, which names the modules that the pattern matches, or the nearest layers.
    """
    nodes = {select.dotted(path): node for path, node in walked if path}
    found = [path for path in nodes if select.compiled(pattern).fullmatch(path)]
    if not found:
        try:
            select.matching([pattern], layers, "linear layer")
        except InputError as error:
            return error
    path, more = found[0], f" (+{len(found) - 1} more)" if len(found) > 1 else ""
    matches = f"pattern {pasted(pattern)} matches no linear layer, but {path}{more}"
    if isinstance(nodes[path], nnx.Variable):
        return InputError(f"{matches}, a variable; expected the layer that holds it, {path.rpartition('.')[0]!r}")
    if any(layer.startswith(f"{path}.") for layer in layers):
        inside = pasted(pattern + r"\..*")
        return InputError(f"{matches}, {linear_maps.named(nodes[path])} that holds layers; {inside} matches those")
    return InputError(f"{matches}, {_in_words(nodes[path])}; expected {_CLASSES}; train={path!r} trains it as a whole")


def check_present(model: nnx.Module, patterns: Iterable[str], walked: Walked) -> None:
    """Refuses patterns that match nothing but parts that a model lacks, if its attribute `absent` says why.

    Args:
      model: the model; `absent` is a mapping from dotted paths to reasons.
      patterns: patterns of targets, or of variables to train.
      walked: the nodes of the model.

    Raises:
      InputError: if there is such a pattern.
    """
    for path, reason in getattr(model, "absent", {}).items():
        for pattern in patterns:
            match = select.compiled(pattern).fullmatch
            if match(path) and not any(match(select.dotted(place)) for place, _ in walked if place):
                raise InputError(f"pattern {pasted(pattern)} matches {path}, which the model lacks: {reason}")


def trained_whole(model: nnx.Module, patterns: Sequence[str], variables: Iterable[str]) -> list[str]:
    """The variables that `train` names, by dotted path; the uses in the model's attribute `uses` are reported."""
    found = select.under(patterns, variables)
    for path, uses in getattr(model, "uses", {}).items():
        if path in found:
            logging.getLogger(__name__).info("%s trains as %s", path, uses)
    return found


def names_others(pattern: str, walked: Walked, layers: Iterable[str]) -> bool:
    """Whether a pattern matches a module that holds no layer, such as a convolution that is to stay frozen."""
    within = {select.dotted(place) for layer in layers for place in _above(select.parts(layer))}
    match = select.compiled(pattern).fullmatch
    found = (select.dotted(path) for path, node in walked if path and isinstance(node, nnx.Module))
    return any(match(path) and path not in within for path in found)


def _above(path: select.Path) -> list[select.Path]:
    return [path[:end] for end in range(len(path))]


def check(patterns: Iterable[str], left_alone: Callable[[str], bool], walked: Walked, layers: Collection[str]) -> None:
    """Refuses patterns that match a kernel that cannot be adapted, and reports other matrices that they skip.

    Args:
      patterns: the patterns of the targets.
      left_alone: a function that says whether a path is excluded, even if patterns match it.
      walked: the nodes of the model.
      layers: the dotted paths of the adapted layers.

    Raises:
      InputError: if a pattern matches a module that has a kernel but is not a linear map, or if it matches at most one
        layer besides other modules that hold matrices.
    """
    others = {path: node for path, node in _holders(walked).items() if not left_alone(path)}
    for pattern in patterns:
        match = select.compiled(pattern).fullmatch
        for path, node in ((path, node) for path, node in others.items() if match(path)):
            way = f"expected {_CLASSES}; exclude={path!r} leaves it as it is, train={path!r} trains it as a whole"
            if "kernel" in dict(select.children(node)):
                raise InputError(f"pattern {pasted(pattern)} matches {path}, {_in_words(node)}; {way}")
            adapted = [layer for layer in layers if match(layer)]
            if len(adapted) < 2:
                beside = f"only {adapted[0]}" if adapted else "no layer to adapt"
                passes_over = f"pattern {pasted(pattern)} matches {beside}, but skips {path}, {_in_words(node)}"
                raise InputError(f"{passes_over}; {way}")
            logging.getLogger(__name__).warning("targets %s skip %s, %s", pasted(pattern), path, _in_words(node))


def check_parent(model: nnx.Module, places: Iterable[select.Path]) -> None:
    """Raises InputError if a layer is inside a module that changes its kernel in every call."""
    for place in places:
        parent = select.get(model, place[:-1])
        if isinstance(parent, _NORMALISING):
            raise InputError(f"is inside {linear_maps.named(parent)}, which computes its kernel again in every "
                             "call; expected a layer outside of such a module")  # fmt: skip


def _holders(walked: Walked) -> Mapping[str, nnx.Module]:
    """The frozen modules, other than linear layers, that have a kernel, or that hold matrices but no linear layer."""
    within = {place for path, node in walked if isinstance(node, linear_maps.LAYERS) for place in _above(path)}
    found = {}
    for path, node in walked:
        if not isinstance(node, nnx.Module) or isinstance(node, (*linear_maps.LAYERS, nnx.Embed)):
            continue
        matrices = {name for name, child in select.children(node) if _is_matrix(child)}
        if "kernel" in matrices or (matrices and path not in within):
            found[select.dotted(path)] = node
    return found


def _is_matrix(node: object) -> bool:
    """Whether a node is a frozen variable with two or more axes that are not empty."""
    return (
        isinstance(node, nnx.Param)
        and not isinstance(node, Trainable)
        and sum(size > 1 for size in getattr(node, "shape", ())) > 1
    )


def _in_words(module: nnx.Module) -> str:
    """A module and the arrays that it holds, for messages."""
    named = [(name, child) for name, child in select.children(module)
             if isinstance(child, nnx.Param) and hasattr(child, "shape")]  # fmt: skip
    held = ", ".join(f"{name} {in_words(child)}" for name, child in named[:3])
    return linear_maps.named(module) + (f" that holds {held}" if held else "")
