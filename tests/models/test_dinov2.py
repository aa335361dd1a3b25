"""What is DINOv2's own: interpolated positions, joint maps in files, the size of the processor, a config.json."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from surm.errors import InputError
from surm.models import dinov2, dinov2_files, interpolation
from surm.models.convert import convert
from surm.models.hf_config import config_from_hf
from surm.models.weights import open_weights
from tests.models.test_golden import GOLDEN


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(("old", "new"), [(3, 7), (7, 3), (5, 5), (1, 4), (37, 16)])
def test_a_constant_stays_a_constant_and_the_same_size_the_same(old, new, smooth):
    found = interpolation.matrix(old, new, smooth=smooth)
    assert found.shape == (new, old)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(found, found[::-1, ::-1], atol=1e-12)
    if old == new:
        np.testing.assert_allclose(found, np.eye(old), atol=1e-12)


def test_weights_half_way_are_those_of_pytorchs_kernel():
    row = interpolation.matrix(8, 4, smooth=False)[1]  # PyTorch's slope at 1 is -3/4, that of most others -1/2
    np.testing.assert_allclose(row, [0, -0.09375, 0.59375, 0.59375, -0.09375, 0, 0, 0], atol=1e-12)


def test_shrinking_smooths_where_it_shall_and_rows_are_the_first_axis():
    noise = np.random.default_rng(0).normal(size=(24, 24, 1))
    smooth, plain = (interpolation.resized(jnp.asarray(noise), 4, smooth=smooth) for smooth in (True, False))
    assert 3 * np.var(smooth) < np.var(plain)
    rows = jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (4, 4, 1))
    resized = np.asarray(interpolation.resized(rows, 8, smooth=False))[..., 0]
    assert np.ptp(resized, axis=1).max() < 1e-5 < np.ptp(resized, axis=0).min()


def test_a_gate_and_the_map_beside_it_are_one_in_files_and_two_here():
    held = load_file(GOLDEN / "dinov2" / "model.safetensors")
    apart = dinov2_files.TABLE.apart(held)
    joint = held["dinov2_with_registers.encoder.layer.0.mlp.weights_in.weight"]
    np.testing.assert_array_equal(
        apart["dinov2_with_registers.encoder.layer.0.mlp.gate_proj.weight"], joint[: len(joint) // 2]
    )
    np.testing.assert_array_equal(
        apart["dinov2_with_registers.encoder.layer.0.mlp.up_proj.weight"], joint[len(joint) // 2 :]
    )
    again = dinov2_files.TABLE.together(apart)
    assert again.keys() == held.keys() and all(np.array_equal(again[key], held[key]) for key in held)
    assert {"blocks.0.mlp.gate.kernel", "blocks.0.mlp.up.bias", "embed.registers"} <= convert(held).keys()


@pytest.mark.parametrize(("made", "expected"), [(224, 224), (230, 518)])
def test_the_model_reads_what_the_processor_makes_if_patches_tile_it(made, expected, tmp_path):
    config = {"model_type": "dinov2", "image_size": 518}
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256},
                 "crop_size": {"height": made, "width": made}}  # fmt: skip
    for name, said in (("config.json", config), ("preprocessor_config.json", processor)):
        (tmp_path / name).write_text(json.dumps(said))
    (tmp_path / "model.safetensors").write_bytes((GOLDEN / "dinov2" / "model.safetensors").read_bytes())
    shape = config_from_hf(config)
    assert shape == dataclasses.replace(dinov2.PRESETS["dinov2_b14"], image_size=518)
    found = dinov2_files.ARCHITECTURE.beside(shape, open_weights(str(tmp_path)))
    assert (found.image_size, found.positions) == (expected, 37)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_swiglu_ffn": "yes"}, "use_swiglu_ffn='yes'; expected true or false"),
        ({"mlp_ratio": 0}, "mlp_ratio=0; expected a number above 0"),
        ({"image_size": 230}, "image_size must be a multiple of patch_size=14, got 230"),
        ({"qkv_bias": False}, "qkv_bias=False"),
        ({"model_type": "dinov2_with_registers", "patch_size": 14, "num_register_tokens": 0}, "num_register_tokens=0"),
    ],
)
def test_unusable_configs_say_what_was_expected(fields, message):
    with pytest.raises(InputError, match=message) as caught:
        config_from_hf({"model_type": "dinov2", **fields})
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_refused_and_the_head_is_as_wide_as_what_it_reads():
    shape = dinov2.Dinov2Config(8, 4, 8, 1, 2, positions=2)
    model = dinov2.Dinov2(shape, 3, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="images must be of 8×8×3, got 12×12×3"):
        model(jnp.zeros((1, 12, 12, 3)))
    with pytest.raises(InputError, match="activation='gleu'; nearest: gelu"):
        dataclasses.replace(shape, activation="gleu")
    both, one = (dataclasses.replace(shape, pooling=pooling) for pooling in ("class_and_mean", "mean"))
    sizes = [dinov2.Dinov2(config, 3, rngs=nnx.Rngs(0)).head.kernel.shape for config in (both, one)]
    assert sizes == [(16, 3), (8, 3)]
