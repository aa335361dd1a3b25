"""The architectures that surm has: one entry each, and how one is found.

A new architecture is a file beside this one, which ends in its `Architecture`, and an entry here.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from surm.errors import InputError, nearest
from surm.models import bert_files, dinov2_files, distilbert, vit_files
from surm.models.architecture import Architecture

ARCHITECTURES: tuple[Architecture, ...] = (
    vit_files.ARCHITECTURE,
    bert_files.ARCHITECTURE,
    distilbert.ARCHITECTURE,
    dinov2_files.ARCHITECTURE,
)
"""Every architecture; of two whose published files look alike, the more special one comes later."""

BY_KIND: Mapping[str, Architecture] = {kind: one for one in ARCHITECTURES for kind in one.kinds}
"""Every architecture by the `model_type` in a config.json."""


def find(model: nnx.Module) -> Architecture | None:
    """The architecture of a model; None for a model that is none of ours."""
    return next((one for one in ARCHITECTURES if isinstance(model, one.model)), None)


def of(model: nnx.Module) -> Architecture:
    """The architecture of a model; InputError for a model that is none of ours."""
    if found := find(model):
        return found
    known = " or ".join(f"a {one.model.__name__}" for one in ARCHITECTURES)
    raise InputError(f"given a {type(model).__name__}, expected {known}")


def of_shape(shape: Any) -> Architecture:
    """The architecture of a configuration, whose class is the field `shape` of an entry."""
    return next(one for one in ARCHITECTURES if isinstance(shape, one.shape))


def presets(reads: str) -> Mapping[str, Any]:
    """The presets of all architectures that read a kind of example, `image` or `text`, by name."""
    return {name: shape for one in ARCHITECTURES if one.reads == reads for name, shape in one.presets.items()}


def preset(name: str, reads: str) -> Any:
    """Looks a preset up.

    Args:
      name: of a preset.
      reads: the kind of example that it is to read, `image` or `text`.

    Returns:
      The configuration.

    Raises:
      InputError: if no architecture that reads such examples has that preset; the nearest are named.
    """
    known = presets(reads)
    if name not in known:
        raise InputError(f"no model is called {name!r}; {nearest(name, known)}")
    return known[name]
