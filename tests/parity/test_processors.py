"""Our pixels against transformers' image processors without torchvision: 200 pictures of many sizes and modes."""

import io
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from transformers import AutoImageProcessor

from surm.data import pictures, pipeline
from surm.exchange import export_merged
from surm.models.vit import ViTConfig
from surm.models.weights import open_weights
from surm.tasks.images import processor_of
from tests.exchange.models import base

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not all((DATA / name).is_file() for name in ("cifar10.npz", "tiny_imagenet_32.npz")),
    reason="no ../shared/data with cifar10.npz and tiny_imagenet_32.npz beside the checkout",
)
SIZES = [(320, 240), (240, 320), (31, 500), (500, 31), (224, 224), (224, 300), (97, 101), (32, 32), (640, 427), (7, 5)]
MODES = ["RGB", "L", "P", "RGBA", "LA", "transparent P", "1", "RGB", "CMYK", "RGB"]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def _mosaics(count: int):
    """Pictures of real ones: four of 32 pixels side by side, enlarged or cut to a size."""
    photos = np.load(DATA / "cifar10.npz")["x_test"][:400]
    archive = np.load(DATA / "tiny_imagenet_32.npz")
    packed, offsets = archive["val_webp"], archive["val_offset"]
    small = [
        np.asarray(Image.open(io.BytesIO(packed[offsets[i] : offsets[i + 1]].tobytes())).convert("RGB"))
        for i in range(400)
    ]
    for index in range(count):
        each = [photos[2 * index], small[2 * index], small[2 * index + 1], photos[2 * index + 1]]
        whole = np.concatenate([np.concatenate(each[:2], 1), np.concatenate(each[2:], 1)])
        yield index, Image.fromarray(whole)


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode == "transparent P":
        picture = picture.convert("P")
        picture.info["transparency"] = 3
        return picture
    picture = picture.convert(mode)
    if mode in ("RGBA", "LA"):
        alpha = np.add.outer(np.arange(picture.height), np.arange(picture.width)) % 256
        picture.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return picture


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    found = []
    for index, picture in _mosaics(200):
        size, mode = SIZES[index % len(SIZES)], MODES[index // len(SIZES) % len(MODES)]
        enlarged = picture.resize((max(size), max(size)), Image.Resampling.BICUBIC)
        found.append(_in_mode(enlarged.crop((0, 0, *size)), mode))
    return found


def _folder(folder: pathlib.Path, model: str, stated: dict, file: str = "preprocessor_config.json") -> pathlib.Path:
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": model}))
    (folder / file).write_text(json.dumps(stated))
    return folder


def _ours(folder: pathlib.Path, side: int, picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    processor = processor_of(open_weights(str(folder)), ViTConfig(side, side, 8, 1, 1, 8))
    prepared = pictures.prepared(pictures.of_pillow(picture), processor)
    assert prepared.shape == (side, side, 3) and prepared.dtype == np.uint8
    images = jnp.asarray(prepared[None])
    return prepared, np.asarray(pipeline.normalize(images, processor.mean, processor.std, processor.factor))[0]


def _compare(folder: pathlib.Path, side: int, images: list[Image.Image]) -> None:
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    for picture in images:
        # Grey, palettes and alpha are the caller's to convert where a class does not; the others get the picture.
        given = picture if theirs.do_convert_rgb else picture.convert("RGB")
        prepared, normalised = _ours(folder, side, picture)
        integers = theirs(given, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(prepared, integers.transpose(1, 2, 0), f"{picture.mode} {picture.size}")
        floats = theirs(given, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_allclose(normalised, floats, rtol=0, atol=1e-6 * max(1, np.abs(floats).max()))


@pytest.mark.parametrize(
    ("model", "stated"),
    [
        ("vit", {"image_processor_type": "ViTImageProcessor"}),
        ("vit", {"image_processor_type": "DeiTImageProcessor", **IMAGENET}),
        ("clip", {"image_processor_type": "CLIPImageProcessor"}),
        ("dinov2", {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, **IMAGENET}),
    ],
    ids=lambda value: value.get("image_processor_type") if isinstance(value, dict) else None,
)
def test_two_hundred_images_by_every_class(tmp_path, images, model, stated):
    assert len(images) == 200
    _compare(_folder(tmp_path, model, stated), 224, images)


EDGES = {"shortest_edge": 40, "longest_edge": 90}
OTHERS = {
    "nothing stated": ("vit", 224, {}),
    "a number, of a ViT": ("vit", 48, {"size": 48, "resample": 3}),
    "a number, of a CLIP, as its first files": (
        "clip", 48, {"feature_extractor_type": "CLIPFeatureExtractor", "size": 48, "crop_size": 48, "resample": 3},
    ),
    "a pair": ("deit", 48, {"size": [64, 56], "crop_size": [48, 48]}),
    "two edges": ("clip", 64, {"size": EDGES, "crop_size": 64}),
    "two edges, downwards": ("clip", 20, {"size": {"shortest_edge": 31, "longest_edge": 60}, "crop_size": 20}),
    "within": ("clip", 64, {"size": {"max_height": 60, "max_width": 50}, "crop_size": 64}),
    "a crop larger than the image": ("deit", 57, {"size": 40, "crop_size": 57}),
    "a crop alone": ("clip", 100, {"do_resize": False, "crop_size": {"height": 100, "width": 100}}),
    "no crop, a square": ("clip", 30, {"do_center_crop": False, "size": {"height": 30, "width": 30}}),
    "a number is a square where the file says so": (
        "clip", 30, {"do_center_crop": False, "size": 30, "default_to_square": True},
    ),
    "siglip": ("siglip", 224, {}),
    "the second MetaCLIP": ("metaclip_2", 224, {}),
    "a Chinese CLIP": ("chinese_clip", 224, {"image_mean": 0.5}),
    "beit": (
        "vit", 64, {"image_processor_type": "BeitImageProcessor", "size": 80, "crop_size": 64, "do_center_crop": True},
    ),
    "convnext": ("vit", 56, {"image_processor_type": "ConvNextImageProcessor", "size": 56, "crop_pct": 0.95}),
    "convnext of a file without crop_pct": ("vit", 72, {"image_processor_type": "ConvNextImageProcessor", "size": 72}),
    "convnext, large": ("vit", 384, {"image_processor_type": "ConvNextImageProcessor"}),
    "a fast class": ("vit", 32, {"image_processor_type": "CLIPImageProcessorFast", "size": 32, "crop_size": 32}),
    "a rescale of its own": ("vit", 32, {"size": 32, "rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}),
    "no rescale": ("vit", 32, {"size": 32, "do_rescale": False, "image_mean": 127.5, "image_std": [64, 65, 66]}),
    "no normalisation": ("vit", 32, {"size": 32, "do_normalize": False}),
    "neither": ("vit", 32, {"size": 32, "do_normalize": False, "do_rescale": False}),
    "nulls": ("clip", 224, {"size": 224, "default_to_square": True, "do_center_crop": None, "crop_size": None,
                            "do_convert_rgb": None, "do_normalize": None, "image_mean": None}),
    "fields that nobody reads": ("vit", 32, {"size": 32, "do_grayscale": True, "crop_pct": 0.5, "num_crops": 4}),
    **{f"filter {number}": ("clip", 32, {"size": 32, "crop_size": 32, "resample": number}) for number in range(6)},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_fields(tmp_path, images, name):
    model, side, stated = OTHERS[name]
    _compare(_folder(tmp_path, model, stated), side, images[:100:3] if side < 200 else images[:100:9])


def test_transformers_5_nests_it(tmp_path, images):
    _folder(tmp_path, "clip", {"size": 99, "crop_size": 99})  # the file of version 4, which version 5 passes over
    nested = {"image_processor": {"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32}}
    _compare(_folder(tmp_path, "clip", nested, "processor_config.json"), 32, images[:20])


@pytest.mark.parametrize(
    "stated",
    [{}, {"size": 24, "crop_size": 16, "do_center_crop": True},
     {"image_processor_type": "CLIPImageProcessor", **IMAGENET},
     {"do_resize": False, "do_center_crop": True, "crop_size": 16, "do_rescale": False, "do_normalize": False}],
)  # fmt: skip
def test_a_merged_model_takes_it_along(tmp_path, images, stated):
    (tmp_path / "from").mkdir()
    model = base("vit")
    processor = processor_of(open_weights(str(_folder(tmp_path / "from", "vit", stated))), model.config)
    export_merged(tmp_path / "to", model, processor=processor)
    _compare(tmp_path / "to", model.config.image_size, images[:20])
    again = processor_of(open_weights(str(tmp_path / "to")), model.config)
    assert again == processor
