"""Images in an .npz, held in memory."""

import zipfile
import zlib

import numpy as np
from etils import epath

from surm.data import classes
from surm.data.options import Options
from surm.data.splits import ArraySplit, Dataset
from surm.errors import InputError, one_line

REQUIRED_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL_ARRAYS = ("x_val", "y_val")
_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def npz_images(path: epath.Path, options: Options, expected: str) -> Dataset:
    """Reads an .npz into memory.

    Args:
      path: the file; `surm.data.sources.load` describes the arrays it must hold.
      options: the options of the source; if training examples are held out, a test split is not needed.
      expected: a description of valid sources, for messages.

    Returns:
      The splits; the classes are the distinct training labels.

    Raises:
      InputError: if the file is missing or damaged, or an array is missing or has another form.
    """
    if not path.is_file():
        raise InputError(f"no data file {str(path)!r}; data.source expects {expected}")
    names, arrays = _read(path)
    required = REQUIRED_ARRAYS[: 2 if options.test_examples and not names & {"x_test", "y_test"} else 4]
    required += OPTIONAL_ARRAYS if names & set(OPTIONAL_ARRAYS) else ()
    if missing := [name for name in required if name not in names]:
        raise InputError(
            f"{str(path)!r} has no array {', '.join(missing)}; it has {', '.join(sorted(names)) or 'none'}"
        )
    where = {name: f"{str(path)!r}: y_{name}" for name in _SPLITS if f"x_{name}" in arrays}
    images = {name: _images(path, arrays, name) for name in where}
    columns = {name: classes.of_array(arrays[f"y_{name}"], len(images[name]), text) for name, text in where.items()}
    known = classes.of_training(columns["train"], where["train"])
    splits = {}
    for name, column in columns.items():
        told = lambda example, name=name, column=column: (  # noqa: E731
            f"{where[name]} holds label {column.names[column.index[example]]}"
        )
        splits[_SPLITS[name]] = ArraySplit(images[name], classes.numbered(column, known, told))
    parts = options.parts(splits, repr(str(path)))
    return Dataset(**parts, num_classes=len(known), class_names=known)


def _read(path: epath.Path) -> tuple[set[str], dict[str, np.ndarray]]:
    """Reads the names of all arrays, and the arrays that a data set may have."""
    contract = REQUIRED_ARRAYS + OPTIONAL_ARRAYS
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise InputError(f"{str(path)!r} is not an .npz, or is cut short; expected a file of numpy.savez")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return set(archive.files), {name: archive[name] for name in archive.files if name in contract}
    except InputError:
        raise
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        hint = "; names.astype(str) makes strings of objects" if "Object arrays" in str(error) else ""
        raise InputError(f"{str(path)!r} cannot be read as an .npz of plain arrays: {one_line(error)}{hint}") from error


def _images(path: epath.Path, arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    images, where = arrays[f"x_{name}"], f"{str(path)!r}:"
    if images.dtype != np.uint8:
        raise InputError(f"{where} x_{name} is {images.dtype}, expected uint8 images (0..255)")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape[1:]:  # the model checks the number of channels
        raise InputError(f"{where} x_{name} has shape {images.shape}, expected N×H×W or N×H×W×C")
    if len(images) == 0:
        raise InputError(f"{where} x_{name} holds no image")
    return images
