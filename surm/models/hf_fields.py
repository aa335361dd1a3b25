"""Reads single fields of a config.json, checks fields with only one supported value, and knows which do not matter."""

import math
from collections.abc import Iterable
from typing import Any

from surm.errors import InputError, few, nearest
from surm.machine.notes import say

NOTHING = (None, False, 0, "", [], {})
# field -> its supported values, and the expectation that messages name; other values change the model's function
MUST: dict[str, tuple[tuple[Any, ...], str]] = {
    "is_decoder": (NOTHING, "an encoder"),
    "is_encoder_decoder": (NOTHING, "an encoder"),
    "add_cross_attention": (NOTHING, "an encoder without cross-attention"),
    "position_embedding_type": ((None, "absolute"), "'absolute'"),
    "qkv_bias": ((None, True), "maps with a bias"),
    "pruned_heads": (NOTHING, "no pruned heads; save_pretrained of a model whose heads are all there"),
    "use_bidirectional_attention": (NOTHING, "attention to earlier tokens alone"),
    "scale_attn_by_inverse_layer_idx": (NOTHING, "scores with the same scale in all layers"),
    "use_mrope": (NOTHING, "positions along one axis"),
    "num_experts": (NOTHING, "a model without experts"),
    "num_local_experts": (NOTHING, "a model without experts"),
    "use_task_id": (NOTHING, "no table of tasks beside those of words, segments and positions"),
    "quantization_config": (NOTHING, "unquantised weights; dequantize() in transformers, then save_pretrained"),
    "compression_config": (NOTHING, "unquantised weights; dequantize() in transformers, then save_pretrained"),
    "auto_map": (NOTHING, "none: code that comes with weights is never run"),
    "adapters": (NOTHING, "no adapters inside the weights; merge them first"),
}
# Fields that are ignored. Dropout is set by config.model.dropout, and a head is new or has the size of its weights.
NO_MATTER = {
    "hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "dropout", "classifier_dropout",
    "initializer_range", "initializer_factor", "problem_type", "id2label", "label2id", "num_labels", "_num_labels",
    "finetuning_task", "task_specific_params", "architectures", "transformers_version", "torch_dtype", "dtype",
    "_name_or_path", "name_or_path", "_commit_hash", "use_cache", "chunk_size_feed_forward", "gradient_checkpointing",
    "output_hidden_states", "output_attentions", "output_past", "return_dict", "use_return_dict", "torchscript",
    "use_bfloat16", "tie_word_embeddings", "tie_encoder_decoder", "bos_token_id", "eos_token_id", "sep_token_id",
    "cls_token_id", "mask_token_id", "unk_token_id", "decoder_start_token_id", "tokenizer_class", "prefix",
    "pooler_act", "pooler_output_size", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
    "pooler_size_per_head", "pooler_type", "directionality", "encoder_stride", "projection_dim", "text_config",
    "vision_config", "text_config_dict", "vision_config_dict", "logit_scale_init_value", "summary_type",
    "summary_use_proj", "summary_activation", "summary_last_dropout", "task_type_vocab_size", "mask_ratio",
    "norm_pix_loss", "decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads",
    "decoder_intermediate_size", "_attn_implementation", "_attn_implementation_autoset", "attn_implementation",
    "cross_attention_hidden_size", "sentence_transformers", "language", "name", "xla_device", "use_mask_token",
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "suppress_tokens",
    "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "begin_suppress_tokens", "tf_legacy_loss", "return_loss", "onnx_export",
}  # fmt: skip
HF_ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "quick_gelu": "quick_gelu",
    "relu": "relu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh", "gelu_accurate": "gelu_tanh", "gelu_10": "gelu_10", "silu": "silu",
    "swish": "silu", "tanh": "tanh", "sigmoid": "sigmoid", "mish": "mish", "relu2": "relu2", "relu6": "relu6",
    "leaky_relu": "leaky_relu", "hardswish": "hardswish", "linear": "identity", "laplace": "laplace",
    "sqrtsoftplus": "sqrtsoftplus",
}  # fmt: skip
"""The names of activations in transformers 5.23 (its ACT2CLS), each with its name in surm. prelu and xielu are missing,
because they have weights of their own."""


def check(fields: dict[str, Any], read: Iterable[str], excused: Iterable[str] = ()) -> None:
    """Checks the fields that have only one supported value; reports unknown fields.

    Args:
      fields: the fields of config.json, including those of a vision tower.
      read: the names of the fields that determine the shape of such a model, or are known not to matter for it.
      excused: the names of fields that may have any value.

    Raises:
      InputError: if a field has an unsupported value.
    """
    for name, (accepted, expected) in MUST.items():
        if (
            name in fields
            and name not in excused
            and not any(fields[name] == value and type(fields[name]) is type(value) for value in accepted)
        ):
            raise InputError(f"config.json says {name}={shortened(fields[name])}; expected {expected}")
    unknown = sorted(fields.keys() - MUST.keys() - {"model_type", *read} - NO_MATTER)
    if unknown:
        say(f"config.json has unknown fields, which are ignored: {few(unknown)}")


def shortened(value: Any) -> str:
    """A value as Python writes it, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def known(fields: dict, key: str, accepted: Iterable[str], expected: str = "") -> str:
    """The value of a field; raises InputError, which names the accepted values or `expected`, for any other value."""
    value = fields.get(key)
    if not isinstance(value, str) or value not in accepted:
        raise InputError(f"config.json says {key}={value!r}; expected {expected or ' or '.join(accepted)}")
    return value


def positive(fields: dict, key: str) -> float:
    """The value of a field that must be a number above 0; raises InputError for anything else."""
    value = fields[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputError(f"config.json says {key}={value!r}; expected a number above 0")
    return float(value)


def whole(fields: dict, key: str, least: int = 1) -> int:
    """The value of a field that must be a whole number or a pair of equal ones; raises InputError for anything else."""
    value = fields[key]
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]  # height and width
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"config.json says {key}={fields[key]!r}; expected a whole number from {least}")
    return value


def activation(fields: dict, key: str = "hidden_act") -> str:
    """The name in `surm.ops.activations` of the activation that a field names; raises InputError for an unknown one."""
    near = f"another, {nearest(str(fields.get(key)), HF_ACTIVATIONS)}"
    return HF_ACTIVATIONS[known(fields, key, HF_ACTIVATIONS, near)]


def their_activation(name: str) -> str:
    """The name in a config.json of an activation of `surm.ops.activations`."""
    return next(theirs for theirs, ours in HF_ACTIVATIONS.items() if ours == name)


def blocks(fields: dict) -> dict[str, int | float | str]:
    """The fields of a configuration that describe its blocks, which most kinds of Transformers name alike."""
    return {
        "width": whole(fields, "hidden_size"),
        "depth": whole(fields, "num_hidden_layers"),
        "heads": whole(fields, "num_attention_heads"),
        "mlp_width": whole(fields, "intermediate_size"),
        "activation": activation(fields),
        "epsilon": positive(fields, "layer_norm_eps"),
    }


def of_blocks(config: Any) -> dict[str, Any]:
    """The inverse of `blocks`: the fields of a config.json. Attention weights have no dropout."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": their_activation(config.activation),
        "layer_norm_eps": config.epsilon,
        "attention_probs_dropout_prob": 0.0,
    }
