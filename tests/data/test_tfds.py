import importlib.util
import io
import pathlib
import socket
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from surm.data import pipeline, sources
from surm.data import tfds as surm_tfds
from surm.data.splits import Split
from surm.errors import InputError
from tests.data.tfds_cifar import CIFAR, KEYS, prepare

needs_cifar = pytest.mark.skipif(not CIFAR.is_file(), reason="no ../shared/data/cifar10.npz beside the checkout")
without_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
)


def complaint(source: str, data_dir: pathlib.Path) -> str:
    with pytest.raises(InputError) as caught:
        sources.load(source, data_dir=str(data_dir))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def nothing_final(data_dir: pathlib.Path, name: str) -> bool:
    folders = (data_dir / name).iterdir() if (data_dir / name).exists() else ()
    return not [folder for folder in folders if not folder.name.startswith("incomplete.")]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    data_dir = tmp_path_factory.mktemp("tfds")
    prepare(CIFAR, data_dir, examples=100)
    return data_dir


@needs_cifar
@pytest.mark.parametrize("name", ["small_cifar", "small_cifar:1.0.0", "SmallCifar"])
def test_every_image_and_label_is_read_back(prepared, name):
    data = sources.load(f"tfds:{name}", data_dir=str(prepared))
    with np.load(CIFAR) as npz:
        for split in ("train", "test"):
            examples = [data.split(split)[i] for i in range(100)]
            np.testing.assert_array_equal([e["image"] for e in examples], npz[f"x_{KEYS[split]}"][:100])
            np.testing.assert_array_equal([e["label"] for e in examples], npz[f"y_{KEYS[split]}"][:100])
            np.testing.assert_array_equal(data.split(split).labels, npz[f"y_{KEYS[split]}"][:100])
            assert len(data.split(split)) == 100
    assert data.num_classes == 10 and data.validation is None


@needs_cifar
def test_agrees_with_tfds_own_decoding(prepared):
    data = sources.load("tfds:small_cifar", data_dir=str(prepared))
    theirs = tfds.builder("small_cifar", data_dir=prepared).as_data_source("train")
    for index in (0, 17, 99):
        np.testing.assert_array_equal(data.train[index]["image"], theirs[index]["image"])
        assert data.train[index]["label"] == theirs[index]["label"]


@needs_cifar
@pytest.mark.parametrize(
    "splits, unlabelled, held_out, validated",
    [
        (("train", "validation"), (), "val", None),
        (("train", "validation", "test"), (), "test", "val"),
        (("train", "validation", "test"), ("test",), "val", None),
    ],
)
def test_held_out_split(tmp_path, splits, unlabelled, held_out, validated):
    prepare(CIFAR, tmp_path, examples=20, splits=splits, unlabelled=unlabelled)
    data = sources.load("tfds:small_cifar", data_dir=str(tmp_path))
    with np.load(CIFAR) as npz:
        np.testing.assert_array_equal(data.test[3]["image"], npz[f"x_{held_out}"][3])
        assert (data.validation is None) == (validated is None)
        if validated:
            np.testing.assert_array_equal(data.validation[3]["image"], npz[f"x_{validated}"][3])


@needs_cifar
def test_training_and_subset_over_it(prepared):
    data = sources.load("tfds:small_cifar", data_dir=str(prepared))
    subset = sources.balanced_subset(data.train, 20, 10, seed=0)
    assert np.bincount(subset.labels, minlength=10).tolist() == [2] * 10
    runs = []
    for threads in (1, 8):
        batches = pipeline.training_batches(subset, 8, 48, seed=0, augment="crop_flip", threads=threads)
        runs.append([next(batches) for _ in range(6)])
    for one, other in zip(*runs, strict=True):
        assert one["image"].shape == (8, 48, 48, 3)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    labels = np.concatenate([batch["label"][batch["mask"]] for batch in runs[0][:3]])  # one pass
    assert sorted(labels) == sorted(subset.labels)


