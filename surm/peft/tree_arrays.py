"""The arrays of a tree of parameters by dotted path, and which of them are kernels, with their layouts."""

from collections.abc import Mapping
from typing import Any

import jax

from surm.errors import InputError, pasted
from surm.peft import select
from surm.peft.kernels import KernelLayout, in_words, is_floating


def arrays_of(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by dotted path."""
    arrays = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            name = dotted(path)
            if name in arrays:
                raise InputError(f"two arrays have the path {name!r}; expected each to have its own")
            arrays[name] = leaf
    return arrays


def dotted(path: tuple) -> str:
    """A path of JAX, joined by dots."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def form(array: Any) -> jax.ShapeDtypeStruct:
    """The shape and type of an array."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def is_kernel(path: str, leaf: Any) -> bool:
    """Whether an array may be a kernel; the biases of Linen's attention have two axes too."""
    boxed = ".value"  # the suffix of an array in one of Flax's metadata boxes
    return len(leaf.shape) >= 2 and path.removesuffix(boxed).rpartition(".")[2] != "bias"


def named(leaves: Mapping[str, Any], layouts: Mapping[str, KernelLayout]) -> dict[str, tuple[str, str]]:
    """The names that a pattern may match, each with its path and segment."""
    kernels: dict[str, list[str]] = {}
    for path in (path for path, leaf in leaves.items() if is_kernel(path, leaf)):
        kernels.setdefault(path.rpartition(".")[0], []).append(path)
    by_module = {module: path for module, (path, *others) in kernels.items() if module and not others}
    found = {}
    for name, path in ({path: path for path in leaves} | by_module).items():
        found[name] = (path, "")
        found |= {f"{name}:{segment}": (path, segment) for segment in layouts.get(path, KernelLayout()).segments}
    return found


def layouts_by_path(layouts: Mapping[str, KernelLayout], leaves: Mapping[str, Any]) -> dict[str, KernelLayout]:
    """The layouts that patterns give, by the path of each matched kernel; InputError if a pattern matches none."""
    if not isinstance(layouts, Mapping):
        raise InputError(f"layouts={layouts!r}, expected them by pattern, such as {{'.*': KernelLayout()}}")
    known, chosen = named(leaves, {}), {}
    for pattern, layout in layouts.items():
        if not isinstance(layout, KernelLayout):
            raise InputError(f"layouts[{pasted(pattern)}] is {layout!r}, expected a KernelLayout")
        paths = [known[name][0] for name in select.matching([pattern], known, "array or module")]
        left = [path for path in paths if path not in chosen]
        if not left:
            what = f"all arrays that {pasted(pattern)} matches are matched by patterns before it"
            raise InputError(f"layouts: {what}; put it in front of them")
        chosen |= dict.fromkeys(left, layout)
    return chosen


def check_floating(field: str, path: str, leaf: Any) -> None:
    """Raises InputError if a matched array cannot train, or an update cannot be added to it."""
    if not is_floating(leaf):
        raise InputError(f"{field} matches {path}, {in_words(leaf)}; expected floating point of 16 bits or more")
