"""What a Hugging Face config.json says of a model's shape."""

from typing import Any

from surm.errors import InputError
from surm.models import catalogue, hf_fields

# A published config.json leaves out what equals the publisher's default. Several kinds are one architecture.
HF_DEFAULTS: dict[str, dict[str, Any]] = {
    kind: dict(fields) for one in catalogue.ARCHITECTURES for kind, fields in one.kinds.items()
}


def config_from_hf(config: dict) -> Any:
    """Reads the shape of a model from a Hugging Face config.json.

    Fields that are not known, which transformers passes over too, are said in a line.

    Args:
      config: the JSON object; a whole CLIP's holds the tower under "vision_config".

    Returns:
      The configuration that the weights beside that file fit, of the class that `surm.models.catalogue` has for its
      `model_type`: a `ViTConfig`, a `BertConfig`, ...

    Raises:
      InputError: if the model type, the activation or a value is not supported, or the model has code of its own.

    Examples:
      >>> config_from_hf({"model_type": "vit", "hidden_size": 384, "num_attention_heads": 6}).width
      384
      >>> config_from_hf({"model_type": "roberta"}).first_position
      2
    """
    kind = hf_fields.known(config, "model_type", HF_DEFAULTS)
    architecture = catalogue.BY_KIND[kind]
    given = {**config, **_tower(config)}
    hf_fields.check(given, (*_SHAPE, *architecture.passed_over))
    fields = {**HF_DEFAULTS[kind], **{key: value for key, value in given.items() if value is not None}}
    return architecture.from_hf(kind, fields)


# What decides on the shape of one kind means nothing in the file of another, as transformers sees it too.
_SHAPE = {field for fields in HF_DEFAULTS.values() for field in fields}


def _tower(config: dict) -> dict:
    parts = [config.get(key) or {} for key in ("vision_config", "vision_config_dict")]
    if not all(isinstance(part, dict) for part in parts):
        raise InputError("config.json has a vision_config that is not an object")
    return {**parts[0], **parts[1]}
