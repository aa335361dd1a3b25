"""Tables, restoring and configurations; test_golden.py and tests/parity say that the numbers are right."""

import dataclasses
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from surm.errors import InputError
from surm.models import bert
from surm.models.convert import convert, restore
from surm.models.hf_config import config_from_hf
from surm.models.tables import HF_BERT, HF_CLIP, HF_VIT
from surm.models.vit import ViT, ViTConfig, patches, resize_positions
from surm.models.weights import Weights, open_weights
from tests.models.naming import renamed

GOLDEN = pathlib.Path(__file__).parent / "golden"


@functools.cache
def _weights(name: str = "vit") -> Weights:
    return open_weights(str(GOLDEN / name))


@functools.cache
def _model(name: str = "vit", classes: int = 7, **changes) -> ViT:
    config = dataclasses.replace(config_from_hf(_weights(name).config), **changes)
    return ViT(config, classes, rngs=nnx.Rngs(0))


def _any(name: str) -> ViT | bert.Bert:
    if name in ("vit", "clip"):
        return _model(name)
    return bert.Bert(config_from_hf(_weights(name).config), 5, rngs=nnx.Rngs(0))


def _parameters(model: ViT | bert.Bert) -> dict[str, np.ndarray]:
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in state}


def _changed(name: str = "vit", remove: str = "", **add: np.ndarray) -> Weights:
    weights = _weights(name)
    kept = {key: array for key, array in weights.arrays.items() if not remove or not re.search(remove, key)}
    return dataclasses.replace(weights, arrays={**kept, **{k.replace("__", "."): v for k, v in add.items()}})


def _refused(model: ViT, weights: Weights, **options) -> str:
    with pytest.raises(InputError) as caught:
        restore(model, weights, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for path, array in one.items():
        np.testing.assert_array_equal(array, other[path], err_msg=path)


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_conversion_gives_exactly_the_models_variables(name):
    found = {path: array.shape for path, array in convert(_weights(name).arrays).items()}
    expected = {path: array.shape for path, array in _parameters(_model(name)).items()}
    if name == "clip":
        del expected["head.kernel"], expected["head.bias"]
    assert found == expected


def test_the_patch_kernel_does_what_the_convolution_did():
    rng = np.random.default_rng(0)
    kernel, images = rng.normal(size=(5, 3, 4, 4)), rng.normal(size=(2, 8, 8, 3))
    dimensions = ("NHWC", "OIHW", "NHWC")
    expected = jax.lax.conv_general_dilated(images, kernel, (4, 4), "VALID", dimension_numbers=dimensions)
    ours = convert({"embeddings.patch_embeddings.projection.weight": kernel})["embed.patch.kernel"]
    found = patches(jnp.asarray(images), 4) @ ours
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)


def test_linear_weights_are_transposed_and_norms_are_not():
    rng = np.random.default_rng(0)
    marker, weight, scale = rng.normal(size=6), rng.normal(size=(4, 6)), rng.normal(size=6)
    converted = convert({
        "vision_model.embeddings.class_embedding": marker,
        "vision_model.encoder.layers.11.mlp.fc1.weight": weight,
        "vision_model.encoder.layers.11.layer_norm2.weight": scale,
    })  # fmt: skip
    expected = {"blocks.11.mlp.up.kernel": weight.T, "blocks.11.norm2.scale": scale}
    _same(converted, {"embed.class_token": marker[None], **expected})


@pytest.mark.parametrize("table", [HF_VIT, HF_CLIP, HF_BERT], ids=lambda table: table.name)
def test_no_key_matches_two_rules(table):
    keys = [re.sub(r"\\(?=\.)", "", rule.pattern.replace(r"(\d+)", "3")) for rule in table.rules]
    for key, own in zip(keys, table.rules, strict=True):
        assert [rule for rule in table.rules if re.fullmatch(rule.pattern, key)] == [own]
        assert not re.fullmatch(table.ignored, key)


def test_what_else_stands_in_published_files_is_ignored():
    vit = _changed(pooler__dense__weight=np.ones((3, 3)), vit__embeddings__mask_token=np.ones(3))
    _same(convert(vit.arrays), convert(_weights().arrays))
    extra = ("text_model__final_layer_norm__bias", "logit_scale", "visual_projection__weight",
             "text_projection__weight", "embeddings__position_ids", "classifier__bias")  # fmt: skip
    clip = _changed("clip", **{key: np.ones(2) for key in extra})
    _same(convert(clip.arrays), convert(_weights("clip").arrays))


