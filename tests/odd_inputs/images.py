"""Images, and the files beside weights that say how they become pixels."""

import functools
import json
import pathlib

import numpy as np
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_image

from surm import config as configs
from surm.data import pictures, pipeline, sources
from surm.data.splits import ArraySplit
from surm.models.vit import ViT, ViTConfig
from surm.models.weights import open_weights
from surm.tasks.images import processor_of
from surm.tasks.kinds import task_of
from surm.tasks.labels import Targets
from surm.training.runs import LoadedRun
from tests.odd_inputs.row import Line, Odd

PHOTO = load_sample_image("flower.jpg")[:24, :40]
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": 16, "crop_size": 16}


def _files(folder: pathlib.Path, name: str = "preprocessor_config.json", **stated: object) -> str:
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (folder / name).write_text(json.dumps(stated))
    return str(folder)


def _model(channels: int = 3) -> ViT:
    return ViT(ViTConfig(16, 8, 12, 1, 3, 12, channels=channels), 2, rngs=nnx.Rngs(0))


def _pixels(folder: pathlib.Path, image: np.ndarray = PHOTO, channels: int = 3, **stated: object) -> np.ndarray:
    """What the model would see of one image, by a preprocessor_config.json that says so."""
    task = task_of(configs.default(), Targets(2), open_weights(_files(folder, **stated)), _model(channels))
    split = task.ready(ArraySplit(image[None], np.zeros(1, np.int32)))
    return np.asarray(task.inputs(next(task.evaluation(split)))["images"][0])


@functools.cache
def _run() -> LoadedRun:
    model, result = _model(), {"num_outputs": 2, "kind": "image", "num_texts": 0, "classes": ["a", "b"]}
    return LoadedRun(configs.default(), model, [], result, task_of(configs.default(), Targets(2), None, model))


def _predicted(examples: object) -> tuple[int, ...]:
    return _run().predict(examples).shape


def _as_clip(image: np.ndarray) -> np.ndarray:
    large = Image.fromarray(image).resize((26, 16), Image.Resampling.BICUBIC)
    return np.asarray(large.crop((5, 0, 21, 16)), np.float32)


def _of_npz(folder: pathlib.Path, images: np.ndarray) -> tuple[int, ...]:
    """The shape of the pixels that a model would see of such a file."""
    images, labels = np.repeat(images, 4, 0), np.arange(4) % 2
    np.savez(folder / "data.npz", x_train=images, y_train=labels, x_test=images[:1], y_test=labels[:1])
    task = task_of(configs.default(), Targets(2), None, _model())
    split = task.ready(sources.load(str(folder / "data.npz")).test)
    images = next(task.evaluation(split))
    return task.inputs(images)["images"][images["mask"]].shape


def _turned() -> Image.Image:
    """A photo on its side, as a camera saves it, with the note that says so."""
    picture = Image.fromarray(np.rot90(PHOTO))
    picture.getexif()[0x0112] = 6  # turn by a quarter, clockwise
    return picture


def _refused(name: str, line: str, **stated: object) -> Odd:
    return Odd(name, lambda folder: _pixels(folder, **stated), Line(line))


def _own(folder: pathlib.Path) -> object:
    save_file({"x": np.zeros(1)}, folder / "own.safetensors", metadata={"surm": json.dumps({"processor": 3})})
    return open_weights(str(folder / "own.safetensors"))


def _nested_wins(folder: pathlib.Path) -> object:
    _files(folder, size=8)
    opened = open_weights(_files(folder, "processor_config.json", image_processor=CLIP))
    return processor_of(opened, _model().config).crop


def _raw(image: np.ndarray) -> np.ndarray:
    return pictures.prepared(image, pictures.Square(16)).astype(np.float32)


