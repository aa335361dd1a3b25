"""What image processors' files say, read, fitted to a model and written; tests/parity compares the pixels."""

import dataclasses
import json

import pytest

from surm.errors import InputError
from surm.models.processor import Processor, ShortestEdge, Squash, Within, plain
from surm.models.processor_files import CLASSES, OF_MODELS, of_weights, parsed

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


def read(model: str = "vit", **stated: object) -> Processor:
    return parsed(stated, "preprocessor_config.json of 'W'", {"model_type": model})


@pytest.mark.parametrize(
    ("rule", "given", "expected"),
    [
        (Squash(3, 4), (240, 320), (3, 4)),
        (ShortestEdge(224), (240, 320), (224, 298)), (ShortestEdge(224), (320, 240), (298, 224)),
        (ShortestEdge(224), (31, 500), (224, 3612)), (ShortestEdge(224), (224, 224), (224, 224)),
        (ShortestEdge(224, 400), (31, 500), (25, 400)), (ShortestEdge(224, 400), (240, 320), (224, 298)),
        (ShortestEdge(31, 60), (4, 61), (4, 61)),  # left alone, as by transformers, though 61 is more than 60
        (ShortestEdge(1, 1), (1, 900), (1, 1)), (ShortestEdge(31, 60), (31, 500), (4, 60)),
        (Within(60, 50), (240, 320), (37, 50)), (Within(60, 50), (320, 240), (60, 45)),
        (Within(5, 5), (1, 900), (1, 5)),
    ],
)  # fmt: skip
def test_sizes(rule, given, expected):
    assert rule.resized(*given) == expected


@pytest.mark.parametrize(("model", "kind"), OF_MODELS.items())
def test_the_model_says_what_the_file_leaves_out(model, kind):
    assert read(model) == read("none", image_processor_type=kind)


def test_defaults_of_the_classes():
    assert read() == Processor(Squash(224, 224), resample=2, mean=0.5, std=0.5)
    assert read("deit") == Processor(Squash(256, 256), resample=3, crop=(224, 224))
    clip = read("clip")
    assert (clip.resize, clip.resample, clip.crop, clip.white) == (ShortestEdge(224), 3, (224, 224), True)
    assert clip.mean == CLIP_MEAN and clip.factor == 1 / 255


@pytest.mark.parametrize(
    ("stated", "resize", "crop"),
    [
        ({"size": 48}, Squash(48, 48), None), ({"size": [48, 32]}, Squash(48, 32), None),
        ({"size": {"height": 48, "width": 32}}, Squash(48, 32), None),
        ({"size": 48, "default_to_square": False}, ShortestEdge(48), None),
        ({"size": {"shortest_edge": 48, "longest_edge": None}}, ShortestEdge(48), None),
        ({"size": {"longest_edge": 90, "shortest_edge": 48}}, ShortestEdge(48, 90), None),
        ({"size": {"max_width": 9, "max_height": 8}}, Within(8, 9), None),
        ({"do_resize": False, "size": None}, None, None), ({"do_resize": None}, None, None),
        ({"crop_size": 9}, Squash(224, 224), None),
        ({"do_center_crop": True, "crop_size": 9}, Squash(224, 224), (9, 9)),
        ({"do_center_crop": True, "crop_size": [9, 8]}, Squash(224, 224), (9, 8)),
        ({"do_center_crop": True, "crop_size": {"height": 9, "width": 8}}, Squash(224, 224), (9, 8)),
        ({"image_processor_type": "ConvNextImageProcessor", "size": 224}, ShortestEdge(256), (224, 224)),
        ({"image_processor_type": "ConvNextImageProcessor"}, Squash(384, 384), None),
    ],
)  # fmt: skip
def test_sizes_in_all_their_forms(stated, resize, crop):
    found = read(**stated)
    assert (found.resize, found.crop) == (resize, crop)


def test_rescaling_and_normalising():
    assert read(rescale_factor=1 / 127.5).factor == 1 / 127.5
    assert read(do_rescale=False, rescale_factor=None).factor == 1
    off = read(do_normalize=False, image_mean=[1, 2, 3])
    assert (off.mean, off.std) == (0, 1)
    assert read(image_mean=[0, 0.5, 1], image_std=2).fitted(16, 3).mean == (0, 0.5, 1)
    assert read(image_std=2).std == 2.0


