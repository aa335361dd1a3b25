"""Finds places in a model by regular expressions that match whole dotted paths."""

import difflib
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from flax import nnx

from surm.errors import InputError, nearest, pasted
from surm.peft import linear_maps, other_names

Path = tuple[str | int, ...]
_HOLDERS = (list, tuple, dict)
"""Containers that may hold modules if `nnx.data` marks them."""


def dotted(path: Iterable[str | int]) -> str:
    """Joins a path: `("blocks", 0, "head")` becomes `"blocks.0.head"`."""
    return ".".join(map(str, path))


def parts(dotted_path: str) -> Path:
    """Splits a path: `"blocks.0.head"` becomes `("blocks", 0, "head")`."""
    return tuple(int(part) if part.isdecimal() else part for part in dotted_path.split("."))


def linear_layers(model: nnx.Module) -> dict[str, Path]:
    """Every layer of a model that is a linear map, by dotted path, in the model's own order."""
    return _paths_to(model, linear_maps.LAYERS)


def variables(model: nnx.Module) -> dict[str, Path]:
    """Every `nnx.Param` of a model, by dotted path, in the model's own order."""
    return _paths_to(model, nnx.Param)


def matching(patterns: Sequence[str], paths: Iterable[str], what: str = "variable") -> list[str]:
    """The paths that at least one pattern matches as a whole.

    Args:
      patterns: regular expressions.
      paths: dotted paths.
      what: what the paths are, for the message, such as "linear layer".

    Returns:
      The matching paths, in the order given.

    Raises:
      InputError: if a pattern is not a regular expression, or matches nothing; the message names the nearest paths.
    """
    paths = list(paths)
    chosen: set[str] = set()
    for pattern in patterns:
        found = {path for path in paths if compiled(pattern).fullmatch(path)}
        if not found:
            raise InputError(f"pattern {pasted(pattern)}{_near(pattern, paths, what)}")
        chosen |= found
    return [path for path in paths if path in chosen]


def _near(pattern: str, paths: Sequence[str], what: str) -> str:
    """A hint at the meaning of a pattern that matches nothing."""
    inside = [path for path in paths if compiled(pattern).search(path)]
    if not inside:
        hint = "; patterns are joined by |, not by commas" if "," in pattern else ""
        hint += f"; {other_names.TARGETS[pattern]}" if pattern in other_names.TARGETS else ""
        return f", a regular expression, matches no {what}; {_nearest(pattern, paths)}{hint}"
    more = f" (+{len(inside) - 3} more)" if len(inside) > 3 else ""
    around = f".*({pattern}).*"
    whole = f"; {pasted(around)} matches those" if all(re.fullmatch(around, path) for path in inside) else ""
    return f" matches no {what} as a whole, only a part of {', '.join(inside[:3])}{more}{whole}"


def _nearest(pattern: str, paths: Sequence[str]) -> str:
    """The paths closest to a pattern, or else those whose last part is closest to the pattern's last part."""
    whole = nearest(_plain(pattern), paths)
    if whole.startswith("nearest"):
        return whole
    ends = {path.rpartition(".")[2] for path in paths}
    for alternative in _plain(pattern).split("|"):
        near = difflib.get_close_matches(alternative.rpartition(".")[2], ends - {alternative}, n=1)
        if near:
            found = [path for path in paths if path.rpartition(".")[2] == near[0]]
            return "nearest: " + ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    return whole


def under(patterns: Sequence[str], paths: Iterable[str]) -> list[str]:
    """The paths of variables at or below the places that the patterns match.

    Args:
      patterns: regular expressions; each must match a path, or a leading part of a path, as a whole.
      paths: dotted paths of variables.

    Returns:
      The matching paths, in the order given.

    Raises:
      InputError: as `matching` does.
    """
    paths = list(paths)
    leading = {path: [path[:i] for i in _ends(path)] for path in paths}
    known = dict.fromkeys(part for parts in leading.values() for part in parts)
    chosen = set(matching(patterns, known, "module or variable"))
    return [path for path in paths if chosen.intersection(leading[path])]


def walk(model: nnx.Module) -> list[tuple[Path, nnx.Pytree | nnx.Variable]]:
    """Every module and variable with every path to it; a layer that is used under two names comes twice."""
    found: list[tuple[Path, nnx.Pytree | nnx.Variable]] = []
    waiting: list[tuple[Path, object, frozenset[int]]] = [((), model, frozenset())]
    while waiting:
        path, node, above = waiting.pop()
        if isinstance(node, nnx.Pytree | nnx.Variable):
            found.append((path, node))
        if not isinstance(node, nnx.Variable) and id(node) not in above:
            below = [((*path, name), child, above | {id(node)}) for name, child in children(node)]
            waiting += reversed(below)
    return found


def children(node: object) -> list[tuple[str | int, object]]:
    """The modules, variables and containers directly below a module, by name or number."""
    if isinstance(node, dict):
        named = ((name, child) for name, child in node.items() if isinstance(name, str | int))
    else:
        named = enumerate(node) if isinstance(node, nnx.List | list | tuple) else vars(node).items()
    return [(name, child) for name, child in named if isinstance(child, (nnx.Pytree, nnx.Variable, *_HOLDERS))]


def places(walked: list[tuple[Path, nnx.Pytree | nnx.Variable]]) -> dict[int, list[Path]]:
    """Every path to every node of a walk, by identity. It is valid while the walk keeps its nodes alive."""
    found: dict[int, list[Path]] = {}
    for path, node in walked:
        found.setdefault(id(node), []).append(path)
    return found


def get(model: nnx.Module, path: Path) -> Any:
    """The module, variable or container at a path."""
    return functools.reduce(_child, path, model)


def put(model: nnx.Module, path: Path, node: object) -> None:
    """Replaces the module, variable or container at a path."""
    parent, last = get(model, path[:-1]), path[-1]
    if isinstance(parent, tuple):
        put(model, path[:-1], (*parent[:last], node, *parent[last + 1 :]))
    elif isinstance(parent, nnx.List | list | dict):
        parent[last] = node
    else:
        setattr(parent, last, node)


def _paths_to(model: nnx.Module, kind: type | tuple[type, ...]) -> dict[str, Path]:
    paths = (path for path, node in walk(model) if isinstance(node, kind))
    return {dotted(path): path for path in sorted(paths, key=_natural)}


def _child(node: object, part: str | int) -> Any:
    return node[part] if isinstance(node, nnx.List | list | tuple | dict) else getattr(node, part)


def _ends(path: str) -> list[int]:
    return [match.start() for match in re.finditer(r"\.|$", path)]


def compiled(pattern: str) -> re.Pattern:
    """Compiles a pattern; raises InputError if it is not a regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        shell = f"; {pasted('.' + pattern)} is one" if pattern.startswith("*") else ""
        raise InputError(f"pattern {pasted(pattern)} is not a regular expression: {error}{shell}") from error


def _plain(pattern: str) -> str:
    return re.sub(r"[\\^$*+?()\[\]{}]", "", pattern).replace("..", ".").strip(".")


def _natural(path: Path) -> tuple:
    return tuple((isinstance(part, str), part) for part in path)