ROWS = [
    Odd(
        "CLIP's file and an image that is no square",
        lambda folder: _pixels(folder, do_rescale=False, do_normalize=False, **CLIP),
        _as_clip(PHOTO),
    ),
    Odd(
        "a file that asks for neither rescaling nor normalising",
        lambda folder: _pixels(folder, do_rescale=False, do_normalize=False),
        _raw(PHOTO),
    ),
    Odd(
        "rescaling by another factor",
        lambda folder: _pixels(folder, rescale_factor=0.5, do_normalize=False),
        _raw(PHOTO) / 2,
    ),
    Odd(
        "null for a flag that the class sets",
        lambda folder: _pixels(folder, do_normalize=None, do_rescale=None),
        _raw(PHOTO),
    ),
    Odd("the files of transformers 4 and 5 side by side", _nested_wins, (16, 16)),
    _refused(
        "a size that transformers cannot follow either",
        "says size={'longest_edge': 9}; expected a number",
        size={"longest_edge": 9},
    ),
    _refused(
        "a size by the short side, and no crop",
        "and no crop, which keeps the proportions of images",
        size={"shortest_edge": 16},
    ),
    _refused(
        "a crop that is no square",
        "makes images of 16×8, but the model reads squares",
        do_center_crop=True,
        crop_size=[16, 8],
    ),
    _refused(
        "a crop without a size",
        "says crop_size=None and do_center_crop=True; expected a number or",
        do_center_crop=True,
    ),
    _refused(
        "a filter by its name", "says resample='bicubic'; expected a whole number from 0 to 5", resample="bicubic"
    ),
    _refused("padding", "says do_pad=True; expected false", do_pad=True, pad_size=32),
    _refused(
        "a processor of another kind of model",
        "says image_processor_type='DetrImageProcessor', which is not supported",
        image_processor_type="DetrImageProcessor",
    ),
    _refused(
        "one number in brackets for three channels",
        "says image_mean=[0.5], but the model reads 3 channels",
        image_mean=[0.5],
    ),
    _refused(
        "a standard deviation of zero", "says image_std=[1, 0, 1]; expected a number above 0", image_std=[1, 0, 1]
    ),
    _refused(
        "images that are not resized and have another size",
        "an image of 24×40, but preprocessor_config.json of '",
        do_resize=False,
    ),
    _refused(
        "CLIP's three numbers and a grey model",
        "but the model reads 1 channel; expected a number for each",
        channels=1,
        **CLIP,
    ),
    Odd(
        "colour for a grey model",
        lambda folder: _pixels(folder, channels=1, do_rescale=False, do_normalize=False)[..., 0],
        np.asarray(Image.fromarray(PHOTO).convert("L").resize((16, 16), Image.Resampling.BILINEAR), np.float32),
    ),
    Odd(
        "grey and alpha", lambda folder: _pixels(folder, PHOTO[..., :2]), Line("an image has 2 channels, but the model")
    ),
    Odd("an .npz with alpha", lambda folder: _of_npz(folder, np.dstack([PHOTO, PHOTO[..., :1]])[None]), (1, 16, 16, 3)),
    Odd(
        "an .npz with channels first",
        lambda folder: _of_npz(folder, PHOTO.transpose(2, 0, 1)[None]),
        Line(
            "an image has 40 channels, but the model reads 3; expected 1 (grey), 3 (colour) or 4 (with alpha), as the"
        ),
    ),
    Odd("a processor in the metadata that is a number", _own, Line("says processor=3; expected an object")),
    Odd(
        "one image instead of several",
        lambda folder: _predicted(PHOTO),
        Line("of 24×40×3; expected the list [image] if"),
    ),
    Odd(
        "images as floats",
        lambda folder: _predicted(PHOTO[None] / 255),
        Line("images are float64 of shape (1, 24, 40, 3)"),
    ),
    Odd(
        "channels first",
        lambda folder: _predicted(PHOTO.transpose(2, 0, 1)[None]),
        Line("an image has 40 channels, but"),
    ),
    Odd(
        "an image by itself",
        lambda folder: _predicted(Image.fromarray(PHOTO)),
        Line("given a Image, expected a list of images, such as [image]"),
    ),
    Odd(
        "the name of a file by itself",
        lambda folder: _predicted("cat.jpg"),
        Line("given 'cat.jpg', expected a list of images"),
    ),
    Odd("a number for images", lambda folder: _predicted(np.array(3)), Line("given an array of one number")),
    Odd(
        "a row of a data set",
        lambda folder: _predicted({"image": PHOTO}),
        Line("given a dict, expected a list of images"),
    ),
    Odd(
        "names of files",
        lambda folder: _predicted(["cat.jpg"]),
        Line("image 0 is 'cat.jpg'; expected a uint8 array H×W"),
    ),
    Odd(
        "32 bits", lambda folder: _predicted([Image.new("I", (9, 9))]), Line("an image in Pillow's mode 'I'; expected")
    ),
    Odd(
        "an image that its file says to turn",
        lambda folder: np.ptp(_run().predict([_turned(), Image.fromarray(PHOTO)]), axis=0).tolist(),
        [0.0, 0.0],
    ),
    Odd(
        "an image without pixels", lambda folder: _predicted([PHOTO[:0]]), Line("image 0 is uint8 of shape (0, 40, 3)")
    ),
    Odd("a ragged image", lambda folder: _predicted([[[1, 2], [3]]]), Line("image 0 is no array (")),
    Odd(
        "sizes, channels and palettes in one list",
        lambda folder: _predicted(
            [PHOTO, PHOTO[:9, :, 0], np.dstack([PHOTO, PHOTO[..., :1]]), Image.fromarray(PHOTO).quantize(8)]
        ),
        (4, 2),
    ),
    Odd(
        "a palette, whose numbers are no colours",
        lambda folder: np.ptp(
            _run().predict([Image.fromarray(PHOTO).quantize(256), Image.fromarray(PHOTO).quantize(256).convert("RGB")]),
            axis=0,
        ).tolist(),
        [0.0, 0.0],
    ),
    Odd(
        "a batch of no rule: squashed as ever",
        lambda folder: next(pipeline.evaluation_batches(ArraySplit(PHOTO[None], np.zeros(1)), 1, 16))["image"][0],
        _raw(PHOTO).astype(np.uint8),
    ),
]