@pytest.mark.parametrize(("name", "form"), [("vit", "new"), ("vit", "bare"), ("clip", "prefixed")])
def test_every_naming_of_transformers_converts_alike(name, form):
    arrays = _weights(name).arrays
    other = {renamed(key, form): array for key, array in arrays.items()}
    assert other.keys() != arrays.keys()
    _same(convert(other), convert(arrays))


def test_robertas_classifier_takes_the_place_of_the_encoders_pooler():
    rng = np.random.default_rng(0)
    word, unused, dense, out = (rng.normal(size=size) for size in ((6, 4), (4, 4), (4, 4), (3, 4)))
    encoder = {"roberta.embeddings.word_embeddings.weight": word, "roberta.pooler.dense.weight": unused}
    head = {"classifier.dense.weight": dense, "classifier.out_proj.weight": out}
    _same(convert(encoder), {"embed.word.embedding": word, "pooler.kernel": unused.T})
    _same(convert(encoder | head), {"embed.word.embedding": word, "pooler.kernel": dense.T, "head.kernel": out.T})


def test_heads_of_pretraining_are_ignored():
    word = np.zeros((6, 4))
    others = {"cls.predictions.bias": word, "qa_outputs.weight": word, "bert.embeddings.position_ids": word}
    _same(convert({"bert.embeddings.word_embeddings.weight": word, **others}), {"embed.word.embedding": word})


def test_unknown_keys_are_shown():
    arrays = {f"encoder.block.{index}.weight": np.ones(2) for index in range(9)}
    with pytest.raises(InputError, match=r"encoder\.block\.0\.weight, .* and 5 more; known: .*CLIP"):
        convert(arrays)
    with pytest.raises(InputError, match="keys none"):
        convert({})


def test_the_text_tower_alone_is_no_vision_model():
    with pytest.raises(InputError, match="unknown model"):
        convert({"text_model.embeddings.position_embedding.weight": np.ones((2, 2))})


def test_two_keys_for_one_variable_are_refused():
    arrays = {**_weights().arrays, "layernorm.bias": np.ones(16)}
    with pytest.raises(InputError, match=r"'vit.layernorm.bias' and 'layernorm.bias' are both .*'norm.bias'"):
        convert(arrays)


@pytest.mark.parametrize("head", [False, True])
def test_restore_sets_everything_but_perhaps_the_head(head):
    model = _model()
    fresh, found = _parameters(model), _parameters(restore(model, _weights(), head=head))
    expected = convert(_weights().arrays)
    if not head:
        expected |= {path: fresh[path] for path in ("head.kernel", "head.bias")}
    _same(found, expected)


def test_restore_leaves_its_input_untouched():
    model = _model()
    before = {path: array.copy() for path, array in _parameters(model).items()}
    restored = restore(model, _weights(), head=True)
    restored.norm.scale[...] = restored.norm.scale[...] + 1
    _same(_parameters(model), before)


def test_our_own_paths_restore_as_they_are():
    model = _model()
    arrays = {path: array + 1 for path, array in _parameters(model).items()}
    restored = restore(model, Weights("own", arrays, (0.5,) * 3, (0.5,) * 3), head=True)
    _same(_parameters(restored), arrays)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, ml_dtypes.float8_e4m3fn])
def test_other_precisions_become_the_models(dtype):
    arrays = {key: array.astype(dtype) for key, array in _weights().arrays.items()}
    found = _parameters(restore(_model(), dataclasses.replace(_weights(), arrays=arrays), head=True))
    expected = {path: array.astype(np.float32) for path, array in convert(arrays).items()}
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    _same(found, expected)


