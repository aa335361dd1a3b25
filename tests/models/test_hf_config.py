"""What config.json says of a model's shape; tests/parity compares the models and the defaults."""

import dataclasses
import functools
import json
import pathlib

import pytest

from surm.errors import InputError
from surm.models import bert, weights
from surm.models.hf_config import config_from_hf, shape_of
from surm.models.vit import ViTConfig

GOLDEN = pathlib.Path(__file__).parent / "golden"


@functools.cache
def _config(name: str = "vit") -> dict:
    return json.loads((GOLDEN / name / "config.json").read_text())


def test_configs_give_the_shape_of_the_golden_models():
    vit = ViTConfig(16, 8, 16, 2, 2, 32)
    assert config_from_hf(_config()) == vit
    other = {"activation": "quick_gelu", "epsilon": 1e-5, "embedding_norm": True, "patch_bias": False}
    clip = dataclasses.replace(vit, **other)
    assert config_from_hf(_config("clip")) == clip
    assert config_from_hf({"model_type": "clip", "vision_config": _config("clip")}) == clip
    assert config_from_hf({"model_type": "clip", "vision_config_dict": _config("clip")}) == clip


def test_configs_of_text_encoders_give_the_presets():
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    minilm = dataclasses.replace(config_from_hf({"model_type": "bert", **sizes}), pooling="mean")
    assert minilm == bert.preset("minilm_l6")
    assert config_from_hf({"model_type": "bert"}) == bert.preset("bert_base")
    published = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    assert config_from_hf({"model_type": "roberta", **published}) == bert.preset("roberta_base")


def test_what_a_config_leaves_out_is_the_publishers_default():
    assert config_from_hf({"model_type": "vit"}) == ViTConfig(224, 16, 768, 12, 12, 3072)
    clip = config_from_hf({"model_type": "clip", "vision_config": None})
    assert (clip.patch_size, clip.activation, clip.epsilon) == (32, "quick_gelu", 1e-5)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("quick_gelu", "quick_gelu")]
)
def test_activations_are_translated(theirs, ours):
    assert config_from_hf({"model_type": "vit", "hidden_act": theirs}).activation == ours


@pytest.mark.parametrize("kind", ["camembert", "xlm-roberta", "data2vec-text"])
def test_kinds_that_are_a_roberta_by_another_name(kind):
    published = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "vocab_size": 50265}
    assert config_from_hf({"model_type": kind, **published}) == bert.preset("roberta_base")


def test_kinds_that_are_a_bert_or_a_vit_by_another_name():
    sizes = {"hidden_size": 768, "embedding_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    assert config_from_hf({"model_type": "electra", **sizes}) == bert.preset("bert_base")
    assert config_from_hf({"model_type": "ernie"}) == bert.preset("bert_base")
    assert config_from_hf({"model_type": "vit_mae"}) == ViTConfig(224, 16, 768, 12, 12, 3072)
    assert config_from_hf({"model_type": "vit_msn"}).epsilon == 1e-6
    assert config_from_hf({"model_type": "chinese_clip_vision_model"}) == config_from_hf({"model_type": "clip"})


def test_fields_that_are_not_known_are_said_and_those_that_do_not_matter_are_not(capsys):
    config_from_hf({"model_type": "bert", "hidden_dropout_prob": 0.3, "id2label": {"0": "no"}, "problem_type": None})
    assert capsys.readouterr().out == ""
    config_from_hf({"model_type": "bert", "rope_theta": 1e4, "alibi": True})
    assert capsys.readouterr().out == "config.json has unknown fields, which are ignored: alibi, rope_theta\n"


def test_an_unknown_model_is_named_with_its_weights_and_with_models_for_the_same_examples():
    opened = weights.Weights("runs/w", {}, (0.5,), (0.5,), {"model_type": "gptx"})
    with pytest.raises(InputError) as refused:
        shape_of(opened, "image")
    assert str(refused.value).startswith("'runs/w': config.json says model_type='gptx'; expected vit or clip")
    assert "bert" not in str(refused.value) and "llama" not in str(refused.value)


def test_an_image_size_may_be_a_pair():
    assert config_from_hf({"model_type": "vit", "image_size": [384, 384]}).image_size == 384


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model_type=None; expected vit or clip"),
        ({"model_type": "bloom"}, "model_type='bloom'; expected vit or clip"),
        ({"model_type": ["vit"]}, r"model_type=\['vit'\]"),
        ({"model_type": "clip_text_model"}, "model_type='clip_text_model'"),
        ({"model_type": "clip", "vision_config": [1]}, "vision_config that is not an object"),
        ({"model_type": "vit", "hidden_act": "prelu"}, "hidden_act='prelu'; expected another, nearest: relu"),
        ({"model_type": "vit", "hidden_act": {}}, "hidden_act={}"),
        ({"model_type": "vit", "qkv_bias": False}, "qkv_bias=False"),
        ({"model_type": "vit", "hidden_size": "768"}, "hidden_size='768'; expected a whole number"),
        ({"model_type": "vit", "num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"model_type": "vit", "num_channels": True}, "num_channels=True"),
        ({"model_type": "vit", "image_size": [224, 112]}, r"image_size=\[224, 112\]"),
        ({"model_type": "vit", "layer_norm_eps": "small"}, "layer_norm_eps='small'"),
        ({"model_type": "vit", "layer_norm_eps": True}, "layer_norm_eps=True"),
        ({"model_type": "bert", "layer_norm_eps": float("inf")}, "layer_norm_eps=inf"),
        ({"model_type": "bert", "is_decoder": True}, "is_decoder=True; expected an encoder"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"model_type": "roberta", "pad_token_id": None, "max_position_embeddings": 2}, "first_position=2, expected"),
        ({"model_type": "vit", "patch_size": 15}, "patch_size=15 does not divide image_size=224"),
        ({"model_type": "bert", "add_cross_attention": True}, "add_cross_attention=True; expected an encoder without"),
        ({"model_type": "bert", "pruned_heads": {"0": [1]}}, "pruned_heads={'0': .*; expected no pruned heads"),
        ({"model_type": "bert", "auto_map": {"AutoModel": "m.M"}}, "auto_map=.*code that comes with weights is never"),
        ({"model_type": "clip", "quantization_config": {"quant_method": "awq"}}, "quantization_config=.*dequantize"),
        ({"model_type": "ernie", "use_task_id": True}, "use_task_id=True; expected no table of tasks"),
        ({"model_type": "electra"}, "embedding_size=128, hidden_size=256; expected both to be equal"),
    ],
)
def test_unusable_configs_say_what_was_expected(config, message):
    with pytest.raises(InputError, match=message) as caught:
        config_from_hf(config)
    assert "\n" not in str(caught.value)
