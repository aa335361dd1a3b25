"""The ViT itself: patches, positions, shapes, presets, what reaches what."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from surm.errors import InputError
from surm.models.vit import PRESETS, ViT, ViTConfig, patches, preset, resize_positions
from surm.ops.activations import ACTIVATIONS

TINY = ViTConfig(image_size=16, patch_size=8, width=12, depth=1, heads=3, mlp_width=24)

# As published: timm's ViTs with their 1000 classes, CLIP's vision towers without the projection.
PUBLISHED = {
    "vit_ti16": 5_717_416, "vit_s16": 22_050_664, "vit_b16": 86_567_656, "vit_b32": 88_224_232,
    "vit_l16": 304_326_632, "clip_b32": 87_456_000, "clip_b16": 85_799_424, "clip_l14": 303_179_776,
}  # fmt: skip


def _model(config: ViTConfig = TINY, classes: int = 4, **options) -> ViT:
    return ViT(config, classes, rngs=nnx.Rngs(0), **options)


def _run(model: ViT, images: jax.Array) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """Hidden states, features and logits."""
    graph, state = nnx.split(model)
    return _compiled(graph, state, images)


@functools.partial(jax.jit, static_argnums=0)
def _compiled(graph: nnx.GraphDef, state: nnx.State, images: jax.Array):
    model = nnx.merge(graph, state)
    return model.hidden_states(images), model.features(images), model(images)


def _images(size: int = 16, batch: int = 2, channels: int = 3) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, size, size, channels))


@pytest.mark.parametrize(
    ("height", "width", "size", "channels"), [(4, 4, 2, 3), (6, 4, 2, 1), (9, 3, 3, 2), (5, 5, 5, 3)]
)
def test_patches_are_cut_row_by_row(height, width, size, channels):
    images = np.random.default_rng(0).normal(size=(2, height, width, channels)).astype(np.float32)
    expected = [
        [
            [image[top + i, left + j, c] for i in range(size) for j in range(size) for c in range(channels)]
            for top in range(0, height, size)
            for left in range(0, width, size)
        ]
        for image in images
    ]
    np.testing.assert_array_equal(patches(jnp.asarray(images), size), np.float32(expected))


def test_patches_must_tile_the_image():
    with pytest.raises(InputError, match="3×3 do not tile images of 16×16"):
        patches(_images(), 3)


def test_positions_on_the_same_grid_stay_the_same_array():
    position = jnp.arange(40.0).reshape(10, 4)
    assert resize_positions(position, 3, 1) is position


@pytest.mark.parametrize("grid", [2, 5, 7])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_resized_positions_keep_the_extra_rows_and_a_constant(grid, extra):
    special = jnp.arange(extra * 4.0).reshape(extra, 4) - 7
    constant = jnp.asarray([1.0, -2.0, 0.5, 3.0])
    position = jnp.concatenate([special, jnp.tile(constant, (9, 1))])
    resized = resize_positions(position, grid, extra)
    assert resized.shape == (extra + grid * grid, 4)
    np.testing.assert_array_equal(resized[:extra], special)
    np.testing.assert_allclose(resized[extra:], np.tile(constant, (grid * grid, 1)), rtol=1e-5)


def test_resized_positions_keep_rows_and_columns_apart():
    rows = jnp.repeat(jnp.arange(4.0), 4)[:, None]  # grows with the row, not with the column
    resized = np.asarray(resize_positions(rows, 8, 0)).reshape(8, 8)
    np.testing.assert_allclose(resized, np.tile(resized[:, :1], (1, 8)), atol=1e-5)
    assert (np.diff(resized[1:-1, 0]) > 0).all()


def test_positions_must_form_a_square():
    with pytest.raises(InputError, match="7 patch positions do not form a square grid"):
        resize_positions(jnp.zeros((8, 4)), 3, 1)


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize(("image", "patch", "channels"), [(16, 8, 3), (28, 7, 1), (15, 5, 3), (8, 8, 2), (12, 1, 3)])
def test_any_image_and_patch_size(image, patch, channels, pooling):
    config = ViTConfig(image, patch, 12, 1, 2, 12, channels=channels, pooling=pooling)

    def run(images):
        model = _model(config)
        return model.hidden_states(images), model.features(images), model(images)

    states, features, logits = jax.eval_shape(run, jnp.zeros((2, image, image, channels)))
    tokens = (image // patch) ** 2 + (pooling == "class")
    assert [state.shape for state in states] == [(2, tokens, 12)] * 2
    assert features.shape == (2, 12)
    assert logits.shape == (2, 4)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    classes = 1000 if name.startswith("vit") else 1
    model = nnx.eval_shape(lambda: _model(PRESETS[name], classes))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    if name.startswith("clip"):
        count -= PRESETS[name].width + 1  # the head of one class
    assert count == PUBLISHED.get(name, count)
    assert name in PUBLISHED or name == "vit_micro"


FORMULAS = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "relu": lambda x: max(x, 0.0),
    "gelu_10": lambda x: min(x * (1 + math.erf(x / math.sqrt(2))) / 2, 10.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "leaky_relu": lambda x: max(x, 0.01 * x),
    "hardswish": lambda x: x * min(max(x + 3, 0.0), 6.0) / 6,
    "identity": lambda x: x,
    "laplace": lambda x: (1 + math.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))) / 2,
    "sqrtsoftplus": lambda x: math.sqrt(math.log1p(math.exp(x))),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_their_formulas(name):
    points = np.linspace(-12, 12, 241, dtype=np.float32)
    expected = [FORMULAS[name](float(x)) for x in points]
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(points)), expected, atol=3e-6, rtol=3e-6)


def test_gelu_keeps_its_type_and_is_exact_in_half_precision():
    points = jnp.linspace(-6, 6, 97, dtype=jnp.bfloat16)
    found = ACTIVATIONS["gelu"](points)
    assert found.dtype == jnp.bfloat16
    expected = [FORMULAS["gelu"](float(x)) for x in points]
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_every_parameter_gets_a_gradient_in_the_first_step(pooling):
    graph, state = nnx.split(_model(dataclasses.replace(TINY, pooling=pooling, embedding_norm=True)))
    gradient = jax.jit(jax.grad(lambda state: (nnx.merge(graph, state)(_images()) ** 2).sum()))(state)
    silent = [path for path, leaf in nnx.to_flat_state(gradient) if not np.abs(leaf[...]).max() > 0]
    assert silent == []


def test_mean_pooling_sees_every_patch_and_has_no_class_token():
    model = _model(dataclasses.replace(TINY, pooling="mean"))
    assert not hasattr(model.embed, "class_token")
    states, features, _ = _run(model, _images())
    np.testing.assert_allclose(features, model.norm(states[-1]).mean(axis=1), rtol=1e-5, atol=1e-6)


def test_images_of_a_batch_do_not_mix():
    model, images = _model(), _images()
    *_, logits = _run(model, images)
    *_, changed = _run(model, images.at[1].add(1.0))
    np.testing.assert_allclose(logits[0], changed[0], rtol=1e-5, atol=1e-6)
    assert np.abs(logits[1] - changed[1]).max() > 1e-4


def test_bfloat16_computes_in_it_and_keeps_float32_parameters():
    model = _model(dtype=jnp.bfloat16)
    states, features, logits = _run(model, _images())
    assert {array.dtype for array in (*states, features, logits)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    *_, expected = _run(_model(), _images())
    np.testing.assert_allclose(logits.astype(jnp.float32), expected, atol=0.05)


def test_one_seed_one_model():
    one, two = (nnx.state(_model()) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 5}, "patch_size=5 does not divide image_size=16"),
        ({"pooling": "max"}, "pooling='max', expected 'class' or 'mean'"),
        ({"activation": "gelo"}, "activation='gelo'; nearest: gelu"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    broken = dataclasses.replace(TINY)
    for field, value in changes.items():
        # from behind, since the type checker of the tests watches the front
        object.__setattr__(broken, field, value)
    with pytest.raises(InputError, match=message):
        broken.__post_init__()


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match="no model is called 'vit_b61'; nearest: .*vit_b16"):
        preset("vit_b61")


def test_images_of_another_size_are_refused_by_size():
    model = ViT(preset("vit_micro"), 2, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="images of 40×32×3, expected 32×32×3"):
        model(jnp.zeros((1, 40, 32, 3)))
