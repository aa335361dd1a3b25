"""Files of Gemma 1, 2 and 3, texts alone."""

from typing import Any

from surm.errors import InputError
from surm.models import hf_fields
from surm.models.decoder_fields import SIZES, of_sizes, of_windows, optional, sizes, window, windowed
from surm.models.decoder_kind import Kind, of_table
from surm.models.decoder_shape import DecoderConfig, Layer, repeated
from surm.models.llama_files import LAYER, MAPS, attention_biases
from surm.models.llama_files import TABLE as LLAMA
from surm.models.rotary import Rotary
from surm.models.rotary_fields import FIELDS, of_rotary, of_scaling, of_stated, rotary, stated_in
from surm.models.tables import Rule

TABLE = LLAMA._replace(
    name="Hugging Face Gemma",
    marker=r"model\.layers\.\d+\.pre_feedforward_layernorm\.weight",
    rules=(
        *MAPS,
        Rule(rf"{LAYER}\.post_attention_layernorm\.weight", r"blocks.\1.attention_norm.scale"),
        Rule(rf"{LAYER}\.pre_feedforward_layernorm\.weight", r"blocks.\1.norm2.scale"),
        Rule(rf"{LAYER}\.post_feedforward_layernorm\.weight", r"blocks.\1.mlp_norm.scale"),
    ),
)
"""The names of Gemma 2 and 3; Gemma 1 has those of Llama."""

_TANH = "gelu_pytorch_tanh"
_ALL = {"norm_offset": 1.0, "scaled_words": True}


def _gemma(fields: dict[str, Any]) -> DecoderConfig:
    # "gelu" in files of the first Gemma means the approximation by tanh.
    given = {**fields, "hidden_act": _TANH} if fields["hidden_act"] == "gelu" else fields
    others = {"activation": hf_fields.activation(given), "biases": attention_biases(fields)}
    return DecoderConfig(**sizes(fields), layers=(Layer(rotary=rotary(fields)),), **others, **_ALL)


def _later(fields: dict[str, Any], layers: list[Layer], **others: Any) -> DecoderConfig:
    """The shape of Gemma 2 and 3."""
    return DecoderConfig(
        **sizes(fields),
        layers=repeated(tuple(layers)),
        activation=hf_fields.activation(fields, "hidden_activation"),
        biases=attention_biases(fields),
        branch_norms=True,
        score_size=hf_fields.whole(fields, "query_pre_attn_scalar"),
        score_cap=optional(fields, "attn_logit_softcapping", hf_fields.positive),
        logit_cap=optional(fields, "final_logit_softcapping", hf_fields.positive),
        **_ALL,
        **others,
    )


def _gemma2(fields: dict[str, Any]) -> DecoderConfig:
    turn, near = rotary(fields), windowed(fields, lambda number: number % 2 == 0)
    return _later(fields, [Layer(window(fields) if narrow else None, turn) for narrow in near])


def _gemma3(fields: dict[str, Any]) -> DecoderConfig:
    if fields["attn_logit_softcapping"] is not None:  # transformers reads the field and computes without it
        given = f"attn_logit_softcapping={fields['attn_logit_softcapping']!r}"
        raise InputError(f"config.json says {given}; expected null for gemma3_text")
    every = hf_fields.whole(fields, "sliding_window_pattern")
    near, (local, whole) = windowed(fields, lambda number: (number + 1) % every != 0), _rotations(fields)
    layers = [Layer(window(fields), local) if narrow else Layer(None, whole) for narrow in near]
    return _later(fields, layers, head_norms=True)


def _rotations(fields: dict[str, Any]) -> tuple[Rotary, Rotary]:
    """The rotations of blocks with and without a window."""
    local = {**fields, "rope_theta": fields["rope_local_base_freq"]}
    apart = fields["rope_parameters"] if fields["rope_scaling"] is None else None
    if isinstance(apart, dict):  # as transformers 5 writes it
        near, far = (apart.get(name) or {} for name in ("sliding_attention", "full_attention"))
        return of_stated(near, local), of_stated(far, fields)
    return of_stated({}, local), of_stated(stated_in(fields), fields)


def _basis(config: DecoderConfig) -> dict[str, Any]:
    return of_sizes(config) | {"attention_bias": "query" in config.biases}


def _to_gemma(config: DecoderConfig) -> dict[str, Any]:
    return _basis(config) | {"hidden_act": _their_activation(config)} | of_rotary(config.layers[0].rotary)


def _to_later(config: DecoderConfig) -> dict[str, Any]:
    return _basis(config) | of_windows(config) | {
        "hidden_activation": _their_activation(config),
        "query_pre_attn_scalar": config.score_size or config.head_size,
        "attn_logit_softcapping": config.score_cap,
        "final_logit_softcapping": config.logit_cap,
    }  # fmt: skip


def _to_gemma2(config: DecoderConfig) -> dict[str, Any]:
    return _to_later(config) | of_rotary(config.layers[0].rotary)


def _to_gemma3(config: DecoderConfig) -> dict[str, Any]:
    bases = {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": None}
    for layer in config.layers:
        if layer.rotary is not None and layer.window is not None:
            bases["rope_local_base_freq"] = layer.rotary.base
        elif layer.rotary is not None:
            bases |= {"rope_theta": layer.rotary.base, "rope_scaling": of_scaling(layer.rotary.scaling)}
    return _to_later(config) | bases


def _their_activation(config: DecoderConfig) -> str:
    return _TANH if config.activation == "gelu_tanh" else hf_fields.their_activation(config.activation)


_GEMMA = {
    **SIZES, **FIELDS, "vocab_size": 256000, "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 16, "head_dim": 256, "intermediate_size": 24576, "max_position_embeddings": 8192,
    "hidden_act": _TANH, "attention_bias": False, "tie_word_embeddings": True,
}  # fmt: skip
_GEMMA2 = {key: value for key, value in _GEMMA.items() if key != "hidden_act"} | {
    "hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 9216, "hidden_activation": _TANH, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "layer_types": None, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
}  # fmt: skip
_GEMMA3 = _GEMMA2 | {
    "vocab_size": 262208, "max_position_embeddings": 131072, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6, "final_logit_softcapping": None, "attn_logit_softcapping": None,
}  # fmt: skip

KINDS: dict[str, Kind] = {
    "gemma": Kind(_GEMMA, _gemma, _to_gemma, "GemmaForCausalLM", of_table(LLAMA)),
    "gemma2": Kind(_GEMMA2, _gemma2, _to_gemma2, "Gemma2ForCausalLM", of_table(TABLE)),
    "gemma3_text": Kind(_GEMMA3, _gemma3, _to_gemma3, "Gemma3ForCausalLM", of_table(TABLE)),
}
