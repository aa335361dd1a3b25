"""Folders of class folders: every form of image that people have, and all that spoils one."""

import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from surm.data import decode, pipeline, sources
from surm.errors import InputError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 30, 3), np.uint8)
GREY = COLOUR[..., 0]
SMOOTH = np.stack([np.add.outer(np.arange(20) * 5, np.arange(30) * 3)] * 3, -1).astype(np.uint8)
DEEP = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be turned by 90° to the right


def write(root: pathlib.Path, *splits: str, names: tuple[str, ...] = ("cat", "dog"), number: int = 3) -> pathlib.Path:
    for split in splits or ("train", "test"):
        for label, name in enumerate(names):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(number):
                Image.fromarray(np.full((8, 10, 3), 40 * label + index, np.uint8)).save(
                    root / split / name / f"{index}.png"
                )
    return root


def complaint(source: pathlib.Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        sources.load(str(source), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_are_the_folders(tmp_path, capsys):
    data = sources.load(str(write(tmp_path)))
    assert data.class_names == ("cat", "dog") and data.validation is None and data.kind == "image"
    assert [split["label"] for split in (data.train[0], data.train[5], data.test[5])] == [0, 1, 1]
    np.testing.assert_array_equal(data.train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.train[4]["image"], np.full((8, 10, 3), 41))
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", ["val", "validation", "valid", "dev", "VAL", "Validation"])
def test_splits_by_any_of_their_names(tmp_path, name):
    data = sources.load(str(write(tmp_path, "Train", name)))
    assert len(data.train) == len(data.test) == 6 and data.validation is None
    data = sources.load(str(write(tmp_path, "Train", name, "TEST", number=2)))
    assert len(data.validation) == 6 and len(data.test) == 4


@pytest.mark.parametrize(
    ("image", "suffix", "expected", "tolerance"),
    [
        (Image.fromarray(COLOUR), "png", COLOUR, 0),
        (Image.fromarray(COLOUR), "bmp", COLOUR, 0),
        (Image.fromarray(COLOUR), "tif", COLOUR, 0),
        (Image.fromarray(GREY), "png", GREY[..., None], 0),
        (Image.fromarray(GREY).convert("LA"), "png", np.dstack([GREY] * 3 + [np.full_like(GREY, 255)]), 0),
        (Image.fromarray(DEEP), "png", np.round(DEEP / 257)[..., None], 0),
        (Image.fromarray(DEEP), "tiff", np.round(DEEP / 257)[..., None], 0),
        (Image.fromarray(np.dstack([COLOUR, GREY])), "png", np.dstack([COLOUR, GREY]), 0),
        (Image.fromarray(GREY > 99), "png", 255 * (GREY > 99)[..., None], 0),
        (Image.fromarray(255 - COLOUR).convert("CMYK"), "tif", 255 - COLOUR, 0),
        (Image.fromarray(COLOUR // 64 * 64).quantize(64), "png", None, 0),
        (Image.fromarray(COLOUR // 64 * 64).quantize(64), "gif", None, 0),
        (Image.fromarray(np.full_like(COLOUR, (200, 100, 50))), "jpg", np.full_like(COLOUR, (200, 100, 50)), 2),
        (Image.fromarray(np.full_like(COLOUR, (200, 100, 50))).convert("CMYK"), "jpeg", (200, 100, 50), 3),
        (Image.fromarray(np.full_like(COLOUR, (200, 100, 50))), "webp", np.full_like(COLOUR, (200, 100, 50)), 3),
    ],
    ids=lambda value: getattr(value, "mode", None) or str(value)[:5].strip(),
)  # fmt: skip
def test_every_kind_of_image_becomes_eight_bits_of_grey_or_colour(tmp_path, image, suffix, expected, tolerance):
    image.save(write(tmp_path) / "train" / "cat" / f"0.{suffix}")
    data = sources.load(str(tmp_path))
    found = data.train[[file.name for file in data.train.files].index(f"0.{suffix}")]["image"]
    expected = np.asarray(image.convert("RGB")) if expected is None else expected
    assert found.dtype == np.uint8 and found.shape[:2] == (20, 30) and found.shape[2] in (1, 3, 4)
    assert np.abs(found.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize(("array", "suffix"), [(COLOUR, "png"), (SMOOTH, "jpg"), (DEEP, "png")])
def test_images_are_upright(tmp_path, array, suffix):
    Image.fromarray(array).save(tmp_path / f"a.{suffix}", exif=TURNED, quality=100)
    with open(tmp_path / f"a.{suffix}", "rb") as file:
        found = decode.pixels(file)
    eight = array if array.ndim == 3 else np.round(array / 257)[..., None]
    assert found.shape == (30, 20, eight.shape[2])
    assert np.abs(found.astype(int) - np.rot90(eight, -1)).max() <= (0 if suffix == "png" else 4)


def test_images_are_decoded_when_they_are_asked_for(tmp_path, monkeypatch):
    counted = []
    load = Image.Image.load
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: counted.append(1) or load(image))
    data = sources.load(str(write(tmp_path)))
    assert data.train.labels.sum() == 3 and not counted


def test_nested_folders_and_links_belong_to_the_class(tmp_path):
    root = write(tmp_path / "data")
    inner = root / "train" / "cat" / "black" / "young"
    inner.mkdir(parents=True)
    Image.fromarray(COLOUR).save(inner / "x.png")
    os.symlink(root / "train" / "cat", inner / "up")  # a circle
    os.symlink(root / "test" / "dog" / "0.png", root / "train" / "dog" / "link.png")
    data = sources.load(str(root))
    np.testing.assert_array_equal(np.bincount(data.train.labels), [4, 4])


def test_other_files_are_passed_over_and_said(tmp_path, capsys):
    root = write(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "more.txt", "._0.png"):
        (root / "train" / "cat" / name).write_text("x")
    (root / "test" / "labels.csv").write_text("x")
    (root / "train" / "empty").mkdir()
    data = sources.load(str(root))
    said = capsys.readouterr().out
    assert len(data.train) == 6 and data.class_names == ("cat", "dog")
    assert "are ignored: 1 .csv, 1 .db, 2 .txt" in said and "class folders without an image" in said


def test_unreadable_files_are_named_all_at_once(tmp_path):
    root = write(tmp_path, number=5)
    cats = sorted((root / "train" / "cat").iterdir())
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(cats[0].with_suffix(".jpg"))
    Image.fromarray(noise).save(cats[0])
    for whole in (cats[0], cats[0].with_suffix(".jpg")):
        whole.write_bytes(whole.read_bytes()[:-600])
    cats[1].write_bytes(b"")
    cats[2].write_text("no image")
    cats[3].unlink()
    os.symlink("/nowhere/at/all", cats[3])
    Image.fromarray(DEEP.astype(np.int32)).save(root / "train" / "cat" / "z.tif")
    message = complaint(root)
    assert "6 of 22 images cannot be read: train/cat/0.jpg (image file is truncated" in message
    assert "train/cat/1.png (not an image of a known format)" in message and "and 1 more; remove" in message
    assert "train/cat/3.png (No such file" in message


def test_a_file_that_only_lacks_its_end_mark_is_decoded_to_be_sure(tmp_path):
    file = write(tmp_path) / "train" / "cat" / "p.jpg"
    Image.fromarray(COLOUR).save(file)
    file.write_bytes(file.read_bytes() + b"camera's own")
    assert len(sources.load(str(tmp_path)).train) == 7


def test_damage_that_shows_only_in_decoding_names_the_file(tmp_path):
    file = write(tmp_path) / "train" / "cat" / "0.png"
    Image.fromarray(COLOUR).save(file)
    content = bytearray(file.read_bytes())
    content[60:160] = bytes(100)
    file.write_bytes(content)
    data = sources.load(str(tmp_path))
    with pytest.raises(InputError, match="0.png' cannot be decoded: .*; remove or replace it"):
        data.train[0]


def test_folders_that_are_no_source_say_what_they_hold(tmp_path):
    root = write(tmp_path / "a", "train")
    assert "has no test or val split beside the 6 training examples" in complaint(root)
    assert len(sources.load(str(root), test_examples=2).test) == 2
    assert len(sources.load(str(root / "train"), test_examples=2).train) == 4  # CLASS/*.png, without a split's folder
    assert "data.test_examples=6, expected less than the 6" in complaint(root, test_examples=6)
    write(root, "test")
    assert "has a held-out split of its own; set 0" in complaint(root, test_examples=2)
    assert "has no folder train beside test" in complaint(write(tmp_path / "b", "test"))
    assert "holds 3 .png (images without class folders" in complaint(root / "train" / "cat")
    assert f"holds the folder a (is {str(tmp_path / 'c' / 'a')!r} meant?)" in complaint(_moved(root, tmp_path / "c"))
    (tmp_path / "empty" / "train").mkdir(parents=True)
    assert "empty/train' holds no image and no table; expected" in complaint(tmp_path / "empty")
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "empty" / part).mkdir(parents=True)
    told = "empty/train' holds no image and no table, but the folders a, b (which hold no file); expected"
    assert told in complaint(tmp_path / "empty")
    assert "train' holds the folders a, b (which hold no file)" in complaint(tmp_path / "empty" / "train")


def _moved(root: pathlib.Path, inside: pathlib.Path) -> pathlib.Path:
    (inside / "a").mkdir(parents=True)
    (inside / "a" / "notes").touch()
    return inside


def test_classes_of_a_folder_that_do_not_fit(tmp_path):
    root = write(tmp_path / "a")
    write(root, "test", names=("cow",), number=2)
    message = complaint(root)
    assert "cow/0.png': class 'cow' (2 examples), which is none of the 2 classes" in message
    (root / "test" / "cow").rename(root / "test" / "inner")
    (root / "test" / "cow").mkdir()
    (root / "test" / "inner").rename(root / "test" / "cow" / "inner")
    assert "cow/inner/0.png': class 'cow' (2 examples)" in complaint(root)
    assert "are in one class folder, 'cat'; expected two" in complaint(write(tmp_path / "b", names=("cat",)))
    flat = tmp_path / "c" / "train"
    flat.mkdir(parents=True)
    Image.fromarray(COLOUR).save(flat / "x.png")
    assert "the 1 training images are not in class folders; expected train/CLASS/*.jpg" in complaint(tmp_path / "c")


def test_images_and_tables_in_one_folder_are_not_guessed_at(tmp_path):
    (write(tmp_path) / "train.csv").write_text("sentence,label\na,b\n")
    assert "holds both tables (train.csv) and folders of images" in complaint(tmp_path)


def test_two_folders_of_one_split_are_refused(tmp_path):
    write(tmp_path, "train", "val", "valid")
    assert "holds both val and valid; expected one of them" in complaint(tmp_path)


def test_every_byte_of_every_file_is_in_the_fingerprint(tmp_path):
    one = sources.load(str(write(tmp_path / "one"))).fingerprint()
    assert sources.load(str(write(tmp_path / "elsewhere"))).fingerprint() == one
    Image.fromarray(np.full((8, 10, 3), 99, np.uint8)).save(tmp_path / "one" / "train" / "dog" / "2.png")
    assert sources.load(str(tmp_path / "one")).fingerprint() != one


def test_damage_that_shows_in_training_is_an_input_error_there(tmp_path):
    file = write(tmp_path) / "train" / "cat" / "0.png"
    Image.fromarray(COLOUR).save(file)
    content = bytearray(file.read_bytes())
    content[60:160] = bytes(100)
    file.write_bytes(content)
    data = sources.load(str(tmp_path))
    with pytest.raises(InputError, match="0.png' cannot be decoded"):
        next(pipeline.training_batches(data.train, 6, 16, seed=0))


def test_mixed_images_make_equal_batches_in_the_order_of_the_seed_whatever_the_threads(tmp_path):
    root = write(tmp_path)
    Image.fromarray(DEEP).save(root / "train" / "cat" / "deep.png")
    Image.fromarray(np.dstack([COLOUR, GREY])).save(root / "train" / "dog" / "clear.png")
    data = sources.load(str(root))
    first = [next(pipeline.training_batches(data.train, 8, 16, seed=0, threads=threads)) for threads in (1, 4)]
    assert first[0]["image"].shape == (8, 16, 16, 3) and sorted(first[0]["label"]) == [0] * 4 + [1] * 4
    np.testing.assert_array_equal(first[0]["image"], first[1]["image"])
