"""Reads the shape of a model from a Hugging Face config.json."""

from typing import Any

from surm.errors import InputError, nearest
from surm.models import catalogue, hf_fields
from surm.models.architecture import LANGUAGE, Architecture
from surm.models.weights import Weights

# The default values of fields, which a published config.json may leave out. Several kinds share an architecture.
HF_DEFAULTS: dict[str, dict[str, Any]] = {
    kind: dict(fields) for one in catalogue.ARCHITECTURES for kind, fields in one.kinds.items()
}


def shape_of(weights: Weights | None, reads: str) -> Any:
    """The shape that opened weights describe; None if they describe none.

    Args:
      weights: the weights.
      reads: the kind of example that the model is to read: `image`, `text` or `language`.

    Returns:
      See `config_from_hf`.

    Raises:
      InputError: as `config_from_hf`, with the name of the weights.
    """
    if weights is None or not weights.config:
        return None
    try:
        return config_from_hf(weights.config, reads)
    except InputError as error:
        raise InputError(f"{weights.name!r}: {error}") from error


def config_from_hf(config: dict, reads: str | None = None) -> Any:
    """Reads the shape of a model from a Hugging Face config.json.

    Unknown fields are ignored, as transformers does, and reported.

    Args:
      config: the JSON object; that of a whole CLIP model holds the vision tower under "vision_config".
      reads: the kind of example that the model is to read; a message about an unknown model proposes only such models.

    Returns:
      The configuration of the model, whose class depends on the `model_type`: a `ViTConfig`, a `DecoderConfig`, ...

    Raises:
      InputError: if the model type, the activation or a value is not supported, or the model comes with its own code.

    Examples:
      >>> config_from_hf({"model_type": "vit", "hidden_size": 384, "num_attention_heads": 6}).width
      384
      >>> config_from_hf({"model_type": "roberta"}).first_position
      2
    """
    kind = hf_fields.known(config, "model_type", HF_DEFAULTS, _expected(config.get("model_type"), reads))
    architecture = catalogue.BY_KIND[kind]
    given = {**config, **_tower(config)}
    excused = ("auto_map",) if kind in architecture.own_code else ()
    hf_fields.check(given, (*_shape_fields(architecture), *architecture.passed_over), excused)
    said = {key for key, value in given.items() if value is not None or key in architecture.null_is_none}
    fields = {**HF_DEFAULTS[kind], **{key: given[key] for key in said}}
    return architecture.from_hf(kind, fields)


def _expected(kind: Any, reads: str | None) -> str:
    """The kinds that read such examples: those with a name like that of an unknown one, else all; for a message."""
    fitting = [kind for kind, one in catalogue.BY_KIND.items() if reads in (None, one.reads)]
    near = nearest(kind, fitting) if isinstance(kind, str) else ""
    return f"another, {near}" if near.startswith("nearest") else " or ".join(fitting)


def _shape_fields(architecture: Architecture) -> set[str]:
    """The fields that determine a shape of this architecture or of others that are built like it.

    A field of one kind is ignored in the file of another, as transformers does. Encoders and decoders have fields
    apart: rotary positions in a BERT's file mean that the model is no BERT, and are reported.
    """
    alike = [one for one in catalogue.ARCHITECTURES if (one.reads == LANGUAGE) == (architecture.reads == LANGUAGE)]
    return {field for one in alike for fields in one.kinds.values() for field in fields}


def _tower(config: dict) -> dict:
    parts = [config.get(key) or {} for key in ("vision_config", "vision_config_dict")]
    if not all(isinstance(part, dict) for part in parts):
        raise InputError("config.json has a vision_config that is not an object")
    return {**parts[0], **parts[1]}
