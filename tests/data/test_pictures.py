"""Channels, sizes and crops of pictures, against Pillow and by hand; tests/parity compares them with transformers."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from surm.data import pipeline
from surm.data.pictures import Square, conversion, cropped, of_pillow, prepared
from surm.errors import InputError
from surm.models.processor import Processor, ShortestEdge, Squash

PHOTO = load_sample_image("flower.jpg")[:240, :320]
CLEAR = np.dstack([PHOTO, np.add.outer(np.arange(240), np.arange(320)).astype(np.uint8)])


def test_the_short_side_is_resized_and_the_middle_cropped():
    rule = Processor(ShortestEdge(224), resample=3, crop=(224, 224)).fitted(224, 3)
    large = Image.fromarray(PHOTO).resize((298, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(prepared(PHOTO, rule), np.asarray(large.crop((37, 0, 261, 224))))


def test_small_values_as_transformers_gives_them():
    """CLIPImageProcessorPil of transformers 5.23 on a ramp of 4×6, shortest_edge=3, crop 3×3, one channel of it."""
    ramp = np.repeat((np.arange(24).reshape(4, 6, 1) * 10).astype(np.uint8), 3, axis=-1)
    rule = Processor(ShortestEdge(3), resample=3, crop=(3, 3)).fitted(3, 3)
    assert prepared(ramp, rule)[..., 0].tolist() == [[14, 28, 44], [93, 107, 123], [172, 186, 202]]


@pytest.mark.parametrize(("given", "height", "width", "rows", "columns"), [
    ((5, 6), 3, 3, (1, 4), (1, 4)), ((5, 6), 4, 5, (0, 4), (0, 5)), ((4, 4), 4, 4, (0, 4), (0, 4)),
])  # fmt: skip
def test_a_crop_is_the_middle(given, height, width, rows, columns):
    image = np.arange(np.prod(given)).reshape(*given, 1)
    np.testing.assert_array_equal(cropped(image, height, width), image[slice(*rows), slice(*columns)])


def test_a_crop_of_a_smaller_image_has_a_black_border():
    image = 1 + np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert cropped(image, 5, 2)[..., 0].tolist() == [[0, 0], [0, 0], [1, 2], [4, 5], [0, 0]]
    assert cropped(image, 1, 6)[..., 0].tolist() == [[0, 0, 1, 2, 3, 0]]


@pytest.mark.parametrize(("white", "mode"), [(False, None), (True, "RGBA")])
def test_alpha_is_dropped_or_shows_white(white, mode):
    picture = Image.fromarray(CLEAR)
    if white:
        picture = Image.alpha_composite(Image.new(mode, picture.size, (255, 255, 255, 255)), picture)
    rule = Processor(Squash(16, 16), white=white).fitted(16, 3)
    expected = picture.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(prepared(CLEAR, rule), np.asarray(expected))


@pytest.mark.parametrize("image", [PHOTO, CLEAR])
def test_a_grey_model_sees_luminance(image):
    expected = Image.fromarray(PHOTO).convert("L").resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(prepared(image, Square(16, channels=1))[..., 0], np.asarray(expected))


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_as_many_channels_as_the_model_reads_are_kept(channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8)
    small = prepared(image, Square(8, channels=channels))
    assert small.shape == (8, 8, channels)
    last = Image.fromarray(image[..., -1]).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(small[..., -1], np.asarray(last))
    if channels == 4:  # Pillow weighs colours by alpha, for transformers too
        whole = Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(small, np.asarray(whole))
    np.testing.assert_array_equal(prepared(image[:8, :8], Square(8, channels=channels)), image[:8, :8])


@pytest.mark.parametrize(("given", "wanted", "said"), [
    (3, 3, None), (1, 3, None), (2, 2, None), (4, 3, "alpha is dropped"), (3, 1, "the luminance is taken (Pillow's L)"),
])  # fmt: skip
def test_what_is_said_of_channels(given, wanted, said):
    assert conversion(given, wanted) == said
    assert conversion(4, 3, white=True) == "transparent pixels become white"


@pytest.mark.parametrize(("given", "wanted"), [(1, 4), (3, 4), (2, 3), (5, 1), (1, 2), (224, 3)])
def test_other_channels_are_refused(given, wanted):
    with pytest.raises(InputError, match=f"an image has {given} channels, but the model reads {wanted}"):
        prepared(np.zeros((8, 8, given), np.uint8), Square(8, channels=wanted))


def _palette(transparent: bool) -> Image.Image:
    picture = Image.fromarray(PHOTO[:16, :16]).quantize(8)
    if transparent:
        picture.info["transparency"] = 0
    return picture


@pytest.mark.parametrize(("picture", "expected"), [
    (Image.fromarray(PHOTO), PHOTO), (Image.fromarray(CLEAR), CLEAR),
    (Image.fromarray(PHOTO[..., 0]), PHOTO[..., :1]),
    (_palette(False), np.asarray(_palette(False).convert("RGB"))),
    (_palette(True), np.asarray(_palette(True).convert("RGBA"))),
    (Image.fromarray(PHOTO[..., 0] > 99), np.where(PHOTO[..., :1] > 99, 255, 0)),
    (Image.fromarray(PHOTO).convert("CMYK"), np.asarray(Image.fromarray(PHOTO).convert("CMYK").convert("RGB"))),
])  # fmt: skip
def test_what_pillow_holds(picture, expected):
    np.testing.assert_array_equal(of_pillow(picture), expected)


def test_sixteen_bits_become_eight():
    values = np.array([[0, 128, 129, 257, 65406, 65407, 65535]], np.uint16)
    picture = Image.fromarray(values)
    assert picture.mode == "I;16" and of_pillow(picture)[..., 0].tolist() == [[0, 0, 1, 1, 254, 255, 255]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_more_bits_are_refused(mode):
    with pytest.raises(InputError, match=f"an image in Pillow's mode {mode!r}; expected 8 or 16 bits"):
        of_pillow(Image.new(mode, (4, 4)))


def test_without_a_rule_images_are_what_they_were():
    """As before there were processors: a number is a square, bilinearly, grey repeated, three channels."""
    for image in (PHOTO, PHOTO[..., :1], PHOTO[:16, :16]):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        expected = np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR))
        expected = np.repeat(expected[..., None], 3, axis=-1) if expected.ndim == 2 else expected
        for rule in (16, Square(16), Processor(Squash(16, 16)).fitted(16, 3)):
            found = pipeline.Resize(rule)({"image": image, "label": 0})["image"]
            np.testing.assert_array_equal(found, expected)
