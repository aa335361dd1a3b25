"""Data by name: digits, a local .npz, a folder of texts, or a TensorFlow Datasets name.

Every source ends as a `Dataset`: random-access splits of `{"image": uint8 H×W×C, "label": int}` examples, or of
`{"texts": (str, ...), "label": ...}`, which is what grain reads. Nothing here needs TensorFlow.
"""

import dataclasses
import os
import pathlib
import zipfile
import zlib

import numpy as np

from surm.data import glue, texts
from surm.data.splits import ArraySplit, Dataset, Split, Subset
from surm.data.tfds import tfds_images, tfds_texts
from surm.errors import InputError, nearest, one_line

_KNOWN = ["digits", *(f"tfds:glue/{task}" for task in glue.TASKS)]
SOURCES = "'digits', 'tfds:NAME', the path of an .npz, or a folder with train.tsv and dev.tsv"
REQUIRED_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL_ARRAYS = ("x_val", "y_val")


def load(
    source: str,
    *,
    data_dir: str | None = None,
    task: str = "auto",
    text_columns: str = "sentence",
    label_column: str = "label",
) -> Dataset:
    """Opens a data set by name.

    Args:
      source: `digits`; `tfds:NAME` (also NAME/CONFIG, NAME:VERSION), images or `tfds:glue/TASK`; the path of an .npz
        with arrays x_train, y_train, x_test, y_test and optionally x_val, y_val, images uint8 N×H×W[×C], labels
        integers from 0; or a folder of tables (see `surm.data.texts`).
      data_dir: where TensorFlow Datasets keeps prepared data; None for its own default.
      task: what a folder of tables holds (see `surm.data.glue`); `auto` goes by the folder's name.
      text_columns: of a table of one's own, one name or two separated by a comma.
      label_column: of a table of one's own.

    Returns:
      The splits.

    Raises:
      InputError: if the source is unknown, missing or malformed; the message names the array, key, row or remedy.
    """
    if source == "digits":
        return digits()
    if source.startswith("tfds:glue"):
        named = source.removeprefix("tfds:glue").strip("/").partition(":")[0]
        if named in glue.TASKS and task not in ("auto", named):
            raise InputError(f"data.task={task!r}, but data.source={source!r} is {named!r}; expected 'auto'")
        return tfds_texts(source.removeprefix("tfds:"), data_dir)
    if source.startswith("tfds:"):
        return tfds_images(source.removeprefix("tfds:"), data_dir)
    path = pathlib.Path(os.path.expanduser(source))
    if path.suffix == ".npz":
        return npz_images(path)
    if source and path.is_dir():
        name = texts.task_of(path) if task == "auto" else task
        _check_task(name, texts.plain_name(path), source)
        return texts.folder_texts(path, glue.task(name, text_columns, label_column))
    if source and path.exists():
        raise InputError(f"data.source={source!r} is a file of another kind; expected {SOURCES}")
    raise InputError(
        f"data.source={source!r} is not known, and there is no such folder; expected {SOURCES}; "
        f"{nearest(source, _KNOWN)}"
    )


def _check_task(task: str, named: str, source: str) -> None:
    """Refuses a task that contradicts the task of GLUE that the source's name says it holds."""
    if named in glue.TASKS and task in glue.TASKS and task != named:
        raise InputError(f"data.task={task!r}, but data.source={source!r} holds {named!r} by its name")


def digits() -> Dataset:
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
    return Dataset(*parts, num_classes=10)


def npz_images(path: pathlib.Path) -> Dataset:
    """Reads a local .npz into memory.

    Args:
      path: of the file; see `load` for the arrays it must hold.

    Returns:
      The splits; there are as many classes as the training labels say.

    Raises:
      InputError: if there is no such file, it is damaged, or an array is missing or not what is expected.
    """
    if not path.is_file():
        raise InputError(f"no data file {str(path)!r}; data.source expects {SOURCES}")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{str(path)!r} is not an .npz, or is cut short; expected what numpy.savez writes")
    names, arrays = _read_npz(path)
    required = REQUIRED_ARRAYS + (OPTIONAL_ARRAYS if names & set(OPTIONAL_ARRAYS) else ())
    if missing := [name for name in required if name not in names]:
        raise InputError(
            f"{str(path)!r} has no array {', '.join(missing)}; it has {', '.join(sorted(names)) or 'none'}"
        )
    train = _array_split(path, arrays, "train")
    num_classes = int(train.labels.max()) + 1
    test = _array_split(path, arrays, "test", num_classes)
    validation = _array_split(path, arrays, "val", num_classes) if "x_val" in names else None
    return Dataset(train, validation, test, num_classes)


