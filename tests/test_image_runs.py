"""Runs on images whose weights say how pictures become pixels: training, predictions and merged models agree."""

import contextlib
import io
import json
import pathlib
import shutil

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_sample_image

import surm
from surm import __main__ as commands
from surm import config as configs
from surm import train
from surm.data import decode
from surm.data.pictures import prepared
from surm.machine import notes
from surm.models.processor import Processor, ShortestEdge, Squash
from surm.models.vit import ViT, ViTConfig, preset
from surm.models.weights import open_weights
from surm.tasks.images import processor_of
from surm.training.runs import LoadedRun

GOLDEN = pathlib.Path(__file__).parent / "models" / "golden"
PHOTO = load_sample_image("flower.jpg")
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": 20, "crop_size": 16, "image_std": [0.25, 0.5, 0.75]}


def weights(folder: pathlib.Path, kind: str, processor: dict | None, channels: int = 3) -> pathlib.Path:
    """A copy of golden weights that read 16 pixels, with a processor's file, reading so many channels."""
    shutil.copytree(GOLDEN / kind, folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    config = json.loads((folder / "config.json").read_text()) | {"num_channels": channels}
    (folder / "config.json").write_text(json.dumps(config))
    arrays = load_file(folder / "model.safetensors")
    for key in [key for key in arrays if "patch_embedding" in key and arrays[key].ndim == 4]:
        arrays[key] = np.ascontiguousarray(np.repeat(arrays[key], -(-channels // 3), axis=1)[:, :channels])
    save_file(arrays, folder / "model.safetensors")
    return folder


def pictures(count: int, channels: int = 3) -> np.ndarray:
    """Cuts of a photo, 24×40."""
    cuts = np.stack([PHOTO[5 * index : 5 * index + 24, 7 * index : 7 * index + 40] for index in range(count)])
    alpha = np.broadcast_to(np.arange(40, dtype=np.uint8) * 6, (*cuts.shape[:3], 1)[1:3])[None, ..., None]
    cuts = np.concatenate([cuts, np.repeat(alpha, count, 0), cuts[..., :1]], -1)
    return cuts[..., :channels]


def config_of(folder: pathlib.Path, images: np.ndarray, **changes: object) -> ml_collections.ConfigDict:
    labels = np.arange(len(images)) % 3
    np.savez(folder / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    config = configs.default()
    config.data.source, config.model.weights = str(folder / "data.npz"), str(folder / "weights")
    config.optim.steps, config.optim.batch_size, config.peft.family = 2, 8, "circulant"
    config.update_from_flattened_dict(changes)
    return config


def trained(folder: pathlib.Path, images: np.ndarray, **changes: object) -> str:
    """What a run to `folder / "run"` says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), notes.shown():
        train.run(config_of(folder, images, **changes), folder / "run")
    return said.getvalue()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("clip")
    weights(folder / "weights", "clip", CLIP | {"num_crops": 4})
    said = trained(folder, pictures(16))
    assert "has num_crops, which CLIPImageProcessor does not read: ignored" in said
    assert "every size there is scaled" not in said
    return folder


def by_hand(run: LoadedRun, image: np.ndarray | Image.Image) -> np.ndarray:
    """The answer to one picture, resized and cropped by Pillow, rescaled and normalised by NumPy."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if "A" in picture.getbands():
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture)
    picture, (width, height) = picture.convert("RGB"), picture.size
    size = (20, 20 * height // width) if width <= height else (20 * width // height, 20)
    large = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - 16) // 2, (size[1] - 16) // 2
    pixels = np.asarray(large.crop((left, top, left + 16, top + 16))) / 255
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array(CLIP["image_std"])
    return np.asarray(run.model(jnp.asarray(((pixels - mean) / std)[None], jnp.float32))[0])


ODD = {
    "other sizes": [PHOTO, PHOTO[:31], PHOTO[:, :31], PHOTO[:16, :16]],
    "alpha": [np.dstack([PHOTO, np.full(PHOTO.shape[:2], 77, np.uint8)])],
    "grey": [PHOTO[..., 0], PHOTO[:50, :40, :1].squeeze()],
    "Pillow's": [Image.fromarray(PHOTO), Image.fromarray(PHOTO).convert("L"), Image.fromarray(PHOTO).quantize(8)],
}


@pytest.mark.parametrize("name", ODD)
def test_predictions_are_of_the_pixels_that_training_saw(clip, name):
    run = surm.load_run(clip / "run")
    expected = np.stack([by_hand(run, image) for image in ODD[name]])
    np.testing.assert_allclose(run.predict(ODD[name]), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run.predict(image for image in ODD[name]), expected, rtol=1e-4, atol=1e-5)


def test_an_opened_image_is_what_its_file_is_in_training(clip, tmp_path):
    run, modes = surm.load_run(clip / "run"), ("RGB", "L", "LA", "RGBA", "P", "1", "I;16")
    for mode in modes:
        picture = Image.fromarray(PHOTO[:40, :60])
        picture = (
            Image.fromarray(PHOTO[:40, :60, 0].astype(np.uint16) * 200) if mode == "I;16" else picture.convert(mode)
        )
        picture.getexif()[0x0112] = 6  # on its side
        picture.save(tmp_path / f"{mode[0]}.png", exif=picture.getexif())
        with open(tmp_path / f"{mode[0]}.png", "rb") as file, Image.open(tmp_path / f"{mode[0]}.png") as opened:
            answers = run.predict([decode.pixels(file), opened])
        np.testing.assert_array_equal(*answers, err_msg=mode)


def test_all_kinds_of_images_in_one_list_and_an_array(clip):
    run, mixed = surm.load_run(clip / "run"), [image for images in ODD.values() for image in images]
    each = np.concatenate([run.predict([image]) for image in mixed])
    np.testing.assert_allclose(run.predict(mixed), each, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run.predict(pictures(3)), run.predict(list(pictures(3))), rtol=1e-4, atol=1e-5)
    assert run.predict([]).shape == (0, 3)


def test_a_run_is_opened_as_it_was_trained_whatever_the_files_say_now(clip, tmp_path, capsys):
    images = [PHOTO, PHOTO[:31]]
    expected = surm.load_run(clip / "run").predict(images)
    assert "images are prepared as" not in capsys.readouterr().out
    file = clip / "weights" / "preprocessor_config.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps(CLIP | {"size": 16}))
        np.testing.assert_array_equal(surm.load_run(clip / "run").predict(images), expected)
        assert "run', not as the files of '" in capsys.readouterr().out
    finally:
        file.write_text(before)


def test_a_run_of_an_earlier_version_is_opened_squashing(clip, tmp_path, capsys):
    shutil.copytree(clip / "run", tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result.pop("processor")["crop_size"] == {"height": 16, "width": 16}
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    run = surm.load_run(tmp_path / "run")
    assert run.task.processor.resize == Squash(16, 16) and run.task.processor.std == (0.25, 0.5, 0.75)
    assert "images are prepared as" in capsys.readouterr().out


def test_a_checkpoint_of_other_pixels_is_refused(clip, tmp_path):
    shutil.copytree(clip, tmp_path / "all")
    folder = tmp_path / "all"
    config = config_of(folder, pictures(16))
    (folder / "run" / "result.json").unlink()
    (folder / "run" / "config.json").write_text(
        (folder / "run" / "config.json").read_text().replace(str(clip), str(folder))
    )
    (folder / "weights" / "preprocessor_config.json").write_text(json.dumps(CLIP | {"resample": 2}))
    with pytest.raises(surm.InputError, match="they differ in the preparation of images"):
        train.run(config, folder / "run")


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (pictures(16, 1), ""),
        (pictures(16, 3), "images of 3 channels, the model reads 1: the luminance is taken (Pillow's L)\n"),
    ],
)
def test_a_model_of_one_channel_trains_and_answers(tmp_path, images, said):
    weights(tmp_path / "weights", "vit", {"image_mean": [0.5], "image_std": [0.25]}, channels=1)
    printed = trained(tmp_path, images, **{"data.augment": "crop_flip"})
    assert said in printed and printed.count("channels") == bool(said)
    assert "every size there is scaled by 16/224" in printed
    run = surm.load_run(tmp_path / "run")
    grey = Image.fromarray(images[0].squeeze()).convert("L")
    pixels = np.asarray(grey.resize((16, 16), Image.Resampling.BILINEAR))[None, ..., None]
    expected = run.model(jnp.asarray((pixels / 255 - 0.5) / 0.25, jnp.float32))
    np.testing.assert_allclose(run.predict([images[0], grey]), np.repeat(expected, 2, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4, 5])
def test_members_and_meshes_of_other_channels(tmp_path, channels):
    weights(tmp_path / "weights", "vit", {"image_mean": 0.5, "image_std": 0.25}, channels=channels)
    trained(tmp_path, pictures(16, channels), **{"population": "seed=0|1", "data.augment": "crop_flip"})
    best = json.loads((tmp_path / "run" / "result.json").read_text())["best"]
    assert surm.load_run(tmp_path / "run" / "members" / best).predict(pictures(3, channels)).shape == (3, 3)


def test_image_size_scales_what_the_file_says(tmp_path):
    weights(tmp_path / "weights", "clip", CLIP)
    opened = open_weights(str(tmp_path / "weights"))
    shape = ViTConfig(32, 8, 8, 1, 1, 8)
    assert processor_of(opened, shape).resize == ShortestEdge(40)
    assert prepared(PHOTO, processor_of(opened, shape)).shape == (32, 32, 3)


def test_clip_without_a_file_is_squashed_and_that_is_said(tmp_path, capsys):
    weights(tmp_path / "weights", "clip", None)
    processor = processor_of(open_weights(str(tmp_path / "weights")), ViTConfig(16, 8, 8, 1, 1, 8))
    assert processor.squashes and processor.mean[0] == 0.48145466
    assert "brings no preprocessor_config.json: images are squashed to squares" in capsys.readouterr().out


def test_a_merged_run_takes_its_processor_along(tmp_path, capsys):
    stated = {"size": 24, "resample": 3, "do_center_crop": True, "crop_size": 16, "image_std": [0.25, 0.5, 0.75]}
    weights(tmp_path / "weights", "vit", stated)
    trained(tmp_path, pictures(16))
    assert commands.main(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged")]) == 0
    run, again = surm.load_run(tmp_path / "run"), open_weights(str(tmp_path / "merged"))
    assert processor_of(again, run.model.config) == run.task.processor
    assert run.task.processor.resize == Squash(24, 24)


def test_a_model_file_of_our_own_takes_its_processor_along(tmp_path):
    model = ViT(preset("vit_micro"), 2, rngs=nnx.Rngs(0))
    processor = Processor(ShortestEdge(40), crop=(32, 32), mean=(0.1, 0.2, 0.3), factor=0.5).fitted(32, 3)
    surm.save_model(tmp_path / "own.safetensors", model, processor=processor)
    opened = open_weights(str(tmp_path / "own.safetensors"))
    assert opened.processor.fitted(32, 3) == processor and opened.mean == (0.1, 0.2, 0.3) and opened.std == (0.5,) * 3
    surm.save_model(tmp_path / "own.safetensors", model, processor=Processor(Squash(32, 32)).fitted(32, 3))
    assert open_weights(str(tmp_path / "own.safetensors")).processor is None  # as earlier versions wrote and read it
