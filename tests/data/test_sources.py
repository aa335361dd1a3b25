import pathlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from surm.data import sources
from surm.data.splits import ArraySplit
from surm.errors import InputError
from tests.data.tfds_cifar import CIFAR


def complaint(source: str | pathlib.Path) -> str:
    with pytest.raises(InputError) as caught:
        sources.load(str(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def real_arrays() -> dict[str, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    images = (images * 15).astype(np.uint8).reshape(-1, 8, 8)
    parts = {"train": slice(0, 300), "test": slice(300, 400), "val": slice(400, 460)}
    kinds = {"x": images, "y": labels}
    return {f"{kind}_{name}": array[part] for name, part in parts.items() for kind, array in kinds.items()}


def write(folder: pathlib.Path, **changes: np.ndarray | None) -> pathlib.Path:
    arrays = {name: array for name, array in (real_arrays() | changes).items() if array is not None}
    np.savez_compressed(folder / "data.npz", **arrays)
    return folder / "data.npz"


def test_digits_are_all_there_once():
    data = sources.load("digits")
    parts = [data.train, data.validation, data.test]
    assert [len(part) for part in parts] == [1077, 360, 360] and data.num_classes == 10
    images = np.concatenate([part.images for part in parts])
    original = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    assert sorted(map(bytes, images)) == sorted(map(bytes, original))
    for part in parts:  # stratified: each class has its share, give or take one
        shares = np.bincount(load_digits().target) * len(part) / 1797
        assert np.abs(np.bincount(part.labels) - shares).max() <= 1


def test_digits_are_split_the_same_every_time():
    one, other = sources.digits(), sources.digits()
    np.testing.assert_array_equal(one.test.images, other.test.images)
    example = one.train[5]
    assert example["image"].shape == (8, 8, 1) and example["image"].dtype == np.uint8
    assert example["label"].dtype == np.int32 and one.train.labels.dtype == np.int32


@pytest.mark.parametrize("label_dtype", [np.uint8, np.int64])
def test_npz_grey_with_validation(tmp_path, label_dtype):
    arrays = real_arrays()
    data = sources.load(str(write(tmp_path, y_train=arrays["y_train"].astype(label_dtype))))
    for name, key in (("train", "train"), ("validation", "val"), ("test", "test")):
        split = data.split(name)
        np.testing.assert_array_equal(split.images[..., 0], arrays[f"x_{key}"])
        np.testing.assert_array_equal(split.labels, arrays[f"y_{key}"])
        assert split.labels.dtype == np.int32
    assert data.num_classes == 10


def test_npz_without_validation(tmp_path):
    data = sources.load(str(write(tmp_path, x_val=None, y_val=None)))
    assert data.validation is None
    with pytest.raises(InputError, match="no split 'validation'; it has train, test"):
        data.split("validation")


def test_arrays_outside_the_contract_are_left_alone(tmp_path):
    assert sources.load(str(write(tmp_path, classes=np.array(["zero", None], object)))).num_classes == 10


@pytest.mark.skipif(not CIFAR.is_file(), reason="no ../shared/data/cifar10.npz beside the checkout")
def test_cifar():
    data = sources.load(str(CIFAR))
    assert (len(data.train), len(data.validation), len(data.test)) == (10_000, 4_000, 1_000)
    assert data.train[0]["image"].shape == (32, 32, 3) and data.num_classes == 10


ARRAYS = real_arrays()
BAD_ARRAYS = {
    "missing": (dict(y_test=None), "no array y_test; it has x_test, x_train, x_val, y_train, y_val"),
    "half a validation split": (dict(y_val=None), "no array y_val; it has"),
    "the other half": (dict(x_val=None), "no array x_val; it has"),
    "float images": (dict(x_train=ARRAYS["x_train"] / 255), "x_train is float64, expected uint8"),
    "flat images": (dict(x_test=ARRAYS["x_test"].reshape(100, 64)), "x_test has shape (100, 64), expected N×H×W"),
    "too many axes": (dict(x_val=ARRAYS["x_val"][..., None, None]), "x_val has shape (60, 8, 8, 1, 1), expected"),
    "no pixels": (dict(x_test=ARRAYS["x_test"][:, :0]), "x_test has shape (100, 0, 8, 1), expected"),
    "one-hot labels": (
        dict(y_train=np.eye(10, dtype=int)[ARRAYS["y_train"]]),
        "int64 of shape (300, 10), expected 300",
    ),
    "fractions as labels": (dict(y_test=ARRAYS["y_test"] / 2), "y_test holds 3.5 for example 0 (of"),
    "too few labels": (dict(y_train=ARRAYS["y_train"][:-1]), "shape (299,), expected 300 integers"),
    "negative label": (dict(y_val=ARRAYS["y_val"] - 1), "y_val holds labels -1 to 8, expected labels from 0"),
    "unseen test label": (
        dict(y_test=ARRAYS["y_test"] + 1),
        "y_test holds label 10 (8 examples), which is none of the 10 classes that are trained; nearest: 1, 0",
    ),
    "unseen val labels": (
        dict(y_val=ARRAYS["y_val"] + 5),
        "y_val holds label 10 (7 examples), which is none of the 10 classes that are trained; nor are '11' (7), ",
    ),
    "empty train": (dict(x_train=ARRAYS["x_train"][:0], y_train=ARRAYS["y_train"][:0]), "x_train holds no image"),
    "empty test": (dict(x_test=ARRAYS["x_test"][:0], y_test=ARRAYS["y_test"][:0]), "x_test holds no image"),
    "pickled images": (dict(x_train=ARRAYS["x_train"].astype(object)), "Object arrays cannot be loaded"),
}


@pytest.mark.parametrize("changes, said", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_unusable_arrays(tmp_path, changes, said):
    path = write(tmp_path, **changes)
    message = complaint(path)
    assert said in message and repr(str(path)) in message


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_a_truncated_npz(tmp_path, kept):
    path = write(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert "is not an .npz, or is cut short" in complaint(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_npz(tmp_path, compressed):
    path = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, **real_arrays())
    content = bytearray(path.read_bytes())
    content[1500:1600] = bytes(100)
    path.write_bytes(content)
    assert "cannot be read as an .npz of plain arrays" in complaint(path)


def test_other_files_called_npz(tmp_path):
    (tmp_path / "text.npz").write_text("not arrays")
    assert "is not an .npz" in complaint(tmp_path / "text.npz")
    with open(tmp_path / "single.npz", "wb") as file:
        np.save(file, np.arange(3))
    assert "is not an .npz" in complaint(tmp_path / "single.npz")
    np.savez(tmp_path / "none.npz")
    (tmp_path / "folder.npz").mkdir()
    assert "no data file" in complaint(tmp_path / "folder.npz")


def test_sources_that_are_none(tmp_path):
    for source in (tmp_path / "gone.npz", "digit", "", "cifar10"):
        assert "expected" in complaint(source) or "expects" in complaint(source)
        assert sources.SOURCES in complaint(source)
    assert "holds nothing; expected" in complaint(tmp_path)
    assert "no data file" in complaint(tmp_path / "gone.npz")
    assert complaint("digit").endswith("nearest: digits")
    (tmp_path / "data.zip").touch()
    assert "a file of another kind" in complaint(tmp_path / "data.zip")


@pytest.mark.parametrize("name", ["tests", "num_classes"])
def test_split_names(name):
    with pytest.raises(InputError, match=f"no split '{name}'; it has train, validation, test"):
        sources.digits().split(name)


def test_balanced_subsets_nest():
    split = sources.digits().train
    before: set[int] = set()
    for examples in (1, 7, 10, 25, 100, 333, 1000):
        subset = sources.balanced_subset(split, examples, 10, seed=3)
        counts = np.bincount(subset.labels, minlength=10)
        assert len(subset) == examples == counts.sum() and counts.max() - counts.min() <= 1
        now = set(subset.indices.tolist())
        assert before < now and len(now) == examples
        np.testing.assert_array_equal([subset[i]["label"] for i in range(examples)], subset.labels)
        np.testing.assert_array_equal(subset[0]["image"], split[int(subset.indices[0])]["image"])
        before = now


def test_subset_is_decided_by_its_seed():
    split = sources.digits().train
    one, same, other = (sources.balanced_subset(split, 50, 10, seed=seed).indices for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert set(one) != set(other)


def test_no_subset_is_the_split():
    split = sources.digits().train
    assert sources.balanced_subset(split, 0, 10, seed=0) is split


def test_subset_names_the_class_that_has_too_few():
    digits = sources.digits().train
    few = np.flatnonzero(digits.labels == 7)[5:]
    split = ArraySplit(np.delete(digits.images, few, 0), np.delete(digits.labels, few))
    assert len(sources.balanced_subset(split, 50, 10, seed=0)) == 50
    with pytest.raises(InputError, match="train_examples=60 wants 6 of class 7, which has 5"):
        sources.balanced_subset(split, 60, 10, seed=0)
    with pytest.raises(InputError, match="wants 1 of class 10, which has 0"):
        sources.balanced_subset(split, 11, 11, seed=0)
    with pytest.raises(InputError, match="train_examples=-1"):
        sources.balanced_subset(split, -1, 10, seed=0)
