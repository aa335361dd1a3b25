"""Decoders' shapes from config.json and back; tests/parity compares the models and the defaults."""

import dataclasses

import numpy as np
import pytest

from surm.errors import InputError
from surm.models import decoder_files
from surm.models.decoder import preset
from surm.models.decoder_shape import DecoderConfig, Layer
from surm.models.hf_config import config_from_hf
from surm.models.rotary import Rotary
from surm.models.rotary_scaling import DynamicScaling, LinearScaling, Llama3Scaling, LongScaling, YarnScaling

ROPE3 = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
         "rope_type": "llama3"}  # fmt: skip
PUBLISHED = {  # what the publishers' config.json files say, without fields that do not matter
    "llama3_2_3b": {
        "model_type": "llama", "attention_bias": False, "bos_token_id": 128000, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
        "num_attention_heads": 24, "num_hidden_layers": 28, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": ROPE3, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "vocab_size": 128256,
    },
    "smollm2_135m": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "is_llama_config": True,
        "max_position_embeddings": 8192, "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
        "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152,
    },
    "qwen2_5_0_5b": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 24, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
        "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
    },
    "qwen3_0_6b": {
        "model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_size": 1024, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
    },
    "gemma3_1b": {
        "model_type": "gemma3_text", "attn_logit_softcapping": None, "cache_implementation": "hybrid",
        "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768, "num_attention_heads": 4,
        "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6, "vocab_size": 262144,
    },
    "phi3_mini": {
        "model_type": "phi3", "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
        "attention_bias": False, "embd_pdrop": 0.0, "hidden_size": 3072, "intermediate_size": 8192,
        "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": False, "vocab_size": 32064,
    },
    "gpt2": {
        "model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.1, "layer_norm_epsilon": 1e-05,
        "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
        "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "vocab_size": 50257,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_give_the_presets_without_a_word(name, capsys):
    assert config_from_hf(PUBLISHED[name]) == preset(name)
    assert capsys.readouterr().out == ""


SMALL = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 12, "max_position_embeddings": 64}  # fmt: skip


def read(kind: str, **fields) -> DecoderConfig:
    return config_from_hf({"model_type": kind, **(SMALL if kind != "gpt2" else {}), **fields})


def turn(kind: str, **fields) -> Rotary:
    return read(kind, **fields).layers[0].rotary


def test_both_forms_of_rotary_positions_are_read():
    assert turn("llama", rope_theta=50) == Rotary(50.0)
    assert turn("llama", rope_parameters={"rope_theta": 50.0, "rope_type": "default"}) == Rotary(50.0)
    linear = {"type": "linear", "factor": 2.0}
    assert turn("llama", rope_scaling=linear, rope_theta=50.0) == Rotary(50.0, LinearScaling(2.0))
    assert turn("llama", rope_parameters={**linear, "rope_theta": 50.0}) == Rotary(50.0, LinearScaling(2.0))
    assert turn("smollm3") == Rotary(2e6)
    assert turn("llama", rope_parameters=ROPE3).scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)
    assert turn("internlm2", rope_scaling={"type": "dynamic", "factor": 2.0}).scaling == DynamicScaling(2.0, 64)


def test_the_amplitude_of_yarn_and_longrope_follows_from_the_factor():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    scaling = turn("qwen3", rope_scaling=yarn).scaling
    assert scaling == YarnScaling(4.0, 16, 0.1 * np.log(4.0) + 1)
    assert turn("qwen3", rope_scaling={**yarn, "attention_factor": 1.5, "beta_fast": None}).scaling.amplitude == 1.5
    long = {"type": "su", "short_factor": [1.0], "long_factor": [2]}  # heads of two coordinates
    expected = LongScaling((1.0,), (2.0,), 16, np.sqrt(1 + np.log(4.0) / np.log(16)))
    assert turn("phi3", rope_scaling=long, original_max_position_embeddings=16).scaling == expected
    assert turn("phi3", partial_rotary_factor=0.5, head_dim=4).share == 0.5


