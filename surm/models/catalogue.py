"""The list of architectures, and functions that look one up.

A new architecture is a file in this folder that defines its `Architecture`, and an entry in `ARCHITECTURES`.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from surm.errors import InputError
from surm.models import bert_files, decoder_files, dinov2_files, distilbert, vit_files
from surm.models.architecture import Architecture
from surm.models.presets import named

ARCHITECTURES: tuple[Architecture, ...] = (
    vit_files.ARCHITECTURE,
    bert_files.ARCHITECTURE,
    distilbert.ARCHITECTURE,
    dinov2_files.ARCHITECTURE,
    decoder_files.ARCHITECTURE,
)
"""All architectures; of two with similar published files, the more special one comes later."""

BY_KIND: Mapping[str, Architecture] = {kind: one for one in ARCHITECTURES for kind in one.kinds}
"""All architectures by the `model_type` in a config.json."""


def find(model: nnx.Module) -> Architecture | None:
    """The architecture of a model; None if the model is not one of surm's."""
    return next((one for one in ARCHITECTURES if isinstance(model, one.model)), None)


def of(model: nnx.Module) -> Architecture:
    """The architecture of a model; raises InputError if the model is not one of surm's."""
    if found := find(model):
        return found
    known = " or ".join(f"a {one.model.__name__}" for one in ARCHITECTURES)
    raise InputError(f"given a {type(model).__name__}, expected {known}")


def of_shape(shape: Any) -> Architecture:
    """The architecture of a configuration; raises InputError if the configuration is of none of surm's models."""
    if found := next((one for one in ARCHITECTURES if isinstance(shape, one.shape)), None):
        return found
    known = " or ".join(f"a {one.shape.__name__}" for one in ARCHITECTURES)
    raise InputError(f"given a {type(shape).__name__}, expected {known}")


def presets(reads: str) -> Mapping[str, Any]:
    """The presets of all architectures that read a kind of example (`image`, `text`, `language`), by name."""
    return {name: shape for one in ARCHITECTURES if one.reads == reads for name, shape in one.presets.items()}


def preset(name: str, reads: str) -> Any:
    """Looks up a preset.

    Args:
      name: the name of the preset.
      reads: the kind of example that the model must read: `image`, `text` or `language`.

    Returns:
      The configuration.

    Raises:
      InputError: if no architecture that reads such examples has that preset; the nearest are named.
    """
    return named(name, presets(reads))
