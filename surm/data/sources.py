"""Image classification data by name: digits, a local .npz, or a TensorFlow Datasets name.

Every source ends as an `ImageData`: random-access splits of `{"image": uint8 H×W×C, "label": int}` examples, which
is what grain reads. Nothing here needs TensorFlow; `tensorflow_datasets.data_source` reads array_record files.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from surm.errors import InputError

SOURCES = "'digits', 'tfds:NAME', or the path of an .npz"


class Split(Protocol):
    """Random access to examples `{"image": uint8 H×W×C, "label": int}`."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One example."""

    @property
    def labels(self) -> np.ndarray:
        """All labels, in order, without decoding an image."""


@dataclasses.dataclass(frozen=True)
class ImageData:
    """The splits of one data set.

    Attributes:
      train: what is trained on.
      validation: what choices are made on; None where the source has none.
      test: the held-out split.
      num_classes: labels are 0 .. num_classes − 1.
    """

    train: Split
    validation: Split | None
    test: Split
    num_classes: int

    def split(self, name: str) -> Split:
        """The split called `train`, `validation` or `test`; InputError if there is none of that name."""
        found = getattr(self, name, None) if name in ("train", "validation", "test") else None
        if found is None:
            present = [n for n in ("train", "validation", "test") if getattr(self, n) is not None]
            raise InputError(f"the data has no split {name!r}; it has {', '.join(present)}")
        return found


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """A split held in memory."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index], "label": self.labels[index]}


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some examples of a split, in the order of `indices`."""

    parent: Split
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.parent[int(self.indices[index])]

    @property
    def labels(self) -> np.ndarray:
        """Labels of the subset."""
        return self.parent.labels[self.indices]


class TfdsSplit:
    """A split of a prepared TensorFlow data set; images are decoded when asked for."""

    def __init__(self, source: Sequence, undecoded: Sequence):
        """Wraps a `tfds.data_source` and the same one with image decoding skipped."""
        self._source = source
        self._undecoded = undecoded
        self._labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = self._source[index]
        return {"image": example["image"], "label": np.asarray(example["label"], np.int32)}

    @property
    def labels(self) -> np.ndarray:
        """All labels, in order; one pass over the undecoded records, kept afterwards."""
        if self._labels is None:
            self._labels = np.array([self._undecoded[i]["label"] for i in range(len(self))], np.int32)
        return self._labels


def load(source: str, *, data_dir: str | None = None) -> ImageData:
    """Opens a data set by name.

    Args:
      source: `digits`; `tfds:NAME` (also `tfds:NAME/CONFIG`); or the path of an .npz with arrays x_train, y_train,
        x_test, y_test and optionally x_val, y_val, images uint8 N×H×W[×C], labels integers from 0.
      data_dir: where TensorFlow Datasets keeps prepared data; None for its own default.

    Returns:
      The splits.

    Raises:
      InputError: if the source is unknown, missing or malformed; the message names the array, key or remedy.
    """
    if source == "digits":
        return digits()
    if source.startswith("tfds:"):
        return tfds_images(source.removeprefix("tfds:"), data_dir)
    path = pathlib.Path(source)
    if path.suffix == ".npz":
        return npz_images(path)
    raise InputError(f"data.source={source!r} is not a data set; expected {SOURCES}")


