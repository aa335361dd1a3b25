"""Opens data by name: digits, orders, an .npz, TensorFlow Datasets, a folder of images or of tables, or one table.

Every source becomes a `Dataset`: random-access splits of `{"image": uint8 H×W×C, "label": int}` examples, of
`{"texts": (str, ...), "label": ...}`, or of the forms in `surm.data.language`. Nothing here needs TensorFlow.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from surm import files
from surm.data import (
    arrow_images,
    folders,
    glue,
    image_folder,
    language,
    orders,
    saved_datasets,
    split_names,
    tables,
    texts,
)
from surm.data.arrays import npz_images
from surm.data.options import Options
from surm.data.splits import ArraySplit, Dataset, Split, Subset
from surm.data.table import Table
from surm.data.tfds import tfds_images, tfds_texts
from surm.errors import InputError, nearest

_KNOWN = ["digits", orders.NAME, *(f"tfds:glue/{task}" for task in glue.TASKS)]
SOURCES = (
    "'digits', 'orders', 'tfds:NAME', the path of an .npz, of a folder with train/CLASS/*.jpg, of a folder with train "
    "and test (or val) as .csv, .tsv, .jsonl or .parquet, or of a folder that datasets saved"
)

_NONE = Options()


def load(
    source: str,
    *,
    data_dir: str | None = None,
    task: str = "auto",
    text_columns: str = "sentence",
    label_column: str = "label",
    image_column: str = "auto",
    test_examples: int = 0,
    seed: int = 0,
) -> Dataset:
    """Opens a data set by name.

    Args:
      source: `digits`; `orders` (`surm.data.orders`); `tfds:NAME` (also NAME/CONFIG, NAME:VERSION), images or
        `tfds:glue/TASK`; the path of an .npz with arrays x_train, y_train, x_test, y_test and optionally x_val, y_val,
        images uint8 N×H×W[×C], labels as in `surm.data.classes.of_array`; a folder of class folders
        (`surm.data.image_folder`); a folder of tables, or one table (`surm.data.tables`), of labelled texts
        (`surm.data.texts`), texts for language models (`surm.data.language`) or images (`surm.data.arrow_images`); or
        a folder that `datasets` saved (`surm.data.saved_datasets`).
      data_dir: the folder of TensorFlow Datasets' prepared data; None for its own default.
      task: the task of a table of texts (see `surm.data.glue`); `auto` reads it from the folder's name.
      text_columns: the text columns of the user's own table, one name or two separated by a comma.
      label_column: the label column of the user's own table.
      image_column: the image column of a table; `auto` takes its only one.
      test_examples: the number of training examples to hold out if the source has no test split; 0 = none.
      seed: the seed that chooses these examples.

    Returns:
      The splits.

    Raises:
      InputError: if the source is unknown, missing or malformed; the message names the array, key, row or remedy.
    """
    options = Options(task, text_columns, label_column, image_column, test_examples, seed)
    if source == "digits":
        return digits(options)
    if source == orders.NAME:
        return orders.load(options)
    if source.startswith("tfds:"):
        return _tfds(source.removeprefix("tfds:"), data_dir, options)
    place = files.path(source)
    if place.suffix.lower() == ".npz":
        return npz_images(place, options, SOURCES)
    if source and place.is_dir():
        return _folder(place, options)
    if source and place.exists():
        return _file(place, options)
    of_hub = "; of the hub: datasets.load_dataset(NAME).save_to_disk(DIR) in Python" if source.startswith("hf:") else ""
    raise InputError(
        f"data.source={source!r} is not known, and there is no such folder{of_hub}; expected {SOURCES}; "
        f"{nearest(source, _KNOWN)}"
    )


def _tfds(name: str, data_dir: str | None, options: Options) -> Dataset:
    if not name.startswith("glue"):
        return tfds_images(name, data_dir, options)
    named = name.removeprefix("glue").strip("/").partition(":")[0]
    if named in glue.TASKS and options.task not in ("auto", named):
        raise InputError(f"data.task={options.task!r}, but data.source='tfds:{name}' is {named!r}; expected 'auto'")
    return tfds_texts(name, data_dir, options)


def _folder(folder: epath.Path, options: Options) -> Dataset:
    """Opens a folder according to its contents."""
    if saved_datasets.is_saved(folder):
        return _of_tables(*saved_datasets.find(folder), folder, options)
    found, images = tables.find(folder), image_folder.holds_classes(folder)
    if found and images:
        raise InputError(
            f"{str(folder)!r} holds both tables ({split_names.told(found)}) and folders of images; expected one of "
            "them: move the other elsewhere"
        )
    if images:
        return image_folder.open_folder(folder, options)
    if found:
        return _of_tables({}, found, folder, options)
    told = folders.without_examples(folder) or f"{str(folder)!r} holds {folders.described(folder)}"
    raise InputError(f"{told}; expected {SOURCES}")


def _of_tables(
    opened: Mapping[str, Table], found: Mapping[str, Sequence[epath.Path]], place: epath.Path, options: Options
) -> Dataset:
    """Opens tables as images or as texts for language models if their columns say so; otherwise as labelled texts.

    Args:
      opened: tables that a special reader has opened already; the others are opened here.
      found: the files by split.
      place: the place of the source.
      options: the options of the source.

    Returns:
      The splits.
    """
    where, named = repr(str(place)), texts.plain_name(place)
    if "train" not in found:
        raise InputError(f"{where} has no train.tsv (nor .csv, .jsonl or .parquet); it has {', '.join(found)}")
    train = opened.get("train") or tables.open_table(found["train"])
    by_columns = options.task == "auto" and named not in glue.TASKS
    images = by_columns and bool(train.image_columns)
    if images or options.task == language.TASK or (by_columns and language.meant_by(train.columns)):
        opened = {**opened, "train": train}
        every = {
            name: opened.get(name) or tables.open_table(found[name]) for name in found if name in split_names.NAMES
        }
        if images:
            return arrow_images.open_tables(every, found, options, where)
        return language.open_tables(every, options, where)
    name = texts.task_of(place, train) if options.task == "auto" else options.task
    _check_task(name, named, str(place))
    task = glue.task(name, options.text_columns, options.label_column)
    wanted = texts.wanted(found, task, options, where)
    named_by = (*task.columns, task.label) if task.header else ()
    opened = opened if task.header else {"train": train, **opened}
    every = {name: opened.get(name) or tables.open_table(found[name], task.header, named_by) for name in wanted}
    return texts.table_texts(every, task, options, where)


def _file(file: epath.Path, options: Options) -> Dataset:
    """Opens one table, of which `options.test_examples` are held out."""
    if not tables.is_table(file):
        raise InputError(
            f"data.source={str(file)!r} is a file of another kind{folders.remedy(file)}; expected {SOURCES}"
        )
    return _of_tables({}, {"train": [file]}, file, options)


def _check_task(task: str, named: str, source: str) -> None:
    """Refuses a task that contradicts the GLUE task in the source's name."""
    if named in glue.TASKS and task in glue.TASKS and task != named:
        raise InputError(f"data.task={task!r}, but data.source={source!r} holds {named!r} by its name")


