"""The config.json that a GGUF file's metadata come to."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from surm.errors import InputError
from surm.models.gguf.header import Header
from surm.models.gguf.kinds import KINDS, Kind
from surm.models.lazy import Stored
from surm.models.rotary import Rotary
from surm.models.rotary_scaling import Llama3Scaling

Config = dict[str, Any]
CLASSES = {
    "llama": "LlamaForCausalLM", "smollm3": "SmolLM3ForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM", "phi3": "Phi3ForCausalLM", "gpt2": "GPT2LMHeadModel",
}  # fmt: skip
"""The classes of transformers by model_type."""
_TANH_GELU = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


class Metadata:
    """The entries of a file, by names without that of the architecture."""

    def __init__(self, header: Header):
        """Takes the header; InputError if it names no architecture, or one that is not read."""
        self.header, self.all = header, header.metadata
        architecture = self.all.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in KINDS:
            given = f"general.architecture={architecture!r}"
            raise InputError(f"{header.file!r} says {given}; the architectures that are read: {', '.join(KINDS)}")
        self.architecture: str = architecture
        self.kind: Kind = KINDS[architecture]

    def get(self, name: str, default: Any = None) -> Any:
        """An entry of the architecture, or a default value."""
        return self.all.get(f"{self.architecture}.{name}", default)

    def whole(self, name: str, default: int | None = None) -> int:
        """An entry that must be a whole number above 0."""
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            entry = f"{self.architecture}.{name}"
            given = "has no" if value is None else "says"
            shown = entry if value is None else f"{entry}={value!r}"
            raise InputError(f"{self.header.file!r} {given} {shown}; expected a whole number above 0")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """An entry that must be a number above 0."""
        value = self.get(name, default)
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            given = "has no" if value is None else f"says {value!r} for"
            raise InputError(f"{self.header.file!r} {given} {self.architecture}.{name}; expected a number above 0")
        return value


def config_of(metadata: Metadata, stored: Mapping[str, Stored]) -> Config:
    """The fields of config.json.

    Args:
      metadata: of the file.
      stored: the file's tensors by its own names.

    Returns:
      The fields, in the form of transformers 4: `rope_theta`, `rope_scaling`.

    Raises:
      InputError: if an entry is missing or has a value that no such model has.
    """
    found = _gpt2(metadata, stored) if metadata.architecture == "gpt2" else _common(metadata, stored)
    found |= _OWN.get(metadata.architecture, lambda metadata: {})(metadata)
    return found | _tokens(metadata)


def _common(metadata: Metadata, stored: Mapping[str, Stored]) -> Config:
    heads, width = metadata.whole("attention.head_count"), metadata.whole("embedding_length")
    head_size = metadata.whole("attention.key_length", width // heads)
    _check_whole_heads(metadata, head_size)
    return {
        **_named(metadata, stored),
        "hidden_size": width,
        "num_hidden_layers": metadata.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.whole("attention.head_count_kv", heads),
        "head_dim": head_size,
        "intermediate_size": metadata.whole("feed_forward_length"),
        "max_position_embeddings": metadata.whole("context_length"),
        "hidden_act": "silu",
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number("rope.freq_base", 10000.0),
        "rope_scaling": _scaling(metadata, stored, head_size),
        "attention_bias": "blk.0.attn_q.bias" in stored,
        "mlp_bias": "blk.0.ffn_up.bias" in stored,
    }


def _named(metadata: Metadata, stored: Mapping[str, Stored]) -> Config:
    if "token_embd.weight" not in stored:
        raise InputError(f"{metadata.header.file!r} holds no tensor token_embd.weight, the table of words")
    model_type = metadata.kind.model_type
    return {
        "model_type": model_type,
        "architectures": [CLASSES[model_type]],
        "vocab_size": stored["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in stored,
    }


def _check_whole_heads(metadata: Metadata, head_size: int) -> None:
    """Raises InputError if values have heads of another size, or if only a part of a head is rotated."""
    for name in ("attention.value_length", "rope.dimension_count"):
        if metadata.get(name, head_size) != head_size:
            given = f"{metadata.architecture}.{name}={metadata.get(name)!r}"
            raise InputError(f"{metadata.header.file!r} says {given}; expected {head_size}, the size of a head")


def _gpt2(metadata: Metadata, stored: Mapping[str, Stored]) -> Config:
    return {
        **_named(metadata, stored),
        "n_embd": metadata.whole("embedding_length"),
        "n_layer": metadata.whole("block_count"),
        "n_head": metadata.whole("attention.head_count"),
        "n_inner": metadata.whole("feed_forward_length"),
        "n_positions": metadata.whole("context_length"),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
    }


def _gemma2(metadata: Metadata) -> Config:
    return {
        **_TANH_GELU,
        "query_pre_attn_scalar": _attention_scalar(metadata, depth_of_27b=46),
        "sliding_window": metadata.whole("attention.sliding_window", 4096),
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0),
    }


def _gemma3(metadata: Metadata) -> Config:
    return {
        **_TANH_GELU,
        "query_pre_attn_scalar": _attention_scalar(metadata, depth_of_27b=62),
        "sliding_window": metadata.whole("attention.sliding_window", 1024),
        "sliding_window_pattern": 6,
        "rope_theta": metadata.number("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 10000.0),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def _attention_scalar(metadata: Metadata, depth_of_27b: int) -> int:
    """The scalar that divides the products of queries and keys, before the root; files do not say it (llama.cpp)."""
    heads, width = metadata.whole("attention.head_count"), metadata.whole("embedding_length")
    large = metadata.whole("block_count") == depth_of_27b
    return width // heads if large else metadata.whole("attention.key_length", width // heads)


def _phi3(metadata: Metadata) -> Config:
    return {"sliding_window": metadata.get("attention.sliding_window")}


_OWN: dict[str, Callable[[Metadata], Config]] = {
    "gemma": lambda metadata: dict(_TANH_GELU),
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
}
"""The fields of single architectures."""


def _tokens(metadata: Metadata) -> Config:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {field: metadata.all.get(f"tokenizer.ggml.{name}_token_id") for field, name in names.items()}
    return {field: number for field, number in found.items() if number is not None}


def _scaling(metadata: Metadata, stored: Mapping[str, Stored], head_size: int) -> Config | None:
    kind, file = metadata.get("rope.scaling.type", "none"), metadata.header.file
    if long := [name for name in stored if name.startswith("rope_factors")]:
        raise InputError(f"{file!r} holds {long[0]}, of positions of the kind longrope, which are not read")
    if "rope_freqs.weight" in stored:
        base = metadata.number("rope.freq_base", 10000.0)
        return _llama3(file, stored["rope_freqs.weight"].read(), base, head_size)
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": metadata.number("rope.scaling.factor")}
    given = f"{metadata.architecture}.rope.scaling.type={kind!r}"
    raise InputError(f"{file!r} says {given}; expected 'none' or 'linear', or a tensor rope_freqs.weight")


def _llama3(file: str, factors: np.ndarray, base: float, head_size: int) -> Config:
    """The scaling of Llama 3.1 and later, of which a GGUF file only has the factors that divide the frequencies."""
    found = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = llama3_factors(base, head_size, found["factor"])
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        given = f"rope_freqs.weight of shape {factors.shape} up to {found['factor']:g}"
        raise InputError(f"{file!r} holds {given}; expected the factors of Llama 3.1's scaling (1, 4, 8192)")
    return found


def llama3_factors(base: float, head_size: int, factor: float) -> np.ndarray:
    """The numbers that divide the frequencies base^(−2i/d) of a Llama 3.1, trained on 8,192 positions.

    Args:
      base: the rotary base.
      head_size: the size d of a head.
      factor: how many times longer the context is.

    Returns:
      d/2 numbers from 1 (waves of up to 2,048 positions) to `factor` (waves of more than 8,192).
    """
    plain = Rotary(base).frequencies(head_size, 1)
    return plain / Llama3Scaling(factor, 1.0, 4.0, 8192)(plain, 1)
