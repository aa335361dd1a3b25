"""Reads and writes the fields of a config.json that describe rotary positions.

transformers 5 writes `rope_parameters`, earlier versions wrote `rope_theta` and `rope_scaling`, which version 5 reads,
too. Here both are read, and the earlier form is written.
"""

import math
from collections.abc import Callable
from typing import Any

from surm.errors import InputError
from surm.models import hf_fields
from surm.models.rotary import Rotary
from surm.models.rotary_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Scaling,
    YarnScaling,
)

FIELDS = {"rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None}
"""The fields that `rotary` reads, with their default values."""


def rotary(fields: dict[str, Any], *, partial: bool = False) -> Rotary:
    """The rotation of a model whose blocks all have the same.

    Args:
      fields: of config.json.
      partial: whether `partial_rotary_factor` may be below 1.

    Returns:
      The rotation.

    Raises:
      InputError: if the type of the scaling is unknown, or one of its numbers is missing or no number.
    """
    return of_stated(stated_in(fields), fields, partial=partial)


def stated_in(fields: dict[str, Any]) -> dict[str, Any]:
    """The object that describes the rotation; `rope_scaling` comes first, as in transformers."""
    stated = fields["rope_scaling"] or fields["rope_parameters"] or {}
    if not isinstance(stated, dict):
        raise InputError(f"config.json says rope_scaling={hf_fields.shortened(stated)}; expected an object")
    return stated


def of_stated(stated: dict[str, Any], fields: dict[str, Any], *, partial: bool = False) -> Rotary:
    """The rotation that an object describes; arguments otherwise as for `rotary`."""
    if apart := [key for key, value in stated.items() if isinstance(value, dict)]:
        raise InputError(f"config.json has rope_parameters for {apart[0]!r}; expected the same for all layers")
    base = _number({"rope_theta": fields["rope_theta"], **stated}, "rope_theta")
    shares = {"partial_rotary_factor": fields.get("partial_rotary_factor"), **stated}
    share = 1.0 if shares["partial_rotary_factor"] is None else _number(shares, "partial_rotary_factor")
    if share > 1 or (share < 1 and not partial):
        raise InputError(f"config.json says partial_rotary_factor={share}; expected 1{' or less' * partial}")
    kind = stated.get("rope_type", stated.get("type", "default"))
    read = SCALINGS[hf_fields.known({"rope_type": kind}, "rope_type", SCALINGS)]
    return Rotary(base, read(stated, fields), share)


def of_rotary(rotation: Rotary | None) -> dict[str, Any]:
    """The inverse of `rotary`; nothing for None."""
    if rotation is None:
        return {}
    written = {"rope_theta": rotation.base, "rope_scaling": of_scaling(rotation.scaling)}
    return written if rotation.share == 1 else written | {"partial_rotary_factor": rotation.share}


def of_scaling(scaling: Scaling | None) -> dict[str, Any] | None:
    """The object that describes a scaling, in a config.json."""
    match scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor, _):
            return {"rope_type": "dynamic", "factor": factor}
        case Llama3Scaling(factor, low, high, original):
            more = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": original}
            return {"rope_type": "llama3", "factor": factor, **more}
        case YarnScaling(factor, original, amplitude, fast, slow, truncate):
            more = {"beta_fast": fast, "beta_slow": slow, "truncate": truncate, "attention_factor": amplitude}
            return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **more}
        case LongScaling(short, long, original, amplitude):
            more = {"original_max_position_embeddings": original, "attention_factor": amplitude}
            return {"rope_type": "longrope", "short_factor": [*short], "long_factor": [*long], **more}


def _linear(stated: dict[str, Any], fields: dict[str, Any]) -> Scaling:
    return LinearScaling(_number(stated, "factor"))


def _dynamic(stated: dict[str, Any], fields: dict[str, Any]) -> Scaling:
    return DynamicScaling(_number(stated, "factor"), hf_fields.whole(fields, "max_position_embeddings"))


def _llama3(stated: dict[str, Any], fields: dict[str, Any]) -> Scaling:
    low, high = _number(stated, "low_freq_factor"), _number(stated, "high_freq_factor")
    if low >= high:
        raise InputError(f"config.json says low_freq_factor={low}, high_freq_factor={high}; expected the first below")
    return Llama3Scaling(_number(stated, "factor"), low, high, _original(stated, fields))


def _yarn(stated: dict[str, Any], fields: dict[str, Any]) -> Scaling:
    original = _original(stated, fields)
    factor = _number({"factor": fields["max_position_embeddings"] / original, **_said(stated)}, "factor")

    def amplitude(scale: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1

    said = _said(stated)
    if "attention_factor" in said:
        of_turned = _number(said, "attention_factor")
    elif said.get("mscale") and said.get("mscale_all_dim"):
        of_turned = amplitude(_number(said, "mscale")) / amplitude(_number(said, "mscale_all_dim"))
    else:
        of_turned = amplitude()
    fast, slow = (_number({key: usual, **said}, key) for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)))
    return YarnScaling(factor, original, of_turned, fast, slow, bool(stated.get("truncate", True)))


def _long(stated: dict[str, Any], fields: dict[str, Any]) -> Scaling:
    original = _original(stated, fields)
    factor = _number({"factor": fields["max_position_embeddings"] / original, **_said(stated)}, "factor")
    usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    amplitude = _number({"attention_factor": usual, **_said(stated)}, "attention_factor")
    return LongScaling(_factors(stated, "short_factor"), _factors(stated, "long_factor"), original, amplitude)


SCALINGS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Scaling | None]] = {
    "default": lambda stated, fields: None,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _long,
}
"""The readers of scalings by `rope_type`."""


def _said(stated: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in stated.items() if value is not None}


def _number(stated: dict[str, Any], key: str) -> float:
    return hf_fields.positive({key: None, **stated}, key)


def _factors(stated: dict[str, Any], key: str) -> tuple[float, ...]:
    value = stated.get(key)
    if not isinstance(value, list) or not value:
        raise InputError(f"config.json says {key}={hf_fields.shortened(value)}; expected a list of numbers")
    return tuple(_number({key: number}, key) for number in value)


def _original(stated: dict[str, Any], fields: dict[str, Any]) -> int:
    """The context of pretraining, which Phi-3's files have beside the object, and others in it, if anywhere."""
    key = "original_max_position_embeddings"
    given = fields.get(key) or stated.get(key) or fields["max_position_embeddings"]
    return hf_fields.whole({key: given}, key)