@needs_cifar
def test_only_train_is_refused(tmp_path):
    prepare(CIFAR, tmp_path, examples=5, splits=("train",))
    message = complaint("tfds:small_cifar", tmp_path)
    assert "has no test or val split beside the" in message and "config.data.test_examples" in message


@needs_cifar
def test_tfrecord_is_refused_with_the_remedy(tmp_path):
    prepare(CIFAR, tmp_path, examples=5)
    info = tmp_path / "small_cifar" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert "prepare it as array_record in another data.data_dir" in complaint("tfds:small_cifar", tmp_path)


@needs_cifar
def test_a_damaged_folder_is_one_line(tmp_path):
    prepare(CIFAR, tmp_path, examples=5)
    folder = tmp_path / "small_cifar" / "1.0.0"
    shard = folder / "small_cifar-train.array_record-00000-of-00001"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    assert "cannot be read" in complaint("tfds:small_cifar", tmp_path)
    shard.unlink()
    assert f"{shard.name} is missing" in complaint("tfds:small_cifar", tmp_path)
    (folder / "dataset_info.json").write_text('{"name": ')
    assert "cannot be opened" in complaint("tfds:small_cifar", tmp_path)


@needs_cifar
@pytest.mark.parametrize("name", ["small_cifar:2.0.0", "small_cifar/other"])
def test_what_a_folder_holds_is_named(prepared, name):
    assert complaint(f"tfds:{name}", prepared).endswith("small_cifar holds 1.0.0")


@needs_cifar
def test_a_prepared_name_is_suggested(prepared):
    assert "nearest: small_cifar" in complaint("tfds:smal_cifar", prepared)


def features(channels: int) -> tfds.features.FeaturesDict:
    image = tfds.features.Image(shape=(None, None, channels))
    return tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(num_classes=10)})


def split_of(encoded: list[bytes], channels: int) -> Split:
    records = [
        features(channels).serialize_example({"image": io.BytesIO(data), "label": index})
        for index, data in enumerate(encoded)
    ]
    return surm_tfds.TfdsSplit(records, channels)


def test_labels_need_no_decoding():
    split = split_of([b"no image", b"nor this"], 3)
    assert split.labels.tolist() == [0, 1] and split.labels.dtype == np.int32
    with pytest.raises(OSError):
        split[0]


def test_an_example_without_a_label_among_others_is_refused():
    records = [features(3).serialize_example({"image": io.BytesIO(b"x"), "label": label}) for label in (1, -1, 0)]
    with pytest.raises(InputError, match="example 1 of 3 has no label, but others of its split have one"):
        surm_tfds.TfdsSplit(records, 3).labels  # noqa: B018


