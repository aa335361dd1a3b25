"""The files of decoders on Hugging Face, and their entry in the catalogue."""

from typing import Any

from surm.errors import InputError
from surm.models import hf_fields
from surm.models.architecture import LANGUAGE, Architecture
from surm.models.decoder import PRESETS, Decoder, DecoderConfig
from surm.models.naming import Naming, named
from surm.models.rotary import LinearScaling, Llama3Scaling, Rotary
from surm.models.tables import Rule, Table, linear

_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": None, "head_dim": None, "intermediate_size": 11008, "max_position_embeddings": 2048,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None,
    "tie_word_embeddings": False,
}  # fmt: skip
_KINDS = {"llama": _LLAMA}

TABLE = Table(
    name="Hugging Face Llama",
    prefix="",
    marker=r"model\.layers\.\d+\.self_attn\.q_proj\.weight",
    ignored=r".*\.rotary_emb\.inv_freq",
    body=r"(?:embed|blocks|norm|lm_head)\..*|model\..*",
    rules=(
        Rule(r"model\.embed_tokens\.weight", "embed.word.embedding"),
        *linear(r"model\.layers\.(\d+)\.self_attn\.q_proj", r"blocks.\1.attention.query"),
        *linear(r"model\.layers\.(\d+)\.self_attn\.k_proj", r"blocks.\1.attention.key"),
        *linear(r"model\.layers\.(\d+)\.self_attn\.v_proj", r"blocks.\1.attention.value"),
        *linear(r"model\.layers\.(\d+)\.self_attn\.o_proj", r"blocks.\1.attention.output"),
        *linear(r"model\.layers\.(\d+)\.mlp\.gate_proj", r"blocks.\1.mlp.gate"),
        *linear(r"model\.layers\.(\d+)\.mlp\.up_proj", r"blocks.\1.mlp.up"),
        *linear(r"model\.layers\.(\d+)\.mlp\.down_proj", r"blocks.\1.mlp.down"),
        Rule(r"model\.layers\.(\d+)\.input_layernorm\.weight", r"blocks.\1.norm1.scale"),
        Rule(r"model\.layers\.(\d+)\.post_attention_layernorm\.weight", r"blocks.\1.norm2.scale"),
        Rule(r"model\.norm\.weight", "norm.scale"),
        *linear("lm_head", "lm_head"),
    ),
)


def _rotary(fields: dict[str, Any]) -> Rotary:
    """The rotation, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    stated = dict(fields["rope_parameters"] or fields["rope_scaling"] or {})
    base = stated.get("rope_theta", fields["rope_theta"])
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind == "default":
        return Rotary(base)
    if kind == "linear":
        return Rotary(base, LinearScaling(stated["factor"]))
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return Rotary(base, Llama3Scaling(*(stated[name] for name in names)))
    raise InputError(f"config.json says rope_type={kind!r}; expected 'default', 'linear' or 'llama3'")


def _of_rotary(rotary: Rotary) -> dict[str, Any]:
    """The inverse of `_rotary`, in the fields that versions 4 and 5 of transformers read."""
    scaling = rotary.scaling
    if scaling is None:
        return {"rope_theta": rotary.base}
    stated = {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        stated |= {
            "rope_type": "llama3",
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_positions,
        }
    return {"rope_theta": rotary.base, "rope_scaling": stated}


def _from_hf(kind: str, fields: dict[str, Any]) -> DecoderConfig:
    heads, width = hf_fields.whole(fields, "num_attention_heads"), hf_fields.whole(fields, "hidden_size")
    return DecoderConfig(
        vocabulary=hf_fields.whole(fields, "vocab_size"),
        width=width,
        depth=hf_fields.whole(fields, "num_hidden_layers"),
        heads=heads,
        key_value_heads=fields["num_key_value_heads"] or heads,
        head_size=fields["head_dim"] or width // heads,
        mlp_width=hf_fields.whole(fields, "intermediate_size"),
        positions=hf_fields.whole(fields, "max_position_embeddings"),
        activation=hf_fields.activation(fields),
        epsilon=hf_fields.positive(fields, "rms_norm_eps"),
        rotary=_rotary(fields),
        tied=bool(fields["tie_word_embeddings"]),
        kind=kind,
    )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.positions,
        "hidden_act": hf_fields.their_activation(config.activation),
        "rms_norm_eps": config.epsilon,
        "tie_word_embeddings": config.tied,
        **_of_rotary(config.rotary),
    }


ARCHITECTURE = Architecture(
    name="decoder",
    reads="language",
    model=Decoder,
    shape=DecoderConfig,
    presets=PRESETS,
    kinds=_KINDS,
    from_hf=_from_hf,
    to_hf=_to_hf,
    kind_of=lambda config: config.kind or "llama",
    tables=(TABLE,),
    namings={"llama": named(Naming(TABLE, "", "$.", head=()))},
    classes={"llama": {LANGUAGE: "LlamaForCausalLM"}},
    obstacle=lambda config, theirs: None,
    passed_over=("pretraining_tp", "pad_token_id", "is_llama_config", "rope_interleaved"),
)
