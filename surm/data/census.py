"""The lines about a data set's labels at the start of a run: the classes with their counts, and oddities."""

from collections.abc import Mapping

import numpy as np

from surm.data import classes, language
from surm.data.splits import Dataset
from surm.errors import InputError

_MISSING = ("nan", "null", "none", "na", "n/a", "<na>")  # spellings of a missing value in tables


def heading(data: Dataset) -> list[str]:
    """Describes the labels that a run trains on.

    Args:
      data: the data of the run, after subsets were chosen.

    Returns:
      The classes with their counts (or the range of numbers), then one line for each oddity. The last one says if the
      source's validation split is reported.
    """
    if data.kind == language.TASK:
        return _held_out(data)
    if data.regression:
        return [_numbers(data.train.labels), *_held_out(data)]
    trained = classes.counted(data.train.labels, data.class_names)
    return [_classes(trained), *_odd_names(trained), *_single(trained), *_absent(data, trained), *_held_out(data)]


def check(data: Dataset) -> None:
    """Raises InputError if all training examples have the same class, because nothing can be learned from them."""
    if data.kind == language.TASK:
        return
    if not data.regression and len(present := np.unique(data.train.labels)) == 1:
        raise InputError(
            f"all {len(data.train):,} training examples are of the class {data.class_names[present[0]]!r}, expected "
            "two or more classes; is config.data.train_examples too low?"
        )


def _held_out(data: Dataset) -> list[str]:
    """A line on the reported split, if it is not the source's test split."""
    if data.test_is != "validation":
        return []
    count = f"{len(data.test):,} example{'s' * (len(data.test) != 1)}"
    return [f"the source has no test split: its validation split ({count}) is reported instead"]


def _numbers(labels: np.ndarray) -> str:
    return f"labels are numbers from {labels.min():g} to {labels.max():g}, their mean is {labels.mean():g}"


def _classes(trained: Mapping[str, int]) -> str:
    """A line such as: 2 classes, with their training examples: cat 20, dog 4."""
    shown = list(trained.items())[: classes.MANY]
    more = [f"... ({min(trained.values()):,} to {max(trained.values()):,} each)"] if len(trained) > classes.MANY else []
    told = ", ".join([*(f"{name} {count:,}" for name, count in shown), *more])
    return f"{len(trained):,} classes, with their training examples: {told}"


def _odd_names(trained: Mapping[str, int]) -> list[str]:
    lines = []
    if similar := [name for group in classes.alike(trained) for name in group]:
        lines.append(f"classes differ only in case or spaces: {classes.listed(trained, similar)}; is each intended?")
    if missing := [name for name in trained if name.strip().lower() in _MISSING]:
        lines.append(f"classes have the names of missing values: {classes.listed(trained, missing)}; is this intended?")
    return lines


def _single(trained: Mapping[str, int]) -> list[str]:
    single = [name for name, count in trained.items() if count == 1]
    return [f"classes of one training example: {classes.listed(trained, single)}"] if single else []


def _absent(data: Dataset, trained: Mapping[str, int]) -> list[str]:
    """Lines on classes without examples in a split; the model cannot learn classes that training lacks."""
    held_out = {name: split for name, split in data.splits().items() if name != "train"}
    counts = {name: classes.counted(split.labels, data.class_names) for name, split in held_out.items()}
    lines = []
    if absent := [name for name, count in trained.items() if not count]:
        asked = {name: sum(count[name] for count in counts.values()) for name in absent}
        lines.append(
            "classes without a training example cannot be learned; they are, with the number of their held-out "
            f"examples: {classes.listed(asked, absent)}"
        )
    for split, count in counts.items():
        if absent := [name for name in trained if trained[name] and not count[name]]:
            many = f"{len(absent)} classes" if len(absent) > 1 else "one class"
            lines.append(
                f"the {split} split has no example of {many} that training has (with the number of its examples): "
                f"{classes.listed(dict(trained), absent)}"
            )
    return lines
