"""Reads and writes the fields of a decoder's config.json that several kinds have alike."""

from collections.abc import Callable
from typing import Any

from surm.errors import InputError
from surm.models import hf_fields
from surm.models.decoder_shape import DecoderConfig

SIZES = {
    "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": None, "head_dim": None, "intermediate_size": 11008, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
"""The fields that `sizes` reads, with the default values of Llama."""

WINDOWED, WHOLE = "sliding_attention", "full_attention"
"""The names in `layer_types` of blocks with and without a window."""


def sizes(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `DecoderConfig` that hold sizes."""
    heads, width = hf_fields.whole(fields, "num_attention_heads"), hf_fields.whole(fields, "hidden_size")
    if fields["head_dim"] is None and width % heads:
        given = f"hidden_size={width}, num_attention_heads={heads}"
        raise InputError(f"config.json says {given} and no head_dim; expected a width that the heads divide")
    return {
        "vocabulary": hf_fields.whole(fields, "vocab_size"),
        "width": width,
        "depth": hf_fields.whole(fields, "num_hidden_layers"),
        "heads": heads,
        "key_value_heads": optional(fields, "num_key_value_heads", hf_fields.whole) or heads,
        "head_size": optional(fields, "head_dim", hf_fields.whole) or width // heads,
        "mlp_width": hf_fields.whole(fields, "intermediate_size"),
        "positions": hf_fields.whole(fields, "max_position_embeddings"),
        "epsilon": hf_fields.positive(fields, "rms_norm_eps"),
        "tied": flag(fields, "tie_word_embeddings"),
    }


def of_sizes(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `sizes`."""
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.positions,
        "rms_norm_eps": config.epsilon,
        "tie_word_embeddings": config.tied,
    }


def flag(fields: dict[str, Any], key: str) -> bool:
    """The value of a field that must be true or false; raises InputError for anything else."""
    value = fields[key]
    if not isinstance(value, bool):
        raise InputError(f"config.json says {key}={value!r}; expected true or false")
    return value


def optional(fields: dict[str, Any], key: str, read: Callable[[dict, str], Any]) -> Any:
    """The value of a field as `read` reads it; None for null."""
    return None if fields[key] is None else read(fields, key)


def windowed(fields: dict[str, Any], usual: Callable[[int], bool]) -> list[bool]:
    """Which blocks have a window.

    Args:
      fields: of config.json; `layer_types` names the type of every block, if it is there.
      usual: whether the block of a number has a window if there are no `layer_types`.

    Returns:
      One value per block.

    Raises:
      InputError: if `layer_types` names other types, or not one type per block.
    """
    depth, stated = hf_fields.whole(fields, "num_hidden_layers"), fields["layer_types"]
    if stated is None:
        return [usual(number) for number in range(depth)]
    if not isinstance(stated, list) or len(stated) != depth or not all(name in (WINDOWED, WHOLE) for name in stated):
        said = hf_fields.shortened(stated)
        raise InputError(f"config.json says layer_types={said}; expected {depth} of {WHOLE!r} and {WINDOWED!r}")
    return [name == WINDOWED for name in stated]


def window(fields: dict[str, Any]) -> int:
    """The window of blocks that have one; raises InputError if there is none."""
    if fields["sliding_window"] is None:
        raise InputError("config.json says sliding_window=None, but has layers with a window; expected its size")
    return hf_fields.whole(fields, "sliding_window")


def of_windows(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `windowed` and `window`: the type of every block, and the window, which they share."""
    windows = [layer.window for layer in config.every_layer]
    return {
        "layer_types": [WHOLE if width is None else WINDOWED for width in windows],
        "sliding_window": next((width for width in windows if width is not None), None),
    }