REFUSED = [
    ({"size": {"longest_edge": 224}}, "says size={'longest_edge': 224}; expected a number, "),
    ({"size": {"min_pixels": 4, "max_pixels": 9}}, "says size="), ({"size": "224"}, "says size='224'"),
    ({"size": True}, "says size=True"), ({"size": None}, "says size=None"), ({"size": 224.0}, "says size=224.0"),
    ({"size": [224]}, "says size=[224]"), ({"size": {"height": 9}}, "says size={'height': 9}"),
    ({"size": {"height": 0, "width": 9}}, "expected a whole number from 1 as height"),
    ({"size": {"height": "9", "width": 9}}, "expected a whole number from 1 as height"),
    ({"resample": 6}, "says resample=6; expected a whole number from 0 to 5"),
    ({"resample": "bicubic"}, "says resample='bicubic'; expected a whole number from 0 to 5"),
    ({"resample": None}, "says resample=None"), ({"do_resize": "yes"}, "says do_resize='yes'; expected true or false"),
    ({"do_center_crop": True}, "says crop_size=None and do_center_crop=True; expected a number or {\"height\""),
    ({"do_center_crop": True, "crop_size": {"shortest_edge": 9}}, "says crop_size={'shortest_edge': 9}"),
    ({"do_center_crop": True, "crop_size": -1}, "expected a whole number from 1 as height"),
    ({"rescale_factor": 0}, "says rescale_factor=0; expected a number above 0"),
    ({"rescale_factor": None}, "says rescale_factor=None"), ({"image_mean": None}, "says image_mean=None"),
    ({"image_mean": "a"}, "says image_mean='a'; expected a number, or one per channel"),
    ({"image_mean": []}, "says image_mean=[]"), ({"image_mean": [0, float("nan")]}, "says image_mean=[0, nan]"),
    ({"image_std": [1, 0, 1]}, "says image_std=[1, 0, 1]; expected a number above 0, or one above 0 per channel"),
    ({"image_std": -1}, "says image_std=-1"), ({"do_pad": True, "pad_size": 9}, "says do_pad=True; expected false"),
    ({"use_square_size": True}, "says use_square_size=True"),
    ({"image_processor_type": "TimmWrapperImageProcessor"}, "expected one of ViTImageProcessor, "),
    ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "image_processor_type='Wav2Vec2FeatureExtractor'"),
    ({"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True, "crop_size": 9}, "crops by crop_pct"),
    ({"image_processor_type": "ConvNextImageProcessor", "size": [9, 9]}, 'expected {"shortest_edge": N}'),
]  # fmt: skip


@pytest.mark.parametrize(("stated", "line"), REFUSED, ids=[str(stated) for stated, _ in REFUSED])
def test_what_cannot_be_followed_is_refused_by_name(stated, line):
    with pytest.raises(InputError) as refused:
        read(**stated)
    assert line in str(refused.value) and str(refused.value).startswith("preprocessor_config.json of 'W' says ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("stated", "line"),
    [
        (
            {"image_mean": [0.1], "image_std": [1]},
            "says image_mean=[0.1], but the model reads 3 channels; expected a number",
        ),
        ({"image_std": [1, 2, 3, 4]}, "says image_std=[1.0, 2.0, 3.0, 4.0], but the model reads 3 channels"),
        ({"size": [224, 448]}, "makes images of 224×448, but the model reads squares"),
        ({"do_center_crop": True, "crop_size": [9, 8]}, "makes images of 9×8, but the model reads squares"),
        ({"size": {"shortest_edge": 9}}, "says size={'shortest_edge': 9} and no crop, which keeps the proportions"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(stated, line):
    with pytest.raises(InputError) as refused:
        read(**stated).fitted(224, 3)
    assert line in str(refused.value)


def test_a_class_of_three_numbers_does_not_fit_one_channel():
    with pytest.raises(InputError, match=r"image_mean=.*, but the model reads 1 channel; expected a number for each"):
        read("clip").fitted(224, 1)
    assert read().fitted(224, 1).mean == (0.5,)


@pytest.mark.parametrize(
    ("stated", "side", "resize", "crop"),
    [
        ({}, 224, Squash(224, 224), None), ({}, 384, Squash(384, 384), None),
        ({"image_processor_type": "DeiTImageProcessorFast"}, 48, Squash(55, 55), (48, 48)),
        ({"image_processor_type": "DeiTImageProcessor"}, 112, Squash(128, 128), (112, 112)),
        ({"image_processor_type": "CLIPImageProcessor"}, 32, ShortestEdge(32), (32, 32)),
        ({"image_processor_type": "BitImageProcessor", "size": 256}, 518, ShortestEdge(592), (518, 518)),
        ({"do_resize": False}, 32, None, None),
        ({"do_resize": False, "do_center_crop": True, "crop_size": 64}, 32, None, (32, 32)),
    ],
)  # fmt: skip
def test_another_image_size_scales_all_sizes_alike(stated, side, resize, crop):
    fitted = read(**stated).fitted(side, 3)
    assert (fitted.resize, fitted.crop, fitted.side) == (resize, crop, side)
    assert fitted.fitted(side, 3) == fitted


def test_images_that_are_not_resized_must_have_the_size():
    rule = read(do_resize=False).fitted(32, 3)
    assert rule.resized(32, 32) == (32, 32)
    with pytest.raises(
        InputError, match="an image of 31×500, but preprocessor_config.json of 'W' says do_resize=False"
    ):
        rule.resized(31, 500)


@pytest.mark.parametrize(
    "stated",
    [{}, {"image_processor_type": "CLIPImageProcessor"}, {"image_processor_type": "DeiTImageProcessor"},
     {"do_rescale": False, "do_normalize": False, "resample": 5}, {"rescale_factor": 0.5, "image_mean": [1, 2, 3]},
     {"do_resize": False}, {"size": {"shortest_edge": 7, "longest_edge": 9}, "do_center_crop": True, "crop_size": 5},
     {"size": {"max_height": 7, "max_width": 9}, "do_center_crop": True, "crop_size": 5, "do_convert_rgb": True}],
)  # fmt: skip
def test_what_is_written_is_read_again(stated):
    processor = read(**stated).fitted(64, 3)
    written = json.loads(json.dumps(processor.to_json()))
    assert written["image_processor_type"] in CLASSES
    assert parsed(written, "", {}).fitted(64, 3) == processor


def test_the_nested_file_of_transformers_5_wins_and_that_is_said():
    files = {"preprocessor_config.json": {"size": 48}, "processor_config.json": {"image_processor": {"size": 32}}}
    found = of_weights({}, files.get, "W", {"model_type": "vit"})
    assert found.resize == Squash(32, 32) and found.origin == "processor_config.json of 'W'"
    (note,) = found.notes
    assert "differs from preprocessor_config.json there, and is used, as in transformers 5" in note
    files["preprocessor_config.json"] = {"size": {"height": 32, "width": 32}}  # the same in other words
    assert of_weights({}, files.get, "W", {"model_type": "vit"}).notes == ()
    files["processor_config.json"] = {"processor_class": "CLIPProcessor"}
    assert of_weights({}, files.get, "W", {}).origin == "preprocessor_config.json of 'W'"
    assert of_weights({}, {}.get, "W", {}) is None
    assert of_weights({"mean": [0.5], "std": [0.5]}, files.get, "W", {}) is None
    with pytest.raises(
        InputError, match=r"processor_config.json of 'W' says image_processor=\[1\]; expected an object"
    ):
        of_weights({}, {"processor_config.json": {"image_processor": [1]}}.get, "W", {})


def test_what_is_passed_over_is_a_note():
    assert read(auto_map={}, processor_class="CLIPProcessor", return_tensors="np").notes == ()
    (note,) = read(do_grayscale=True, crop_pct=0.9).notes
    assert "has crop_pct, do_grayscale, which ViTImageProcessor does not read: ignored" in note
    (note,) = read("none").notes
    assert "names no image_processor_type: it is read as that of a ViTImageProcessor" in note


def test_squashing_needs_no_more_than_mean_and_std():
    assert plain(0.5, 0.5, side=16, channels=1).squashes and read(size=99).fitted(16, 3).squashes
    for change in ({"resample": 3}, {"crop": (16, 16)}, {"factor": 1.0}, {"white": True}, {"resize": ShortestEdge(16)}):
        assert not dataclasses.replace(plain(0.5, 0.5, side=16, channels=3), **change).squashes
