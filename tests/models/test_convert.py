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
from surm.models.vit import ViT, patches, resize_positions
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
    with pytest.raises(InputError, match=r"'vit.layernorm.bias' and 'layernorm.bias' both mean .*'norm.bias'"):
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