def test_null_is_no_window_and_no_bound():
    assert read("mistral").layers == (Layer(4096),)
    assert read("mistral", sliding_window=None).layers == (Layer(),)
    assert (read("gemma2").score_cap, read("gemma2").logit_cap) == (50.0, 30.0)
    uncapped = read("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (uncapped.score_cap, uncapped.logit_cap) == (None, None)
    assert read("mistral", num_key_value_heads=None).key_value_heads == 4
    assert (read("llama", head_dim=None).head_size, read("llama", head_dim=6).head_size) == (2, 6)


def test_layers_with_and_without_windows_and_rotations():
    windows = lambda shape: [layer.window for layer in shape.every_layer]  # noqa: E731
    assert windows(read("qwen2", use_sliding_window=True, max_window_layers=1, sliding_window=5)) == [None, 5]
    assert windows(read("qwen2", max_window_layers=0, sliding_window=5)) == [None, None]
    assert windows(read("gemma2", sliding_window=5, num_hidden_layers=3)) == [5, None, 5]
    stated = ["full_attention", "sliding_attention"]
    assert windows(read("gemma2", layer_types=stated, sliding_window=5)) == [None, 5]
    gemma = read("gemma3_text", num_hidden_layers=4, sliding_window_pattern=2, rope_theta=90.0,
                 rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_local_base_freq=7.0)  # fmt: skip
    assert gemma.layers == (Layer(4096, Rotary(7.0)), Layer(None, Rotary(90.0, LinearScaling(8.0))))
    apart = {"sliding_attention": {"rope_theta": 7.0}, "full_attention": {"rope_type": "linear", "factor": 8.0,
                                                                          "rope_theta": 90.0}}  # fmt: skip
    assert read("gemma3_text", num_hidden_layers=4, sliding_window_pattern=2, rope_parameters=apart) == gemma
    smollm = read("smollm3", num_hidden_layers=4)
    assert [layer.rotary is None for layer in smollm.every_layer] == [False, False, False, True]
    assert read("smollm3", no_rope_layers=[0, 1]).layers[0].rotary is None


def test_biases_of_every_kind():
    assert read("llama").biases == ()
    assert read("llama", attention_bias=True, mlp_bias=True).biases == (
        "query", "key", "value", "output", "gate", "up", "down"
    )  # fmt: skip
    assert read("qwen2").biases == ("query", "key", "value")
    assert read("qwen3", attention_bias=True).biases == ("query", "key", "value", "output")


def test_a_shape_without_a_kind_is_of_the_first_kind_that_fits():
    for name in ("smollm2_135m", "mistral_7b", "qwen2_5_7b", "qwen3_8b", "gemma2_2b", "gemma3_1b", "gpt2"):
        shape = preset(name)
        assert decoder_files.kind_of(dataclasses.replace(shape, kind="")) == shape.kind
    odd = dataclasses.replace(preset("gpt2"), kind="", scaled_words=True)
    with pytest.raises(InputError, match="no model_type of transformers has the shape"):
        decoder_files.kind_of(odd)


def test_a_shape_that_its_kind_cannot_have_is_not_written():
    shape = dataclasses.replace(preset("llama3_1_8b"), logit_cap=30.0, head_norms=True)
    with pytest.raises(InputError, match="kind='llama' has other head_norms, logit_cap in transformers"):
        decoder_files.ARCHITECTURE.to_hf(shape)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("lama", {}, "model_type='lama'; expected another, nearest: llama"),
        ("qwen2_moe", {}, "model_type='qwen2_moe'; expected another, nearest: qwen2, qwen3"),
        ("llama", {"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "rope_type='ntk'; expected default or linear"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor=None; expected a number above 0"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0,
                                    "high_freq_factor": 1.0}}, "low_freq_factor=4.0, high_freq_factor=1.0"),
        ("llama", {"rope_scaling": [2.0]}, r"rope_scaling=\[2.0\]; expected an object"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "rope_parameters for 'full_attention'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5; expected 1"),
        ("llama", {"attention_bias": "yes"}, "attention_bias='yes'; expected true or false"),
        ("llama", {"hidden_act": "swiglu"}, "hidden_act='swiglu'; expected another, nearest:"),
        ("llama", {"num_key_value_heads": 3}, "key_value_heads=3 does not divide heads=4"),
        ("llama", {"hidden_size": 10}, "hidden_size=10, num_attention_heads=4 and no head_dim"),
        ("llama", {"auto_map": {"AutoModel": "m.M"}}, "auto_map=.*code that comes with weights is never"),
        ("llama", {"num_local_experts": 8}, "num_local_experts=8; expected a model without experts"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config=.*dequantize"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0; expected a whole number from 1"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types=.*; expected 2 of 'full_attention' and"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "sliding_window=None, but has layers with a window"),
        ("gemma2", {"sliding_window": None}, "sliding_window=None, but has layers with a window"),
        ("gemma2", {"use_bidirectional_attention": True}, "expected attention to earlier tokens alone"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0; expected null"),
        ("smollm3", {"no_rope_layers": [1]}, r"no_rope_layers=\[1\]; expected 1 or 0 for each of 2 layers"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": 1.0}}, "short_factor=1.0; expected a list"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}},
         "4 factors of rotary embeddings, expected 1"),
        ("gpt2", {"n_head": 5}, "n_embd=768, n_head=5; expected a width that the heads divide"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "expected scores with the same scale in all layers"),
    ],
)  # fmt: skip
def test_unusable_configs_say_what_was_expected(kind, fields, message):
    with pytest.raises(InputError, match=message) as caught:
        read(kind, **fields)
    assert "\n" not in str(caught.value)