def digits() -> ImageData:
    """Scikit-learn's handwritten digits: 1,797 real 8×8 images of ten classes, embedded in the package.

    Split once and for all, stratified, with a fixed seed: 1,077 to train, 360 to validate, 360 to test.

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int32)
    rest, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
    train, validation = train_test_split(rest, test_size=360, random_state=0, stratify=labels[rest])
    parts = [ArraySplit(images[index], labels[index]) for index in (train, validation, test)]
    return ImageData(*parts, num_classes=10)


def npz_images(path: pathlib.Path) -> ImageData:
    """Reads a local .npz; see `load` for the arrays it must hold."""
    if not path.is_file():
        raise InputError(f"no data file {str(path)!r}; data.source expects {SOURCES}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name[:2] in ("x_", "y_")}
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{str(path)!r} cannot be read as an .npz of plain arrays: {error}") from error
    missing = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in arrays]
    if missing:
        raise InputError(f"{str(path)!r} has no array {', '.join(missing)}; it has {', '.join(sorted(arrays))}")
    train, test = (_array_split(path, arrays, name) for name in ("train", "test"))
    validation = _array_split(path, arrays, "val") if "x_val" in arrays else None
    return ImageData(train, validation, test, num_classes=int(train.labels.max()) + 1)


def tfds_images(name: str, data_dir: str | None) -> ImageData:
    """Reads a data set that TensorFlow Datasets has prepared, or prepares it (which needs network and TensorFlow).

    The held-out split is `test`, or `validation` where there is no test split.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except Exception as error:  # TFDS raises a family of unrelated types here
        raise InputError(f"TFDS does not know {name!r}: {_first_line(error)}") from error
    features = builder.info.features
    if "image" not in features or "label" not in features:
        raise InputError(f"tfds:{name} has features {', '.join(features)}; expected image and label")
    if not builder.info.splits:
        _prepare(builder, name)
    splits = {key: _tfds_split(tfds, builder, key) for key in builder.info.splits}
    test = splits.get("test") or splits.get("validation")
    if "train" not in splits or test is None:
        raise InputError(f"tfds:{name} has splits {', '.join(splits)}; expected train and test (or validation)")
    validation = splits.get("validation") if "test" in splits else None
    return ImageData(splits["train"], validation, test, num_classes=features["label"].num_classes)


def balanced_subset(split: Split, examples: int, num_classes: int, *, seed: int) -> Split:
    """Chooses examples so that every class has the same number, give or take one.

    Args:
      split: what to choose from.
      examples: how many; 0 means all.
      num_classes: labels are 0 .. num_classes − 1.
      seed: decides which examples; a larger subset of the same seed contains the smaller.

    Returns:
      The subset (or the split itself).

    Raises:
      InputError: if a class has too few examples.
    """
    if examples == 0:
        return split
    order = np.random.default_rng(seed).permutation(len(split))
    shuffled = split.labels[order]
    chosen = []
    for label in range(num_classes):
        want = examples // num_classes + (label < examples % num_classes)
        members = order[shuffled == label]
        if len(members) < want:
            raise InputError(f"data.train_examples={examples} wants {want} of class {label}, which has {len(members)}")
        chosen.append(members[:want])
    return Subset(split, np.sort(np.concatenate(chosen)))


def _array_split(path: pathlib.Path, arrays: dict[str, np.ndarray], name: str) -> ArraySplit:
    images, labels = arrays[f"x_{name}"], arrays.get(f"y_{name}")
    if labels is None:
        raise InputError(f"{str(path)!r} has x_{name} but no y_{name}")
    if images.dtype != np.uint8:
        raise InputError(f"{str(path)!r}: x_{name} is {images.dtype}, expected uint8 images (0..255)")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(f"{str(path)!r}: x_{name} has shape {images.shape}, expected N×H×W, N×H×W×1 or N×H×W×3")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(images):
        raise InputError(
            f"{str(path)!r}: y_{name} is {labels.dtype} of shape {labels.shape}, expected {len(images)} integers"
        )
    if len(labels) == 0:
        raise InputError(f"{str(path)!r}: x_{name} holds no image")
    if labels.min() < 0:
        raise InputError(f"{str(path)!r}: y_{name} holds label {labels.min()}, expected labels from 0")
    return ArraySplit(images, labels.astype(np.int32))


def _prepare(builder, name: str) -> None:
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # no network, no TensorFlow, manual download: many unrelated types
        raise InputError(
            f"tfds:{name} is not prepared in {builder.data_dir} and could not be: {_first_line(error)}; "
            "preparing needs a network and, for most data sets, TensorFlow (pip install 'surm[tfds]'); "
            "prepare it elsewhere and set data.data_dir, or name a local .npz"
        ) from error


def _tfds_split(tfds, builder, key: str) -> TfdsSplit:
    skip = {"image": tfds.decode.SkipDecoding()}
    return TfdsSplit(builder.as_data_source(key), builder.as_data_source(key, decoders=skip))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
