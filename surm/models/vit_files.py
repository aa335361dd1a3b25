"""The files of ViT and of CLIP's vision tower on Hugging Face, and their entry in the catalogue."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from surm.models import hf_fields, lazy
from surm.models.architecture import LABELS, Architecture, reads_another_pooling
from surm.models.lazy import Named
from surm.models.naming import Naming, named
from surm.models.tables import HF_CLIP, HF_VIT
from surm.models.vit import PRESETS, ViT, ViTConfig, resize_positions

_VIT = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "image_size": 224, "patch_size": 16, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip
_CLIP = {**_VIT, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_KINDS = {
    "vit": _VIT, "clip": _CLIP, "clip_vision_model": _CLIP, "vit_msn": {**_VIT, "layer_norm_eps": 1e-6},
    "vit_mae": _VIT, "chinese_clip": _CLIP, "chinese_clip_vision_model": _CLIP, "metaclip_2": _CLIP,
    "metaclip_2_vision_model": _CLIP,
}  # fmt: skip


def _from_hf(kind: str, fields: dict[str, Any]) -> ViTConfig:
    plain = kind.startswith("vit")
    return ViTConfig(
        image_size=hf_fields.whole(fields, "image_size"),
        patch_size=hf_fields.whole(fields, "patch_size"),
        channels=hf_fields.whole(fields, "num_channels"),
        embedding_norm=not plain,
        patch_bias=plain,
        **hf_fields.blocks(fields),
    )


def _to_hf(config: ViTConfig) -> dict[str, Any]:
    return hf_fields.of_blocks(config) | {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
    }


def _kind_of(config: ViTConfig) -> str:
    return "vit" if config.patch_bias and not config.embedding_norm else "clip_vision_model"


def _obstacle(config: ViTConfig, theirs: str) -> str | None:
    return reads_another_pooling(config, theirs, "class", "the first token alone")


def resized_positions(arrays: Named, config: ViTConfig) -> Named:
    """Resizes the positions of a file if the model has another grid of patches.

    Args:
      arrays: the arrays of the file, under surm's paths.
      config: the configuration of the model.

    Returns:
      The arrays, with `embed.position` resized. They are unchanged if the rows of `embed.position` do not form a square
      grid; `restore` then reports its shape.
    """
    position = arrays.get("embed.position")
    extra = int(config.pooling == "class")
    if position is None or position.ndim != 2:
        return arrays
    patches = len(position) - extra
    # If only the file or only the model has a class token, the rows form no square, and the mismatch is reported.
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        return arrays
    resized = resize_positions(jnp.asarray(position, jnp.float32), config.grid, extra)
    return lazy.of(arrays) | {"embed.position": np.asarray(resized)}


ARCHITECTURE = Architecture(
    name="ViT",
    reads="image",
    model=ViT,
    shape=ViTConfig,
    presets=PRESETS,
    kinds=_KINDS,
    from_hf=_from_hf,
    to_hf=_to_hf,
    kind_of=_kind_of,
    read_only={"clip_vision_model": "CLIP's vision tower"},
    tables=(HF_VIT, HF_CLIP),
    namings={"vit": named(Naming(HF_VIT, "vit.", r"encoder\..*"), Naming(HF_VIT, "vit.", r"layers\..*"))},
    classes={"vit": {LABELS: "ViTForImageClassification"}},
    obstacle=_obstacle,
    encoder_alone=False,  # the encoder of a model without a class token has other positions than transformers'
    restored=resized_positions,
)
