"""Blocks of a run's model that are scanned: which they are, and the two forms of a state, packed and by path."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
from flax import nnx

from surm.errors import InputError
from surm.models import scanned
from surm.models.scanned import Layout, Run

_AUTO_FROM = 4  # blocks; with fewer, little is gained


def arrange(config: ml_collections.ConfigDict, model: nnx.Module) -> None:
    """Decides which blocks of a model are scanned, as `config.model.scan` asks for; the model is changed in place.

    Args:
      config: a run's configuration.
      model: a model with its adapter.

    Raises:
      InputError: if the blocks of such a model cannot be scanned.
    """
    asked = config.model.scan
    if asked == "always" and not hasattr(model, "runs"):
        raise InputError(f"config.model.scan='always', but the blocks of a {type(model).__name__} cannot be scanned; "
                         "expected auto or never")  # fmt: skip
    if not hasattr(model, "runs") or asked == "never":
        return
    if asked == "always" or len(model.blocks) >= _AUTO_FROM:
        model.scan()


def runs(model: nnx.Module) -> tuple[Run, ...]:
    """The runs of blocks that are scanned; empty if none are."""
    return tuple(Run(*run) for run in getattr(model, "runs", ()))


class Packing(NamedTuple):
    """Two functions of a training state, on a device or not: one stacks the arrays of scanned blocks, one undoes it.

    Attributes:
      layout: the arrays that are stacked; empty if none are.
      pack: stacks the trained arrays, and everything that is kept for each of them.
      unpack: the inverse.
    """

    layout: Layout
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def packing(of: Layout, paths: frozenset[str]) -> Packing:
    """The two functions for one model.

    Args:
      of: the arrays to stack; with none, both functions return a state as it is.
      paths: the paths of all trained arrays.

    Returns:
      Both functions.
    """
    if not of:
        return Packing(of, lambda state: state, lambda state: state)
    few = frozenset(scanned.packed(dict.fromkeys(paths), of))
    return Packing(
        of,
        lambda state: _each(lambda arrays: scanned.packed(arrays, of), paths, state),
        lambda state: _each(lambda arrays: scanned.unpacked(arrays, of), few, state),
    )


def _each(function: Callable[[dict[str, Any]], dict[str, Any]], paths: frozenset[str], state: Any) -> Any:
    """Applies a function to every dictionary in a state that has the given keys."""
    is_one = lambda node: isinstance(node, dict) and node.keys() == paths  # noqa: E731
    return jax.tree.map(lambda node: function(node) if is_one(node) else node, state, is_leaf=is_one)
