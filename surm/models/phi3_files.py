"""Files of Phi-3 and Phi-4-mini, whose queries, keys and values are one map, as are the gate and the map beside it."""

from typing import Any

from surm.models import hf_fields
from surm.models.decoder_fields import SIZES, of_sizes, optional, sizes
from surm.models.decoder_kind import Kind
from surm.models.decoder_shape import DecoderConfig, Layer
from surm.models.fused import GATE_UP, QUERY_KEY_VALUE
from surm.models.llama_files import LAYER
from surm.models.llama_files import TABLE as LLAMA
from surm.models.naming import Naming, named
from surm.models.rotary_fields import FIELDS, of_rotary, rotary
from surm.models.tables import Joint, linear

_QKV = Joint("qkv_proj", ("q_proj", "k_proj", "v_proj"))
_GATE_UP = Joint("gate_up_proj", ("gate_proj", "up_proj"))

TABLE = LLAMA._replace(
    name="Hugging Face Phi-3",
    marker=r"model\.layers\.\d+\.self_attn\.qkv_proj\.weight",
    rules=(
        *LLAMA.rules,
        *linear(rf"{LAYER}\.self_attn\.qkv_proj", r"blocks.\1.attention.joint"),
        *linear(rf"{LAYER}\.mlp\.gate_up_proj", r"blocks.\1.mlp.joint"),
    ),
    together=lambda arrays: _GATE_UP.join(_QKV.join(arrays)),
)
_PARTS = r".*\.(?:q_proj|k_proj|v_proj|gate_proj|up_proj)\..*"  # names that stand in files alone, until they are joined


def _from_hf(fields: dict[str, Any]) -> DecoderConfig:
    # Earlier files call the scaling "su" or "yarn".
    renamed = {name: _renamed(fields[name]) for name in ("rope_scaling", "rope_parameters")}
    turn = rotary({**fields, **renamed}, partial=True)
    layers = (Layer(optional(fields, "sliding_window", hf_fields.whole), turn),)
    return DecoderConfig(**sizes(fields), activation=hf_fields.activation(fields), layers=layers)


def _renamed(stated: Any) -> Any:
    if not isinstance(stated, dict) or stated.get("rope_type", stated.get("type")) not in ("su", "yarn"):
        return stated
    return {**stated, "rope_type": "longrope"}


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
    layer = config.layers[0]
    turned = of_rotary(layer.rotary)
    key = "original_max_position_embeddings"
    original = (turned.get("rope_scaling") or {}).get(key, config.positions)
    activation = hf_fields.their_activation(config.activation)
    others = {"sliding_window": layer.window, "hidden_act": activation, key: original}
    return of_sizes(config) | turned | others


_PHI3 = {
    **SIZES, **FIELDS, "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "hidden_act": "silu",
    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "partial_rotary_factor": None, "sliding_window": None,
}  # fmt: skip
_JOINT = {"attention.joint": QUERY_KEY_VALUE, "mlp.joint": GATE_UP}
_OF_MODULES = Naming(TABLE, "", _PARTS, head=(), joint=_JOINT)

KINDS: dict[str, Kind] = {
    "phi3": Kind(
        _PHI3,
        _from_hf,
        _to_hf,
        "Phi3ForCausalLM",
        named(_OF_MODULES, _OF_MODULES, Naming(TABLE, "", "$.", head=())),
        own_code=True,
    ),
}
