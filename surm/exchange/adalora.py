"""PEFT's AdaLoRA as the family adalora: ΔW = α/(r + 10⁻⁵) · B diag(E) A, with r = init_r for every layer.

    PEFT     lora_A (r', n_in),   lora_B (n_out, r'),   lora_E (r', 1)
    surm     a (r', n_in),        b (n_out, r'),        e (r',)             times scale = α/(init_r + 10⁻⁵)

A layer that has lost components keeps r' of its init_r. `rank_pattern` marks under MODULE.lora_E, by true and false,
which ones it keeps, and the tensors have r' rows. The scale does not depend on r'. A layer without components has no
update.

Source: peft.tuners.adalora; AdaLoRA, arXiv 2303.10512.
"""

import math
from typing import Any

import numpy as np

from surm.errors import InputError
from surm.exchange.updates import Tensors, Update, number_of, one_dropout, rate, refuse_magnitude, take, usual

PREFIX = "lora_"
FAMILIES = ("adalora",)
READS = {"lora_alpha": 8, "init_r": 12, "target_r": 8, "rank_pattern": None, "lora_dropout": 0.0}
TRAINING = (
    "init_lora_weights", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step",
    "r", "alpha_pattern", "use_rslora",  # fields of LoRA that PEFT's AdaLoRA has but does not read
    "fan_in_fan_out",  # PEFT switches it off for linear layers
    "lora_bias", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core",
    "qalora_group_size", "ensure_weight_tying",
)  # fmt: skip
ACCEPTS = {"bias": ("none", "all", "lora_only"), "use_dora": (False, None)}
_SMALL = 1e-5  # PEFT adds this to r


def write(updates: dict[str, Update]) -> tuple[dict[str, Any], Tensors]:
    """Writes updates of the family adalora as fields of the config and tensors.

    PEFT has one α for all layers, so differences between scales are folded into E. Components that are switched off are
    written unchanged, with 0 in E.

    Args:
      updates: the updates by module.

    Returns:
      The fields, and the tensors by module.

    Raises:
      InputError: if an update has a magnitude.
    """
    refuse_magnitude(updates, "AdaLoRA")
    ranks = {module: len(update.params["e"]) for module, update in updates.items()}
    initial = max(ranks.values())
    scale, _ = usual({module: update.scale for module, update in updates.items()})
    alpha = _alpha(scale, initial)
    dropout = one_dropout(updates)
    left, _ = usual({module: update.options["rank"] for module, update in updates.items()})
    fields = {
        "lora_alpha": alpha, "init_r": initial, "target_r": left, "lora_dropout": dropout, "bias": "none",
        "rank_pattern": _rank_pattern(ranks, initial), "init_lora_weights": True, "fan_in_fan_out": False,
        "tinit": 0, "tfinal": 0, "total_step": 1,  # PEFT requires these fields
    }  # fmt: skip
    return fields, {module: _tensors(update, alpha / (initial + _SMALL)) for module, update in updates.items()}


def _alpha(scale: float, initial: int) -> float | int:
    """The α of a scale, so that E stays unchanged, rounded to a whole number if it is one up to rounding errors."""
    exact = scale * (initial + _SMALL) if scale > 0 else initial
    return round(exact) if math.isclose(exact, round(exact), rel_tol=1e-9) else exact


def _rank_pattern(ranks: dict[str, int], initial: int) -> dict[str, list[bool]] | None:
    if set(ranks.values()) == {initial}:
        return None
    return {f"{module}.lora_E": [place < rank for place in range(initial)] for module, rank in ranks.items()}


def _tensors(update: Update, scale: float) -> dict[str, np.ndarray]:
    gates = np.float32(update.scale / scale) * update.params["e"]
    return {"lora_A": update.params["a"], "lora_B": update.params["b"], "lora_E": gates[:, None]}


def read(config: dict[str, Any], tensors: Tensors) -> dict[str, Update]:
    """Reads a config and its tensors as updates of the family adalora; a layer without components has none.

    Args:
      config: PEFT's JSON, with its options already checked.
      tensors: the tensors by module.

    Returns:
      The updates by module.

    Raises:
      InputError: if a field or a tensor does not belong to AdaLoRA on a linear layer.
    """
    initial, alpha = number_of(config, "init_r", READS["init_r"]), number_of(config, "lora_alpha", READS["lora_alpha"])
    if initial < 1 or initial != int(initial):
        raise InputError(f"init_r={initial:g} in the adapter's config, expected a whole number of at least 1")
    scale = (alpha if alpha > 0 else initial) / (initial + _SMALL)
    target, dropout = number_of(config, "target_r", READS["target_r"]), rate(config, "lora_dropout")
    patterns = _patterns(config)
    updates = {}
    for module, given in tensors.items():
        rank = sum(patterns[module]) if module in patterns else int(initial)
        if params := _params(module, given, rank):
            left = rank if module in patterns else min(max(int(target), 1), rank)
            options = {"rank": left, "initial_rank": rank}
            n_out, n_in = len(params["b"]), params["a"].shape[1]
            updates[module] = Update("adalora", options, params, n_out, n_in, scale, dropout)
    if not updates:
        raise InputError("every layer of the adapter has lost all of its components; there is nothing to attach")
    return updates


def _patterns(config: dict[str, Any]) -> dict[str, list[bool]]:
    """For each module, which components are left."""
    given = config.get("rank_pattern") or {}
    if not isinstance(given, dict) or not all(map(_are_flags, given.values())):
        raise InputError(f"rank_pattern={str(given)[:80]} in the adapter's config, expected lists of true and false")
    return {key.partition(".lora_E")[0].removeprefix("base_model.model."): kept for key, kept in given.items()}


def _are_flags(kept: Any) -> bool:
    return isinstance(kept, list) and all(isinstance(flag, bool) for flag in kept)


def _params(module: str, given: dict[str, np.ndarray], rank: int) -> dict[str, np.ndarray] | None:
    """The family's parameters; None if no component is left."""
    if rank == 0 and all(array.size == 0 for array in given.values()):
        return None
    a, b, e = take(module, given, "lora_A", "lora_B", "lora_E")
    if not len(a) == b.shape[1] == len(e) == rank or e.shape[1] != 1:
        shapes = ", ".join(str(array.shape) for array in (a, b, e))
        raise InputError(f"{module} has AdaLoRA tensors of shapes {shapes}, but its config says rank {rank}")
    return {"a": a, "b": b, "e": e[:, 0]}
