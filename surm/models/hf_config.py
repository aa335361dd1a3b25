"""What a Hugging Face config.json says of a model's shape."""

import math

from surm.errors import InputError, nearest
from surm.models import hf_fields
from surm.models.bert import BertConfig
from surm.models.vit import ViTConfig

_VIT = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "image_size": 224, "patch_size": 16, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip
_CLIP = {**_VIT, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_BERT = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}  # fmt: skip
_ROBERTA = {**_BERT, "vocab_size": 50265, "pad_token_id": 1}
_XLM = {**_ROBERTA, "vocab_size": 30522}
_ELECTRA = {**_BERT, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "embedding_size": 128}
# A published config.json leaves out what equals the publisher's default. Several kinds are one architecture.
HF_DEFAULTS: dict[str, dict] = {
    "vit": _VIT, "clip": _CLIP, "clip_vision_model": _CLIP, "bert": _BERT, "roberta": _ROBERTA, "xlm-roberta": _XLM,
    "camembert": _XLM, "data2vec-text": _XLM, "ernie": _BERT, "electra": _ELECTRA,
    "vit_msn": {**_VIT, "layer_norm_eps": 1e-6}, "vit_mae": _VIT, "chinese_clip": _CLIP,
    "chinese_clip_vision_model": _CLIP, "metaclip_2": _CLIP, "metaclip_2_vision_model": _CLIP,
}  # fmt: skip
_VITS = ("vit", "vit_msn", "vit_mae")
HF_ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "quick_gelu": "quick_gelu",
    "relu": "relu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh", "gelu_accurate": "gelu_tanh", "gelu_10": "gelu_10", "silu": "silu",
    "swish": "silu", "tanh": "tanh", "sigmoid": "sigmoid", "mish": "mish", "relu2": "relu2", "relu6": "relu6",
    "leaky_relu": "leaky_relu", "hardswish": "hardswish", "linear": "identity", "laplace": "laplace",
    "sqrtsoftplus": "sqrtsoftplus",
}  # fmt: skip
"""The spellings of transformers 5.23 (its ACT2CLS), but for prelu and xielu, which have weights of their own."""


def config_from_hf(config: dict) -> ViTConfig | BertConfig:
    """Reads the shape of a ViT, of CLIP's vision tower, of a BERT or of a RoBERTa from a Hugging Face config.json.

    Fields that are not known, which transformers passes over too, are said in a line.

    Args:
      config: the JSON object; a whole CLIP's holds the tower under "vision_config".

    Returns:
      The configuration that the weights beside that file fit.

    Raises:
      InputError: if the model type, the activation or a value is not supported, or the model has code of its own.

    Examples:
      >>> config_from_hf({"model_type": "vit", "hidden_size": 384, "num_attention_heads": 6}).width
      384
      >>> config_from_hf({"model_type": "roberta"}).first_position
      2
    """
    kind = _known(config, "model_type", HF_DEFAULTS)
    given = {**config, **_tower(config)}
    hf_fields.check(given)
    fields = {**HF_DEFAULTS[kind], **{key: value for key, value in given.items() if value is not None}}
    return _bert(kind, fields) if "vocab_size" in HF_DEFAULTS[kind] else _vit(kind, fields)


def _vit(kind: str, fields: dict) -> ViTConfig:
    return ViTConfig(
        image_size=_whole(fields, "image_size"),
        patch_size=_whole(fields, "patch_size"),
        channels=_whole(fields, "num_channels"),
        embedding_norm=kind not in _VITS,
        patch_bias=kind in _VITS,
        **_blocks(fields),
    )


def _bert(kind: str, fields: dict) -> BertConfig:
    padding_first = "pad_token_id" in HF_DEFAULTS[kind]  # positions are counted from behind that of padding
    if kind == "electra" and fields["embedding_size"] != fields["hidden_size"]:
        given = f"embedding_size={fields['embedding_size']!r}, hidden_size={fields['hidden_size']!r}"
        raise InputError(f"config.json says {given}; expected both alike, as in ELECTRA base")
    return BertConfig(
        vocabulary=_whole(fields, "vocab_size"),
        positions=_whole(fields, "max_position_embeddings"),
        first_position=1 + _whole(fields, "pad_token_id", least=0) if padding_first else 0,
        segments=_whole(fields, "type_vocab_size"),
        kind=kind,
        **_blocks(fields),
    )


def _blocks(fields: dict) -> dict[str, int | float | str]:
    """The shape of the blocks, which every Transformer states alike."""
    return {
        "width": _whole(fields, "hidden_size"),
        "depth": _whole(fields, "num_hidden_layers"),
        "heads": _whole(fields, "num_attention_heads"),
        "mlp_width": _whole(fields, "intermediate_size"),
        "activation": HF_ACTIVATIONS[_known(fields, "hidden_act", HF_ACTIVATIONS)],
        "epsilon": _positive(fields, "layer_norm_eps"),
    }


def _known(fields: dict, key: str, known: dict[str, object]) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or value not in known:
        expected = (
            f"another, {nearest(value, known)}" if isinstance(value, str) and len(known) > 20 else " or ".join(known)
        )
        raise InputError(f"config.json says {key}={value!r}; expected {expected}")
    return value


def _tower(config: dict) -> dict:
    parts = [config.get(key) or {} for key in ("vision_config", "vision_config_dict")]
    if not all(isinstance(part, dict) for part in parts):
        raise InputError("config.json has a vision_config that is not an object")
    return {**parts[0], **parts[1]}


def _positive(fields: dict, key: str) -> float:
    value = fields[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputError(f"config.json says {key}={value!r}; expected a number above 0")
    return float(value)


def _whole(fields: dict, key: str, least: int = 1) -> int:
    value = fields[key]
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]  # height and width
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"config.json says {key}={fields[key]!r}; expected a whole number from {least}")
    return value