def test_every_record_is_in_the_fingerprint_and_read_once():
    class Counted(list):
        taken = 0

        def __getitem__(self, index):
            self.taken += 1
            return super().__getitem__(index)

    records = Counted(split_of([b"one", b"two", b"three"], 3)._records)
    split = surm_tfds.TfdsSplit(records, 3)
    assert records.taken <= 1
    records.taken = 0  # the check of the types has looked at one
    content = list(split.content(np.arange(3)))
    assert len(set(content)) == 3 and split.labels.tolist() == [0, 1, 2] and records.taken == 3
    assert list(split_of([b"one", b"two", b"three"], 3).content(np.array([2, 0]))) == [content[2], content[0]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "mode, form", [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG")]
)
def test_odd_encodings_end_with_the_right_channels(mode, form, channels):
    photo = Image.fromarray(load_sample_image("flower.jpg")[:64, :48])
    encoded = io.BytesIO()
    photo.convert(mode, palette=Image.Palette.ADAPTIVE).save(encoded, "PNG" if mode in ("P", "RGBA") else "JPEG")
    image = split_of([encoded.getvalue()], channels)[0]["image"]
    expected = np.asarray(photo.convert("L" if channels == 1 or mode == "L" else "RGB"), np.int32)
    assert image.shape == (64, 48, channels) and image.dtype == np.uint8
    assert np.abs(image - expected.reshape(64, 48, -1)).mean() < 8  # JPEG and palettes lose a little


class SurmPilDigits(tfds.core.GeneratorBasedBuilder):
    """Known to TFDS while these tests run; Pillow's images need no TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=features(1))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0), "test": self._generate_examples(1)}

    def _generate_examples(self, start):
        images, labels = load_digits(return_X_y=True)
        for index in range(start, 100, 2):
            yield index, {"image": self._image(images[index].reshape(8, 8, 1)), "label": labels[index]}

    def _image(self, values):
        return Image.fromarray((values[..., 0] * 15).astype(np.uint8))


class SurmArrayDigits(SurmPilDigits):
    """The same digits as arrays, which TFDS encodes with TensorFlow."""

    def _image(self, values):
        return (values * 15).astype(np.uint8)


def test_is_prepared_where_it_can_be(tmp_path):
    data = sources.load("tfds:surm_pil_digits", data_dir=str(tmp_path))
    assert (len(data.train), len(data.test), data.num_classes) == (50, 50, 10)
    assert data.train[0]["image"].shape == (8, 8, 1)
    again = sources.load("tfds:surm_pil_digits", data_dir=str(tmp_path))
    np.testing.assert_array_equal(again.train.labels, data.train.labels)


def test_a_folder_without_its_description_is_refused(tmp_path):
    (tmp_path / "surm_pil_digits" / "1.0.0").mkdir(parents=True)
    assert "has no training split; it has none" in complaint("tfds:surm_pil_digits", tmp_path)


@without_tensorflow
def test_preparing_without_tensorflow_names_the_extra(tmp_path):
    message = complaint("tfds:surm_array_digits", tmp_path)
    assert "No module named 'tensorflow'" in message and "pip install 'surm[tfds]'" in message
    assert "data.data_dir" in message
    assert nothing_final(tmp_path, "surm_array_digits")


def test_no_network_is_said_at_once(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    proxy(monkeypatch, closed)
    started = time.monotonic()
    message = complaint("tfds:cifar10", tmp_path)
    assert time.monotonic() - started < 60  # TFDS alone: minutes
    assert "no answer from www.cs.toronto.edu" in message and str(tmp_path / "cifar10") in message
    assert "pip install 'surm[tfds]'" in message and "data.data_dir" in message
    assert nothing_final(tmp_path, "cifar10")


def test_a_network_that_never_answers_does_not_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(surm_tfds, "NETWORK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy(monkeypatch, silent.getsockname()[1])
        started = time.monotonic()
        assert "timed out" in complaint("tfds:cifar10", tmp_path)
    assert time.monotonic() - started < 60  # TFDS alone: minutes


def proxy(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for name in ("no_proxy", "NO_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")


def test_data_kept_by_hand_needs_no_network(tmp_path):
    assert "Manual directory" in complaint("tfds:imagenet2012", tmp_path)
    assert nothing_final(tmp_path, "imagenet2012")


@pytest.mark.parametrize(
    "name, said",
    [
        ("cifar11", "TFDS does not know 'cifar11'; nearest: cifar10"),
        ("cifar10_corrupted/brightnes", "no config 'brightnes'; nearest: brightness_"),
        ("mnist/other", "no config 'other'; it has none"),
        ("cifar10:9.9.9", "cannot be opened: Dataset cifar10 cannot be loaded at version 9.9.9, only: "),
        ("", "expected tfds:NAME"),
        ("a:b:c", "expected tfds:NAME"),
        ("huggingface:cifar10", "expected tfds:NAME"),
        ("ag_news_subset", "has the features description (Text), label (ClassLabel), title (Text); expected image"),
    ],
)
def test_unusable_names(tmp_path, name, said):
    assert said in complaint(f"tfds:{name}", tmp_path)
    assert not list(tmp_path.iterdir())
