"""The files of DINOv2, with and without registers, on Hugging Face, and its entry in the catalogue."""

import dataclasses
import re
from typing import Any

import numpy as np

from surm.errors import InputError
from surm.models import hf_fields
from surm.models.architecture import LABELS, Architecture
from surm.models.dinov2 import PRESETS, Dinov2, Dinov2Config
from surm.models.naming import Naming, named
from surm.models.tables import BODY, Joint, Rule, Table, linear, norm, patch_map, rows
from surm.models.weights import Weights

_DINOV2 = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "mlp_ratio": 4, "hidden_act": "gelu",
    "layer_norm_eps": 1e-6, "image_size": 224, "patch_size": 14, "num_channels": 3, "use_swiglu_ffn": False,
}  # fmt: skip
_KINDS = {"dinov2": _DINOV2, "dinov2_with_registers": {**_DINOV2, "patch_size": 16, "num_register_tokens": 4}}
_JOINT, _APART = r"(.*\.mlp)\.weights_in\.(weight|bias)", ("gate_proj", "up_proj")


def _apart(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits `weights_in`, the stacked arrays of gate and up projection in a file, into the two."""
    found = {}
    for key, array in arrays.items():
        if match := re.fullmatch(_JOINT, key):
            halves = np.split(array, 2) if len(array) % 2 == 0 else [array]
            found |= {f"{match[1]}.{name}.{match[2]}": half for name, half in zip(_APART, halves, strict=False)}
        else:
            found[key] = array
    return found


_LAYER = r"encoder\.layer\.(\d+)"
TABLE = Table(
    name="Hugging Face DINOv2",
    prefix=r"dinov2(?:_with_registers)?\.",
    marker=r"encoder\.layer\.\d+\.layer_scale1\.lambda1",
    ignored=r"embeddings\.mask_token",  # of pretraining
    body=rf"{BODY}|(?:embeddings|encoder|layernorm)\b.*",
    rules=(
        rows(r"embeddings\.cls_token", "embed.class_token"),
        rows(r"embeddings\.register_tokens", "embed.registers"),
        rows(r"embeddings\.position_embeddings", "embed.position"),
        patch_map(r"embeddings\.patch_embeddings\.projection"),
        Rule(r"embeddings\.patch_embeddings\.projection\.bias", "embed.patch.bias"),
        *norm(rf"{_LAYER}\.norm1", r"blocks.\1.norm1"),
        *norm(rf"{_LAYER}\.norm2", r"blocks.\1.norm2"),
        Rule(rf"{_LAYER}\.layer_scale1\.lambda1", r"blocks.\1.scale1.scale"),
        Rule(rf"{_LAYER}\.layer_scale2\.lambda1", r"blocks.\1.scale2.scale"),
        # as saved by transformers 4, and by 5 for compatibility
        *linear(rf"{_LAYER}\.attention\.attention\.query", r"blocks.\1.attention.query"),
        *linear(rf"{_LAYER}\.attention\.attention\.key", r"blocks.\1.attention.key"),
        *linear(rf"{_LAYER}\.attention\.attention\.value", r"blocks.\1.attention.value"),
        *linear(rf"{_LAYER}\.attention\.output\.dense", r"blocks.\1.attention.output"),
        *linear(rf"{_LAYER}\.mlp\.weights_out", r"blocks.\1.mlp.down"),
        # as transformers 5 names its modules
        *linear(rf"{_LAYER}\.attention\.q_proj", r"blocks.\1.attention.query"),
        *linear(rf"{_LAYER}\.attention\.k_proj", r"blocks.\1.attention.key"),
        *linear(rf"{_LAYER}\.attention\.v_proj", r"blocks.\1.attention.value"),
        *linear(rf"{_LAYER}\.attention\.o_proj", r"blocks.\1.attention.output"),
        *linear(rf"{_LAYER}\.mlp\.gate_proj", r"blocks.\1.mlp.gate"),
        *linear(rf"{_LAYER}\.mlp\.up_proj", r"blocks.\1.mlp.up"),
        *linear(rf"{_LAYER}\.mlp\.down_proj", r"blocks.\1.mlp.down"),
        # as both versions do for an MLP without a gate
        *linear(rf"{_LAYER}\.mlp\.fc1", r"blocks.\1.mlp.up"),
        *linear(rf"{_LAYER}\.mlp\.fc2", r"blocks.\1.mlp.down"),
        *norm("layernorm", "norm"),
        *linear("classifier", "head"),
    ),
    apart=_apart,
    together=Joint("weights_in", _APART).join,
)


def _absent(config: Dinov2Config) -> str:
    return r".*\.mlp\.fc[12]\..*" if config.gated else r".*\.mlp\.(?:gate_proj|up_proj|down_proj|weights_out)\..*"


def _names(kind: str):
    old = r".*\.attention\.(?:attention|output)\..*|.*\.weights_out\..*"
    new = r".*\.attention\.[qkvo]_proj\..*|.*\.down_proj\..*"
    joint = r"|.*\.(?:gate_proj|up_proj)\..*"  # a single layer in transformers 4; `together` joins them for files
    of_files = Naming(TABLE, f"{kind}.", new)
    return named(Naming(TABLE, f"{kind}.", old), of_files._replace(foreign=new + joint), of_files)


def _from_hf(kind: str, fields: dict[str, Any]) -> Dinov2Config:
    size, patch = hf_fields.whole(fields, "image_size"), hf_fields.whole(fields, "patch_size")
    gated = fields["use_swiglu_ffn"]
    if not isinstance(gated, bool):
        raise InputError(f"config.json says use_swiglu_ffn={gated!r}; expected true or false")
    hf_fields.positive(fields, "mlp_ratio")
    return Dinov2Config(
        image_size=size,
        patch_size=patch,
        width=hf_fields.whole(fields, "hidden_size"),
        depth=hf_fields.whole(fields, "num_hidden_layers"),
        heads=hf_fields.whole(fields, "num_attention_heads"),
        mlp_ratio=fields["mlp_ratio"],
        channels=hf_fields.whole(fields, "num_channels"),
        positions=size // patch,
        registers=hf_fields.whole(fields, "num_register_tokens") if kind == "dinov2_with_registers" else 0,
        gated=gated,
        activation=hf_fields.activation(fields),
        epsilon=hf_fields.positive(fields, "layer_norm_eps"),
    )


def _to_hf(config: Dinov2Config) -> dict[str, Any]:
    of_kind = {"num_register_tokens": config.registers} if config.registers else {"use_mask_token": False}
    return of_kind | {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "hidden_act": hf_fields.their_activation(config.activation),
        "layer_norm_eps": config.epsilon,
        "image_size": config.positions * config.patch_size,  # that of the table; the processor's file has the images'
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "use_swiglu_ffn": config.gated,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
    }


def _kind_of(config: Dinov2Config) -> str:
    return "dinov2_with_registers" if config.registers else "dinov2"


def _obstacle(config: Dinov2Config, theirs: str) -> str | None:
    if config.pooling == "class_and_mean":
        return None
    both = "the class token and the mean of the patches"
    return f"the model's head reads only the {config.pooling} (pooling={config.pooling!r}), that of {theirs} {both}"


def _as_processed(config: Dinov2Config, weights: Weights) -> Dinov2Config:
    """The configuration with the image size of the processor, for which transformers interpolates the positions.

    It is unchanged if there is no processor, or if the patch size does not divide that size.
    """
    made = weights.processor.made if weights.processor else 0
    return dataclasses.replace(config, image_size=made) if made and made % config.patch_size == 0 else config


ARCHITECTURE = Architecture(
    name="DINOv2",
    reads="image",
    model=Dinov2,
    shape=Dinov2Config,
    presets=PRESETS,
    kinds=_KINDS,
    passed_over=(
        "layerscale_value", "drop_path_rate", "apply_layernorm", "reshape_hidden_states", "out_features", "out_indices",
        "_out_features", "_out_indices", "stage_names", "use_mask_token",
    ),
    from_hf=_from_hf,
    to_hf=_to_hf,
    kind_of=_kind_of,
    tables=(TABLE,),
    namings={kind: _names(kind) for kind in _KINDS},
    absent=_absent,
    classes={
        "dinov2": {LABELS: "Dinov2ForImageClassification"},
        "dinov2_with_registers": {LABELS: "Dinov2WithRegistersForImageClassification"},
    },
    obstacle=_obstacle,
    beside=_as_processed,
)  # fmt: skip