def digits(options: Options = _NONE) -> Dataset:
    """Scikit-learn's handwritten digits: 1,797 real 8×8 images of ten classes, embedded in the package.

    The split is fixed and stratified: 1,077 images to train, 360 to validate, 360 to test.

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
    of_run = options.parts(dict(zip(("train", "validation", "test"), parts, strict=True)), "'digits'")
    return Dataset(**of_run, num_classes=10, class_names=tuple(map(str, range(10))))


def balanced_subset(split: Split, examples: int, num_classes: int, *, seed: int, names: Sequence[str] = ()) -> Split:
    """Chooses examples so that the classes have equal numbers of them, up to one.

    Args:
      split: the split to choose from.
      examples: the number of examples; 0 means all.
      num_classes: labels are 0 .. num_classes − 1; 1 if there are no classes to balance.
      seed: the seed that chooses the examples; a larger subset of the same seed contains the smaller one.
      names: the names of the classes, for messages; without names their numbers are used.

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
            called = names[label] if names else label
            whose = f"class {called}, which has {len(members)}" if num_classes > 1 else f"{len(members)} examples"
            raise InputError(f"data.train_examples={examples} wants {want} of {whose}")
        chosen.append(members[:want])
    return Subset(split, np.sort(np.concatenate(chosen)))


def hold_out(data: Dataset, examples: int, *, seed: int) -> Dataset:
    """Takes a validation split out of the training split, at random.

    Args:
      data: the splits.
      examples: the number of examples; 0 changes nothing.
      seed: the seed that chooses them.

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
