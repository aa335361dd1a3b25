"""Files of GPT-2, whose weights are (in, out), and whose queries, keys and values are one map."""

from typing import Any

from surm.errors import InputError
from surm.models import hf_fields
from surm.models.decoder_fields import flag
from surm.models.decoder_kind import Kind
from surm.models.decoder_shape import DecoderConfig, Layer
from surm.models.fused import QUERY_KEY_VALUE
from surm.models.naming import Naming, named
from surm.models.tables import Joint, Rule, Table, linear, norm

_QKV = Joint("c_attn", ("c_attn_query", "c_attn_key", "c_attn_value"), axis=1)
_LAYER = r"h\.(\d+)"


def _plain(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """The rules of a map whose weight is (in, out) in the file."""
    return Rule(rf"{theirs}\.weight", f"{ours}.kernel"), Rule(rf"{theirs}\.bias", f"{ours}.bias")


TABLE = Table(
    name="Hugging Face GPT-2",
    prefix=r"transformer\.",
    marker=r"h\.\d+\.attn\.c_attn\.weight",
    ignored=r"h\.\d+\.attn\.(?:masked_)?bias",  # the mask of earlier tokens
    body=r"(?:embed|blocks|norm|lm_head|h|wte|wpe|ln_f)\..*",
    rules=(
        Rule(r"wte\.weight", "embed.word.embedding"),
        Rule(r"wpe\.weight", "embed.position.embedding"),
        *_plain(rf"{_LAYER}\.attn\.c_attn", r"blocks.\1.attention.joint"),
        *_plain(rf"{_LAYER}\.attn\.c_attn_query", r"blocks.\1.attention.query"),
        *_plain(rf"{_LAYER}\.attn\.c_attn_key", r"blocks.\1.attention.key"),
        *_plain(rf"{_LAYER}\.attn\.c_attn_value", r"blocks.\1.attention.value"),
        *_plain(rf"{_LAYER}\.attn\.c_proj", r"blocks.\1.attention.output"),
        *_plain(rf"{_LAYER}\.mlp\.c_fc", r"blocks.\1.mlp.up"),
        *_plain(rf"{_LAYER}\.mlp\.c_proj", r"blocks.\1.mlp.down"),
        *norm(rf"{_LAYER}\.ln_1", r"blocks.\1.norm1"),
        *norm(rf"{_LAYER}\.ln_2", r"blocks.\1.norm2"),
        *norm("ln_f", "norm"),
        linear("lm_head", "lm_head")[0],
    ),
    together=_QKV.join,
)


def _from_hf(fields: dict[str, Any]) -> DecoderConfig:
    heads, width = hf_fields.whole(fields, "n_head"), hf_fields.whole(fields, "n_embd")
    if width % heads:
        raise InputError(f"config.json says n_embd={width}, n_head={heads}; expected a width that the heads divide")
    return DecoderConfig(
        vocabulary=hf_fields.whole(fields, "vocab_size"),
        width=width,
        depth=hf_fields.whole(fields, "n_layer"),
        heads=heads,
        key_value_heads=heads,
        head_size=width // heads,
        mlp_width=4 * width if fields["n_inner"] is None else hf_fields.whole(fields, "n_inner"),
        positions=hf_fields.whole(fields, "n_positions"),
        layers=(Layer(rotary=None),),
        activation=hf_fields.activation(fields, "activation_function"),
        epsilon=hf_fields.positive(fields, "layer_norm_epsilon"),
        tied=flag(fields, "tie_word_embeddings"),
        biases=("query", "key", "value", "output", "up", "down"),
        gated=False,
        centred=True,
        learned_positions=True,
        score_size=None if flag(fields, "scale_attn_weights") else 1,
    )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocabulary,
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": config.heads,
        "n_inner": config.mlp_width,
        "n_positions": config.positions,
        "activation_function": hf_fields.their_activation(config.activation),
        "layer_norm_epsilon": config.epsilon,
        "tie_word_embeddings": config.tied,
        "scale_attn_weights": config.score_size is None,
        **{f"{name}_pdrop": 0.0 for name in ("resid", "embd", "attn")},
    }


_GPT2 = {
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
    "tie_word_embeddings": True,
}  # fmt: skip
_OF_MODULES = Naming(
    TABLE,
    "transformer.",
    r".*\.c_attn_(?:query|key|value)\..*",
    head=("lm_head",),
    joint={"attention.joint": QUERY_KEY_VALUE},
    transposed=rf"{_LAYER}\..*",
)

KINDS: dict[str, Kind] = {
    "gpt2": Kind(
        _GPT2,
        _from_hf,
        _to_hf,
        "GPT2LMHeadModel",
        named(_OF_MODULES, _OF_MODULES, _OF_MODULES._replace(foreign="$.", joint={})),
    ),
}
