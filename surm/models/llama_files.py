"""Files of Llama and of models that are built like it: Mistral, Qwen 2 and 3, SmolLM 3, InternLM 2."""

from typing import Any

from surm.errors import InputError
from surm.models import hf_fields
from surm.models.decoder_fields import SIZES, flag, of_sizes, of_windows, optional, sizes, window, windowed
from surm.models.decoder_kind import Kind, of_table
from surm.models.decoder_shape import DecoderConfig, Layer, repeated
from surm.models.rotary_fields import FIELDS, of_rotary, rotary
from surm.models.tables import Rule, Table, linear

LAYER = r"model\.layers\.(\d+)"
MAPS = (
    Rule(r"model\.embed_tokens\.weight", "embed.word.embedding"),
    *linear(rf"{LAYER}\.self_attn\.q_proj", r"blocks.\1.attention.query"),
    *linear(rf"{LAYER}\.self_attn\.k_proj", r"blocks.\1.attention.key"),
    *linear(rf"{LAYER}\.self_attn\.v_proj", r"blocks.\1.attention.value"),
    *linear(rf"{LAYER}\.self_attn\.o_proj", r"blocks.\1.attention.output"),
    *linear(rf"{LAYER}\.mlp\.gate_proj", r"blocks.\1.mlp.gate"),
    *linear(rf"{LAYER}\.mlp\.up_proj", r"blocks.\1.mlp.up"),
    *linear(rf"{LAYER}\.mlp\.down_proj", r"blocks.\1.mlp.down"),
    Rule(rf"{LAYER}\.self_attn\.q_norm\.weight", r"blocks.\1.attention.query_norm.scale"),
    Rule(rf"{LAYER}\.self_attn\.k_norm\.weight", r"blocks.\1.attention.key_norm.scale"),
    Rule(rf"{LAYER}\.input_layernorm\.weight", r"blocks.\1.norm1.scale"),
    Rule(r"model\.norm\.weight", "norm.scale"),
    linear("lm_head", "lm_head")[0],
)
"""The rules that files of Llama and of Gemma share."""
BODY = r"(?:embed|blocks|norm|lm_head|model)\..*"

TABLE = Table(
    name="Hugging Face Llama",
    prefix="",
    marker=r"model\.layers\.\d+\.self_attn\.q_proj\.weight",
    ignored=r".*\brotary_emb\..*",
    body=BODY,
    rules=(*MAPS, Rule(rf"{LAYER}\.post_attention_layernorm\.weight", r"blocks.\1.norm2.scale")),
)

INTERNLM2 = Table(
    name="Hugging Face InternLM 2",
    prefix="",
    marker=r"model\.layers\.\d+\.attention\.wqkv\.weight",
    ignored=r".*\brotary_emb\..*",
    body=r"(?:embed|blocks|norm|lm_head|model|output)\..*",
    rules=(
        Rule(r"model\.tok_embeddings\.weight", "embed.word.embedding"),
        *linear(rf"{LAYER}\.attention\.wqkv", r"blocks.\1.attention.grouped"),
        *linear(rf"{LAYER}\.attention\.wo", r"blocks.\1.attention.output"),
        *linear(rf"{LAYER}\.feed_forward\.w1", r"blocks.\1.mlp.gate"),
        *linear(rf"{LAYER}\.feed_forward\.w3", r"blocks.\1.mlp.up"),
        *linear(rf"{LAYER}\.feed_forward\.w2", r"blocks.\1.mlp.down"),
        Rule(rf"{LAYER}\.attention_norm\.weight", r"blocks.\1.norm1.scale"),
        Rule(rf"{LAYER}\.ffn_norm\.weight", r"blocks.\1.norm2.scale"),
        Rule(r"model\.norm\.weight", "norm.scale"),
        *linear("output", "lm_head"),
    ),
)


def attention_biases(fields: dict[str, Any]) -> tuple[str, ...]:
    """The maps with a bias if `attention_bias` is true: all four of attention."""
    return ("query", "key", "value", "output") if flag(fields, "attention_bias") else ()


def _llama(fields: dict[str, Any]) -> DecoderConfig:
    biases = (*attention_biases(fields), *(("gate", "up", "down") if flag(fields, "mlp_bias") else ()))
    layers = (Layer(rotary=rotary(fields)),)
    return DecoderConfig(**sizes(fields), activation=hf_fields.activation(fields), layers=layers, biases=biases)


def _mistral(fields: dict[str, Any]) -> DecoderConfig:
    layers = (Layer(optional(fields, "sliding_window", hf_fields.whole), rotary(fields)),)
    return DecoderConfig(**sizes(fields), activation=hf_fields.activation(fields), layers=layers)


def _qwen(fields: dict[str, Any]) -> tuple[Layer, ...]:
    """The layers of Qwen 2 and 3, of which those from `max_window_layers` on may have a window."""
    turn, first = rotary(fields), hf_fields.whole(fields, "max_window_layers", least=0)
    used = flag(fields, "use_sliding_window") and fields["sliding_window"] is not None
    layers = [
        Layer(window(fields if used else {**fields, "sliding_window": None}) if near else None, turn)
        for near in windowed(fields, lambda number: used and number >= first)
    ]
    return repeated(tuple(layers))