@pytest.mark.parametrize("image_size", [8, 24, 48])
def test_positions_are_resized_to_the_models_grid(image_size):
    restored = restore(_model(image_size=image_size), _weights())
    position = convert(_weights().arrays)["embed.position"]
    expected = resize_positions(jnp.asarray(position), image_size // 8, 1)
    np.testing.assert_array_equal(restored.embed.position[...], expected)


def test_positions_without_a_class_token_are_resized_too():
    small, large = _model(pooling="mean"), _model(pooling="mean", image_size=32)
    arrays = _parameters(small)
    found = restore(large, Weights("own", arrays, (0.5,) * 3, (0.5,) * 3)).embed.position[...]
    np.testing.assert_array_equal(found, resize_positions(jnp.asarray(arrays["embed.position"]), 4, 0))


def test_a_class_token_does_not_fit_mean_pooling():
    message = _refused(_model(pooling="mean"), _weights())
    assert "not in the model: embed.class_token" in message
    assert "embed.position: file (5, 16), model (4, 16)" in message


def test_mean_pooled_weights_do_not_fit_a_class_token():
    own = Weights("own", _parameters(_model(pooling="mean")), (0.5,) * 3, (0.5,) * 3)
    message = _refused(_model(), own)
    assert "missing in the file: embed.class_token" in message
    assert "embed.position: file (4, 16), model (5, 16)" in message


def test_positions_of_no_square_grid_are_a_mismatch():
    weights = _changed(vit__embeddings__position_embeddings=np.ones((1, 7, 16), np.float32))
    assert "embed.position: file (7, 16), model (5, 16)" in _refused(_model(), weights)


def test_all_differences_come_in_one_line():
    extra = {"vit__encoder__unheard_of": np.ones(3), "vit__loss__weight": np.ones(3)}
    weights = _changed(remove="layernorm_after", vit__layernorm__bias=np.ones(9), **extra)
    message = _refused(_model(), weights)
    assert "'" + weights.name + "' does not fit" in message
    assert "missing in the file: blocks.0.norm2.bias, blocks.0.norm2.scale, blocks.1.norm2.bias" in message
    assert "not in the model: encoder.unheard_of;" in message and "loss" not in message
    assert "norm.bias: file (9,), model (16,)" in message


UNUSED = {
    "a decoder of masked images": (
        "vit",
        {"decoder.0.weight": (192, 16, 1, 1), "decoder.0.bias": (192,)},
        "decoder.* (2)",
    ),
    "class weights of a loss": ("bert", {"loss_fct.weight": (3,)}, "loss_fct.weight"),
    "a second head": ("bert", {"domain.weight": (2, 16), "domain.bias": (2,)}, "domain.* (2)"),
    "a head of pretraining": (
        "bert",
        {"cls.predictions.bias": (9,), "bert.embeddings.position_ids": (1, 9)},
        "bert.emb",
    ),
    "a teacher": (
        "bert",
        {"teacher.encoder.layer.0.output.dense.weight": (2, 2)},
        "teacher.encoder.layer.0.output.dense.",
    ),
}


@pytest.mark.parametrize("case", UNUSED)
def test_keys_that_the_model_has_no_use_for_are_said_and_passed_over(case, capsys):
    name, extra, said = UNUSED[case]
    model, arrays = _any(name), {key: np.ones(size, np.float32) for key, size in extra.items()}
    restored = restore(model, dataclasses.replace(_weights(name), arrays=_weights(name).arrays | arrays))
    assert f"passed over: {said}" in capsys.readouterr().out
    _same(_parameters(restored), _parameters(restore(model, _weights(name))))


@pytest.mark.parametrize("name", ["vit", "clip", "bert", "roberta"])
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "0.auto_model."])
def test_a_wrappers_name_is_taken_off_and_said(name, wrapper, capsys):
    arrays = {wrapper + key: array for key, array in _weights(name).arrays.items()}
    found = restore(_any(name), dataclasses.replace(_weights(name), arrays=arrays))
    assert "is taken off its keys" in capsys.readouterr().out
    _same(_parameters(found), _parameters(restore(_any(name), _weights(name))))


def test_a_compiled_part_is_found_again(capsys):
    arrays = {key.replace("encoder.", "encoder._orig_mod."): array for key, array in _weights("bert").arrays.items()}
    found = restore(_any("bert"), dataclasses.replace(_weights("bert"), arrays=arrays))
    assert capsys.readouterr().out.startswith(f"{_weights('bert').name!r}: '_orig_mod.' is taken off its keys\n")
    _same(_parameters(found), _parameters(restore(_any("bert"), _weights("bert"))))


def test_an_unknown_wrapper_is_named():
    arrays = {f"net.student.{key}": array for key, array in _weights("bert").arrays.items()}
    message = _refused(_any("bert"), dataclasses.replace(_weights("bert"), arrays=arrays))
    assert "behind 'net.student.bert.': save the file without that prefix" in message


def test_two_wrapped_models_are_refused():
    arrays = {
        f"{name}.{key}": array for key, array in _weights("bert").arrays.items() for name in ("model", "backbone")
    }
    message = _refused(_any("bert"), dataclasses.replace(_weights("bert"), arrays=arrays))
    assert "weights of several models, behind backbone., model.; expected those of one" in message


