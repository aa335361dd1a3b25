"""PEFT's LoRA as the family low_rank: ΔW = α/r · B A, with A (r, n_in) and B (n_out, r); scale = α/r.

PEFT's DoRA (`use_dora`, weight decomposition) is surm's `magnitude`: lora_magnitude_vector (n_out,).

Source: peft.tuners.lora; LoRA, arXiv 2106.09685; α/√r: arXiv 2312.03732; DoRA: arXiv 2402.09353.
"""

import math
from typing import Any

import numpy as np

from surm.errors import InputError
from surm.exchange.updates import Tensors, Update, number_for, one_dropout, rate, take, usual, whole

PREFIX = "lora_"
FAMILIES = ("low_rank",)
READS = {
    "r": 8, "lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False,
    "lora_dropout": 0.0,
}  # fmt: skip
TRAINING = (
    "eva_config", "corda_config", "lora_ga_config", "loftq_config",  # about initial values, which ACCEPTS decides on
    "megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying",  # about layers that are not linear
    "fan_in_fan_out",  # PEFT switches it off for linear layers
    "merge_weights",  # of PEFT before 0.3, where it says when to merge
)  # fmt: skip
ACCEPTS = {
    "bias": ("none", "all", "lora_only"), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "mica"),
    "use_rslora": (False, True, None), "use_dora": (False, True, None),
}  # fmt: skip
REASONS = {
    "init_lora_weights": "these initial values change the frozen weights too; PEFT's save_pretrained with "
    "path_initial_model_for_weight_conversion makes a LoRA for the original base",
    "lora_bias": "merge it in PEFT",
    "trainable_token_indices": "merge it in PEFT, which puts the rows into the embedding",
}
"""The reasons why some fields are not supported, each with a remedy."""
_MAGNITUDE = "lora_magnitude_vector"


def write(updates: dict[str, Update]) -> tuple[dict[str, Any], Tensors]:
    """Writes updates of the family low_rank as fields of the config and tensors.

    Args:
      updates: the updates by module.

    Returns:
      The fields, and the tensors by module.

    Raises:
      InputError: if only some of the layers have a magnitude.
    """
    rank, ranks = usual({module: len(update.params["a"]) for module, update in updates.items()})
    alpha, alphas = usual({module: whole(update.scale * len(update.params["a"])) for module, update in updates.items()})
    magnitudes = {update.magnitude is not None for update in updates.values()}
    if len(magnitudes) > 1:
        raise InputError(
            "only some layers have magnitude=True, but PEFT's use_dora applies to all. surm.export_merged writes "
            "the whole model"
        )
    dropout = one_dropout(updates)
    fields = {
        "r": rank, "rank_pattern": ranks, "lora_alpha": alpha, "alpha_pattern": alphas, "use_rslora": False,
        "use_dora": magnitudes.pop(), "lora_dropout": dropout, "bias": "none", "fan_in_fan_out": False,
        "init_lora_weights": True,
    }  # fmt: skip
    return fields, {module: _tensors(update) for module, update in updates.items()}


def _tensors(update: Update) -> dict[str, np.ndarray]:
    named = {"lora_A.weight": update.params["a"], "lora_B.weight": update.params["b"]}
    return named if update.magnitude is None else named | {_MAGNITUDE: update.magnitude}


def read(config: dict[str, Any], tensors: Tensors) -> dict[str, Update]:
    """Reads a config and its tensors as updates of the family low_rank.

    Args:
      config: PEFT's JSON, with its options already checked.
      tensors: the tensors by module.

    Returns:
      The updates by module.

    Raises:
      InputError: if a field or a tensor does not belong to LoRA on a linear layer.
    """
    dropout = rate(config, "lora_dropout")
    return {module: _read(config, module, given, dropout) for module, given in tensors.items()}


def _read(config: dict[str, Any], module: str, given: dict[str, np.ndarray], dropout: float) -> Update:
    magnitude = ()
    if config.get("use_dora"):
        if _MAGNITUDE not in given:
            raise InputError(f"the config says use_dora, but {module} has no {_MAGNITUDE}")
        magnitude = take(module, {_MAGNITUDE: given[_MAGNITUDE]}, _MAGNITUDE, axes=1)
        given = {key: array for key, array in given.items() if key != _MAGNITUDE}
    a, b = take(module, given, "lora_A.weight", "lora_B.weight")
    if len(a) != b.shape[1] or any(len(vector) != len(b) for vector in magnitude):
        shapes = ", ".join(str(array.shape) for array in (a, b, *magnitude))
        raise InputError(f"{module} has LoRA tensors of shapes {shapes}, which do not fit together")
    if (rank := number_for(config, "r", len(a), "rank_pattern", module)) != len(a):
        raise InputError(f"{module} has LoRA tensors of rank {len(a)}, but its config says {rank:g}")
    alpha = number_for(config, "lora_alpha", READS["lora_alpha"], "alpha_pattern", module)
    scale = alpha / (math.sqrt(len(a)) if config.get("use_rslora") else len(a))
    options = {"rank": len(a)}
    return Update("low_rank", options, {"a": a, "b": b}, len(b), a.shape[1], scale, dropout, *magnitude)
