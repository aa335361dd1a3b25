"""Labels of every form become classes that are named by themselves, and what is odd about them is said."""

import pathlib

import numpy as np
import pytest

from surm.data import census, classes, sources
from surm.data.splits import ArraySplit, Dataset
from surm.errors import InputError

CYCLE = np.arange(12) % 3


def npz(folder: pathlib.Path, train, test=None) -> str:
    train = np.asarray(train)
    test = train if test is None else np.asarray(test)
    arrays = {"x_train": np.zeros((len(train), 4, 4), np.uint8), "x_test": np.zeros((len(test), 4, 4), np.uint8)}
    np.savez(folder / "data.npz", **arrays, y_train=train, y_test=test)
    return str(folder / "data.npz")


def complaint(folder: pathlib.Path, train, test=None) -> str:
    with pytest.raises(InputError) as caught:
        sources.load(npz(folder, train, test))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (CYCLE, ("0", "1", "2")),
        (CYCLE + 1, ("1", "2", "3")),
        (np.array([0, 1, 3])[CYCLE], ("0", "1", "3")),
        (np.array([0, 1, 200000])[CYCLE], ("0", "1", "200000")),
        (np.array([2**40, 9, 10])[CYCLE], ("9", "10", str(2**40))),
        (CYCLE[:, None].astype(np.uint8), ("0", "1", "2")),
        (CYCLE.astype(np.float32), ("0", "1", "2")),
        (CYCLE.astype(np.float16)[:, None], ("0", "1", "2")),
        (CYCLE > 0, ("False", "True")),
        (np.array([0, 1, 2**64 - 1], np.uint64)[CYCLE], ("0", "1", str(2**64 - 1))),
        (np.array(["eel", "cat", "dog"])[CYCLE], ("cat", "dog", "eel")),
        (np.array(["b", "10", "9"])[CYCLE], ("9", "10", "b")),
        (np.array(["naïve".encode(), b"cat", b"dog"])[CYCLE], ("cat", "dog", "naïve")),
    ],
    ids=str,
)
def test_classes_are_the_distinct_training_labels(tmp_path, labels, names):
    data = sources.load(npz(tmp_path, labels))
    assert data.class_names == names and data.num_classes == len(names)
    flat = np.asarray(labels).reshape(-1)
    for label, number in zip(flat, data.train.labels, strict=True):
        written = label.decode() if isinstance(label, bytes) else label
        assert names[number] == classes.name_of(written.item() if isinstance(written, np.generic) else written)
    assert data.train.labels.dtype == np.int32
    subset = sources.balanced_subset(data.train, len(names), data.num_classes, seed=0)
    assert sorted(subset.labels) == list(range(len(names)))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.eye(3, dtype=int)[CYCLE], "of shape (12, 3), expected 12 integers or strings; labels.argmax(axis=1)"),
        (CYCLE + 0.5, "y_train holds 0.5 for example 0 (of 12 such), expected whole numbers"),
        (np.where(CYCLE == 2, np.nan, CYCLE), "y_train holds nan for example 2 (of 4 such)"),
        (np.where(CYCLE == 1, np.inf, CYCLE), "y_train holds inf for example 1 (of 4 such)"),
        (CYCLE - 1, "y_train holds labels -1 to 1, expected labels from 0"),
        (np.zeros(12, int), "y_train holds 1 labels in 12 rows, expected the names of two or more classes"),
        (np.array(["a", "", "b"])[CYCLE], "y_train holds an empty label (4 examples)"),
        (np.array([b"a", b"\xff", b"b"])[CYCLE], "y_train holds the label b'\\xff', expected UTF-8"),
        (CYCLE.astype(complex), "y_train is complex128 of shape (12,), expected 12 integers or strings"),
        (CYCLE.astype("datetime64[D]"), "expected 12 integers or strings"),
        (np.arange(30), "y_train holds 30 labels in 30 rows"),
        (CYCLE[None, :], "of shape (1, 12), expected"),
    ],
    ids=str,
)
def test_labels_that_are_refused(tmp_path, labels, expected):
    if labels.shape[0] == 1:  # a row, which makes one image
        with pytest.raises(InputError, match="of shape"):
            classes.of_array(labels, 12, "y")
        return
    assert expected in complaint(tmp_path, labels)


def test_labels_as_objects_are_refused_with_the_way_on(tmp_path):
    np.savez(tmp_path / "o.npz", x_train=np.zeros((2, 4, 4), np.uint8), y_train=np.array(["a", None], object),
             x_test=np.zeros((2, 4, 4), np.uint8), y_test=np.array([0, 1]))  # fmt: skip
    with pytest.raises(InputError, match="names.astype.str. makes strings of objects"):
        sources.load(str(tmp_path / "o.npz"))


def test_a_held_out_class_that_training_has_not_is_named_with_its_count(tmp_path):
    message = complaint(tmp_path, np.array(["cat", "dog"])[CYCLE % 2], np.array(["cat", "Dog", "eel"])[CYCLE])
    assert "y_test holds label Dog (4 examples), which is none of the 2 classes that are trained" in message
    assert "nor are 'eel' (4)" in message and "nearest: dog" in message


def dataset(train: list[int], test: list[int], names: tuple[str, ...]) -> Dataset:
    splits = [ArraySplit(np.zeros((len(labels), 4, 4, 1), np.uint8), np.array(labels)) for labels in (train, test)]
    return Dataset(splits[0], None, splits[1], len(names), class_names=names)


@pytest.mark.parametrize(
    ("train", "test", "names", "lines"),
    [
        ([0, 0, 1, 1], [0, 1], ("a", "b"), []),
        ([0, 0, 1, 1, 1], [0, 1], ("Cat", "cat "), ["classes differ only in case or spaces: 'Cat' (2), 'cat ' (3)"]),
        ([0, 0, 1, 1], [0, 1], ("a", "NaN"), ["classes have the names of missing values: 'NaN' (2)"]),
        ([0, 0, 1], [0, 1], ("a", "b"), ["classes of one training example: 'b' (1)"]),
        ([0, 0, 1, 1], [0, 0], ("a", "b"), ["the test split has no example of one class that training has (with"]),
        ([0, 0, 1, 1], [2, 2, 0, 1], ("a", "b", "c"), ["classes without a training example cannot be learned"]),
    ],
)
def test_oddities_are_said_in_a_line_each(train, test, names, lines):
    first, *said = census.heading(dataset(train, test, names))
    assert first.startswith(f"{len(names)} classes, with their training examples: {names[0]} {train.count(0)}, ")
    assert len(said) == len(lines) and all(line in found for line, found in zip(lines, said, strict=True)), said


def test_of_many_classes_the_first_are_said():
    names = classes.in_order(map(str, range(1000)))
    (line,) = census.heading(dataset([*range(1000), *range(999, -1, -1), 5], [*range(1000)], names))
    assert line.startswith("1,000 classes, with their training examples: 0 2, 1 2, ") and "9 2, ..." in line
    assert line.endswith("... (2 to 3 each)") and len(line) < 150


def test_numbers_are_summed_up():
    data = dataset([0, 1], [0, 1], ())
    data = Dataset(data.train, None, data.test, 1, regression=True)
    assert census.heading(data) == ["labels are numbers from 0 to 1, their mean is 0.5"]
    census.check(data)


def test_one_class_is_not_trained():
    with pytest.raises(InputError, match="all 2 training examples are of the class 'b', expected two or more"):
        census.check(dataset([1, 1], [0, 1], ("a", "b")))