def balanced_subset(split: Split, examples: int, num_classes: int, *, seed: int) -> Split:
    """Chooses examples so that every class has the same number, give or take one.

    Args:
      split: what to choose from.
      examples: how many; 0 means all.
      num_classes: labels are 0 .. num_classes − 1; 1 where there are no classes to balance.
      seed: decides which examples; a larger subset of the same seed contains the smaller.

    Returns:
      The subset (or the split itself).

    Raises:
      InputError: if a class has too few examples; the message names it.
    """
    if examples == 0:
        return split
    if examples < 0:
        raise InputError(f"data.train_examples={examples}, expected 0 (all) or more")
    order = np.random.default_rng(seed).permutation(len(split))
    shuffled = split.labels[order] if num_classes > 1 else np.zeros(len(order))
    chosen = []
    for label in range(num_classes):
        want = examples // num_classes + (label < examples % num_classes)
        members = order[shuffled == label]
        if len(members) < want:
            whose = f"class {label}, which has {len(members)}" if num_classes > 1 else f"{len(members)} examples"
            raise InputError(f"data.train_examples={examples} wants {want} of {whose}")
        chosen.append(members[:want])
    return Subset(split, np.sort(np.concatenate(chosen)))


def hold_out(data: Dataset, examples: int, *, seed: int) -> Dataset:
    """Takes a validation split out of the training split, at random.

    Args:
      data: the splits.
      examples: how many; 0 changes nothing.
      seed: decides which.

    Returns:
      The data with a smaller training split and the examples taken from it as its validation split.

    Raises:
      InputError: if that leaves nothing to train on, or the data has a validation split of its own.
    """
    if examples == 0:
        return data
    if data.validation is not None:
        raise InputError(f"data.validation_examples={examples}, but the data has a validation split of its own; set 0")
    if not 0 < examples < len(data.train):
        raise InputError(f"data.validation_examples={examples}, expected less than the {len(data.train)} for training")
    order = np.random.default_rng((seed, 1)).permutation(len(data.train))
    taken, left = (Subset(data.train, np.sort(part)) for part in (order[:examples], order[examples:]))
    return dataclasses.replace(data, train=left, validation=taken)


def _read_npz(path: pathlib.Path) -> tuple[set[str], dict[str, np.ndarray]]:
    """The names of all arrays in the file, and those of the contract."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            wanted = [name for name in archive.files if name in REQUIRED_ARRAYS + OPTIONAL_ARRAYS]
            return set(archive.files), {name: archive[name] for name in wanted}
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{str(path)!r} cannot be read as an .npz of plain arrays: {one_line(error)}") from error


def _array_split(
    path: pathlib.Path, arrays: dict[str, np.ndarray], name: str, num_classes: int | None = None
) -> ArraySplit:
    images, labels, where = arrays[f"x_{name}"], arrays[f"y_{name}"], f"{str(path)!r}:"
    if images.dtype != np.uint8:
        raise InputError(f"{where} x_{name} is {images.dtype}, expected uint8 images (0..255)")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
        raise InputError(f"{where} x_{name} has shape {images.shape}, expected N×H×W, N×H×W×1 or N×H×W×3")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(images):
        raise InputError(f"{where} y_{name} is {labels.dtype} of shape {labels.shape}, expected {len(images)} integers")
    if len(labels) == 0:
        raise InputError(f"{where} x_{name} holds no image")
    if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        raise InputError(f"{where} y_{name} holds labels {labels.min()} to {labels.max()}, expected labels from 0")
    if num_classes is not None and labels.max() >= num_classes:
        raise InputError(f"{where} y_{name} holds label {labels.max()}, but y_train has only {num_classes} classes")
    return ArraySplit(images, labels.astype(np.int32))