def _qwen2(fields: dict[str, Any]) -> DecoderConfig:
    others = {"activation": hf_fields.activation(fields), "biases": ("query", "key", "value")}
    return DecoderConfig(**sizes(fields), layers=_qwen(fields), **others)


def _qwen3(fields: dict[str, Any]) -> DecoderConfig:
    others = {"activation": hf_fields.activation(fields), "biases": attention_biases(fields), "head_norms": True}
    return DecoderConfig(**sizes(fields), layers=_qwen(fields), **others)


def _smollm3(fields: dict[str, Any]) -> DecoderConfig:
    llama = _llama(fields)
    every = hf_fields.whole(fields, "no_rope_layer_interval")
    turned = fields["no_rope_layers"]
    if turned is None:
        turned = [int((number + 1) % every != 0) for number in range(llama.depth)]
    if not isinstance(turned, list) or len(turned) != llama.depth or not all(one in (0, 1) for one in turned):
        said = hf_fields.shortened(turned)
        raise InputError(f"config.json says no_rope_layers={said}; expected 1 or 0 for each of {llama.depth} layers")
    used = flag(fields, "use_sliding_window") and fields["sliding_window"] is not None
    near = windowed(fields, lambda number: used and not turned[number])
    layers = [
        Layer(window(fields) if narrow else None, llama.layers[0].rotary if one else None)
        for narrow, one in zip(near, turned, strict=True)
    ]
    return DecoderConfig(**{**vars(llama), "layers": repeated(tuple(layers))})


def _internlm2(fields: dict[str, Any]) -> DecoderConfig:
    biases = ("query", "key", "value", "output") if flag(fields, "bias") else ()
    layers = (Layer(rotary=rotary(fields)),)
    return DecoderConfig(**sizes(fields), activation=hf_fields.activation(fields), layers=layers, biases=biases)


def _basis(config: DecoderConfig) -> dict[str, Any]:
    """The fields that all these kinds have."""
    turn = next((layer.rotary for layer in config.layers if layer.rotary is not None), None)
    return of_sizes(config) | {"hidden_act": hf_fields.their_activation(config.activation)} | of_rotary(turn)


def _to_llama(config: DecoderConfig) -> dict[str, Any]:
    return _basis(config) | {"attention_bias": "query" in config.biases, "mlp_bias": "gate" in config.biases}


def _to_mistral(config: DecoderConfig) -> dict[str, Any]:
    return _basis(config) | {"sliding_window": config.layers[0].window}


def _to_qwen(config: DecoderConfig) -> dict[str, Any]:
    windows = of_windows(config)
    return _basis(config) | windows | {
        "use_sliding_window": windows["sliding_window"] is not None,
        "max_window_layers": config.depth,  # `layer_types` decides
        "attention_bias": "output" in config.biases,
    }  # fmt: skip


def _to_smollm3(config: DecoderConfig) -> dict[str, Any]:
    windows = of_windows(config)
    return _to_llama(config) | windows | {
        "use_sliding_window": windows["sliding_window"] is not None,
        "no_rope_layers": [int(layer.rotary is not None) for layer in config.every_layer],
    }  # fmt: skip


_LLAMA = {**SIZES, **FIELDS, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
_MISTRAL = {
    **SIZES, **FIELDS, "hidden_act": "silu", "intermediate_size": 14336, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "sliding_window": 4096,
}  # fmt: skip
_QWEN2 = {
    **SIZES, **FIELDS, "hidden_act": "silu", "vocab_size": 151936, "intermediate_size": 22016,
    "num_key_value_heads": 32, "max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 4096,
    "max_window_layers": 28, "layer_types": None,
}  # fmt: skip
_QWEN3 = {**_QWEN2, "head_dim": 128, "attention_bias": False}
_SMOLLM3 = {
    **_LLAMA, "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
    "num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2000000.0, "use_sliding_window": False,
    "sliding_window": None, "no_rope_layers": None, "no_rope_layer_interval": 4, "layer_types": None,
    "tie_word_embeddings": True,
}  # fmt: skip
_INTERNLM2 = {**SIZES, **FIELDS, "hidden_act": "silu", "vocab_size": 103168, "bias": True}

KINDS: dict[str, Kind] = {
    "llama": Kind(_LLAMA, _llama, _to_llama, "LlamaForCausalLM", of_table(TABLE)),
    "mistral": Kind(_MISTRAL, _mistral, _to_mistral, "MistralForCausalLM", of_table(TABLE)),
    "qwen2": Kind(_QWEN2, _qwen2, _to_qwen, "Qwen2ForCausalLM", of_table(TABLE)),
    "qwen3": Kind(_QWEN3, _qwen3, _to_qwen, "Qwen3ForCausalLM", of_table(TABLE)),
    "smollm3": Kind(_SMOLLM3, _smollm3, _to_smollm3, "SmolLM3ForCausalLM", of_table(TABLE)),
    "internlm2": Kind(
        _INTERNLM2, _internlm2, _to_llama, "LlamaForCausalLM", of_table(TABLE), written_as="llama", own_code=True
    ),
}
