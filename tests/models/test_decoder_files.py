"""Decoders' arrays in Hugging Face's files: joint, tied, wrapped, bare, missing."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from surm.errors import InputError
from surm.models import catalogue, decoder_files
from surm.models.convert import outline, restore
from surm.models.decoder import Decoder
from surm.models.naming import FILES
from surm.models.weights import Weights
from tests.models.test_decoder import filled
from tests.models.test_decoder_fields import read


def model_of(kind: str, **fields) -> Decoder:
    return filled(read(kind, **fields))


def arrays_of(model: Decoder) -> dict[str, np.ndarray]:
    """The arrays of a model as its files have them."""
    naming = decoder_files.KINDS[model.config.kind].namings[FILES]
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    named = {".".join(map(str, path)): np.asarray(variable[...]) for path, variable in flat}
    theirs = {naming.theirs(path): naming.their_array(path, array, model.config) for path, array in named.items()}
    return naming.table.together(theirs)


def restored(kind: str, arrays: dict[str, np.ndarray], **fields) -> Decoder:
    pixels = ((0.5,) * 3,) * 2
    empty = outline(lambda: Decoder(read(kind, **fields), rngs=nnx.Rngs(1)))
    return restore(empty, Weights("FILE", arrays, *pixels))


def same(one: Decoder, other: Decoder) -> None:
    states = [nnx.state(model, nnx.Param) for model in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *states)


FORMS = {"llama": {}, "qwen2": {}, "qwen3": {"attention_bias": True}, "gemma3_text": {"head_dim": 4}, "phi3": {},
         "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 30, "n_positions": 9}}  # fmt: skip


@pytest.mark.parametrize("kind", FORMS)
def test_files_are_read_as_they_are_written(kind):
    model = model_of(kind, **FORMS[kind])
    same(restored(kind, arrays_of(model), **FORMS[kind]), model)


def test_joint_maps_are_split_by_rows():
    model = model_of("phi3")
    joint = arrays_of(model)["model.layers.1.self_attn.qkv_proj.weight"]
    maps = model.blocks[1].attention
    parts = [np.asarray(layer.kernel[...]).T for layer in (maps.query, maps.key, maps.value)]
    np.testing.assert_array_equal(joint, np.concatenate(parts))
    wide = arrays_of(model)["model.layers.1.mlp.gate_up_proj.weight"]
    parts = [np.asarray(layer.kernel[...]).T for layer in (model.blocks[1].mlp.gate, model.blocks[1].mlp.up)]
    np.testing.assert_array_equal(wide, np.concatenate(parts))


INTERNLM2 = {
    "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    "lm_head": "output", "embed_tokens": "tok_embeddings",
}  # fmt: skip


def test_internlm_2_is_a_llama_with_a_joint_map_of_grouped_heads():
    model = model_of("llama", attention_bias=True)
    arrays, joint = arrays_of(model), {}
    for block in range(2):
        for kind, tail in (("weight", (8,)), ("bias", ())):
            query, key, value = (arrays.pop(f"model.layers.{block}.self_attn.{x}_proj.{kind}") for x in "qkv")
            groups = [[query.reshape(2, 2, 2, *tail)[head], key.reshape(2, 1, 2, *tail)[head],
                       value.reshape(2, 1, 2, *tail)[head]] for head in range(2)]  # fmt: skip
            rows = np.concatenate([np.concatenate(group) for group in groups]).reshape(-1, *tail)
            joint[f"model.layers.{block}.attention.wqkv.{kind}"] = rows
    for key, array in arrays.items():
        for ours, word in INTERNLM2.items():
            key = key.replace(ours, word)
        joint[key] = array
    found = restored("internlm2", joint, rms_norm_eps=1e-6, auto_map={"AutoModel": "modeling_internlm2.InternLM2Model"})
    same(found, model)
    assert catalogue.of(found).kind_of(found.config) == "llama"
    assert "not in the model: blocks.0.attention.grouped" in refused("internlm2", joint, num_key_value_heads=4)


def refused(kind: str, arrays: dict[str, np.ndarray], **fields) -> str:
    with pytest.raises(InputError) as caught:
        restored(kind, arrays, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bare_models_file_is_read_and_lacks_an_output_alone():
    tied, untied = model_of("llama", tie_word_embeddings=True), model_of("qwen3")
    bare = {key.removeprefix("model."): array for key, array in arrays_of(tied).items()}
    same(restored("llama", bare, tie_word_embeddings=True), tied)
    bare = {key.removeprefix("model."): array for key, array in arrays_of(untied).items() if key != "lm_head.weight"}
    assert "does not fit the model; missing in the file: lm_head.kernel" in refused("qwen3", bare)


def test_a_wrappers_name_is_taken_off(capsys):
    model = model_of("llama")
    wrapped = {f"module.{key}": array for key, array in arrays_of(model).items()}
    same(restored("llama", wrapped), model)
    assert "'module.' is removed" in capsys.readouterr().out


def test_buffers_are_passed_over(capsys):
    model = model_of("gpt2", **FORMS["gpt2"])
    more = {"transformer.h.0.attn.bias": np.ones((1, 1, 9, 9)), "transformer.h.1.attn.masked_bias": np.ones(())}
    same(restored("gpt2", arrays_of(model) | more, **FORMS["gpt2"]), model)
    bare = {key.removeprefix("transformer."): array for key, array in (arrays_of(model) | more).items()}
    same(restored("gpt2", bare, **FORMS["gpt2"]), model)
    llama = model_of("llama")
    same(restored("llama", arrays_of(llama) | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2)}), llama)
    assert "ignored" in capsys.readouterr().out


def test_an_output_of_its_own_unties_a_model_that_is_said_to_be_tied(capsys):
    model = model_of("llama")
    found = restored("llama", arrays_of(model), tie_word_embeddings=True)
    same(found, model)
    assert not found.config.tied
    assert "says tie_word_embeddings=true, but the file holds an lm_head with other values" in capsys.readouterr().out


@pytest.mark.parametrize("held", ["both", "output"])
def test_a_tied_table_may_stand_under_both_names_or_under_the_outputs(held, capsys):
    model = model_of("llama", tie_word_embeddings=True)
    arrays = arrays_of(model)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    if held == "output":
        del arrays["model.embed_tokens.weight"]
    same(restored("llama", arrays, tie_word_embeddings=True), model)
    assert capsys.readouterr().out == ""


def test_what_the_config_promises_and_the_file_lacks_is_one_line():
    arrays = arrays_of(model_of("llama"))
    message = refused("llama", arrays, attention_bias=True)
    assert "missing in the file: blocks.0.attention.key.bias, blocks.0.attention.output.bias" in message
    message = refused("qwen3", arrays, head_dim=2)
    assert "missing in the file: blocks.0.attention.key_norm.scale, blocks.0.attention.query_norm.scale" in message
    biased = arrays_of(model_of("llama", attention_bias=True))
    assert "not in the model: blocks.0.attention.key.bias" in refused("llama", biased)
    broken = arrays_of(model_of("phi3")) | {"model.layers.0.self_attn.qkv_proj.weight": np.ones((13, 8))}
    assert "not in the model: blocks.0.attention.joint.kernel" in refused("phi3", broken)


@pytest.mark.parametrize("table", decoder_files.TABLES, ids=lambda table: table.name)
def test_no_key_matches_two_rules_and_every_key_is_of_the_body(table):
    for rule in table.rules:
        key = rule.key(rule.path.replace(r"\1", "3"))
        fitting = [other for other in table.rules if re.fullmatch(other.pattern, key)]
        assert fitting == [rule], key
    keys = {rule.key(rule.path.replace(r"\1", "3")) for rule in table.rules}
    assert len(keys) == len(table.rules)
    assert all(re.fullmatch(table.body, key) for key in keys)