def test_a_key_inside_of_the_encoder_is_never_passed_over():
    for key in ("bert.encoder.layer.0.crossattention.self.query.weight", "bert.embeddings.task_type_embeddings.weight"):
        weights = _changed("bert", **{key.replace(".", "__"): np.ones((16, 16), np.float32)})
        assert f"not in the model: {key.removeprefix('bert.')}" in _refused(_any("bert"), weights)
    shallow = dataclasses.replace(config_from_hf(_weights("bert").config), depth=1)
    message = _refused(bert.Bert(shallow, 5, rngs=nnx.Rngs(0)), _weights("bert"))
    assert "not in the model: blocks.1.attention.key.bias" in message and message.endswith("and 8 more")


def test_a_misspelt_key_is_named_beside_the_one_expected():
    arrays = {key.replace("layernorm_after", "layer_norm_after"): array for key, array in _weights().arrays.items()}
    message = _refused(_model(), dataclasses.replace(_weights(), arrays=arrays))
    named = "'vit.encoder.layer.0.layer_norm_after.bias' where 'encoder.layer.0.layernorm_after.bias' is expected"
    assert "missing in the file: blocks.0.norm2.bias, " in message and named in message


def test_a_head_for_several_labels_at_once_is_refused():
    multi = dataclasses.replace(_weights(), config=_weights().config | {"problem_type": "multi_label_classification"})
    assert "problem_type='multi_label_classification'" in _refused(_model(), multi, head=True)
    restore(_model(), multi)  # as a base its head is not asked for


def test_many_differences_are_counted():
    message = _refused(_model(), _changed(remove=r"encoder\.layer\.1"))
    assert message.count("blocks.1") == 8 and message.endswith("and 8 more")


def test_arrays_of_another_rank_are_a_mismatch():
    weights = _changed(
        vit__embeddings__patch_embeddings__projection__weight=np.ones((2, 3)),
        vit__embeddings__cls_token=np.ones((2, 2, 16)),
    )
    message = _refused(_model(), weights)
    assert "embed.patch.kernel: file (2, 3), model (192, 16)" in message
    assert "embed.class_token: file (2, 2, 16), model (1, 16)" in message


def test_quantised_weights_are_a_mismatch():
    weights = _changed(vit__layernorm__bias=np.ones(16, np.int8))
    assert "norm.bias: file (16,) of int8, model (16,)" in _refused(_model(), weights)


def test_a_head_that_is_asked_for_must_be_there_and_fit():
    assert "missing in the file: head.bias, head.kernel" in _refused(_model(), _changed(remove="classifier"), head=True)
    assert "head.kernel: file (16, 7), model (16, 5)" in _refused(_model(classes=5), _weights(), head=True)
    assert "missing in the file: head.bias, head.kernel" in _refused(
        _model("clip"), _changed("clip", classifier__weight=np.ones((7, 16))), head=True
    )


def test_a_head_of_other_size_is_no_obstacle_when_not_asked_for():
    restore(_model(classes=5), _weights())


def test_configs_give_the_shape_of_the_golden_models():
    vit = ViTConfig(16, 8, 16, 2, 2, 32)
    assert config_from_hf(_weights().config) == vit
    other = {"activation": "quick_gelu", "epsilon": 1e-5, "embedding_norm": True, "patch_bias": False}
    clip = dataclasses.replace(vit, **other)
    assert config_from_hf(_weights("clip").config) == clip
    assert config_from_hf({"model_type": "clip", "vision_config": _weights("clip").config}) == clip
    assert config_from_hf({"model_type": "clip", "vision_config_dict": _weights("clip").config}) == clip


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
    assert capsys.readouterr().out == "config.json says alibi, rope_theta, which is not known here and passed over\n"


def test_an_image_size_may_be_a_pair():
    assert config_from_hf({"model_type": "vit", "image_size": [384, 384]}).image_size == 384


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model_type=None; expected vit or clip"),
        ({"model_type": "gpt2"}, "model_type='gpt2'; expected vit or clip"),
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
        ({"model_type": "electra"}, "embedding_size=128, hidden_size=256; expected both alike"),
    ],
)
def test_unusable_configs_say_what_was_expected(config, message):
    with pytest.raises(InputError, match=message) as caught:
        config_from_hf(config)
    assert "\n" not in str(caught.value)
