"""The held-out splits of a run, for reporting and for choosing the best step, and the metrics on them."""

import dataclasses

import ml_collections
import numpy as np

from surm.data.splits import Dataset, Split
from surm.errors import InputError
from surm.machine.notes import say
from surm.tasks import metrics


def measured_as_asked(config: ml_collections.ConfigDict, data: Dataset) -> Dataset:
    """Puts the metrics that `config.eval.metrics` names before the data set's own, so that its first is the main one.

    Args:
      config: a run's configuration.
      data: the data set, with its own metrics.

    Returns:
      A data set with both; `data` itself if the config names no metric.

    Raises:
      InputError: if a metric cannot be computed for the labels, which are classes or numbers.
    """
    asked = metrics.listed(config.eval.metrics)
    for name in asked:
        if data.regression != (name in metrics.OF_NUMBERS):
            kind = "numbers" if data.regression else "classes"
            raise InputError(
                f"config.eval.metrics={config.eval.metrics!r} names {name!r}, but the labels are {kind}; expected "
                f"{', '.join(_possible(data))}"
            )
        if name == "f1" and data.num_classes != 2:
            raise InputError(
                f"config.eval.metrics={config.eval.metrics!r} names 'f1', which is defined for class 1 of two, but "
                f"there are {data.num_classes} classes; 'macro_f1' is the mean over all"
            )
    return dataclasses.replace(data, metrics=tuple(dict.fromkeys([*asked, *data.metrics]))) if asked else data


def reported(config: ml_collections.ConfigDict, data: Dataset) -> dict[str, Split]:
    """The splits that are reported, each under the suffix of its metrics' names; the main one has the suffix "".

    Raises:
      InputError: if the split does not exist, or AUC is asked for on a split with a single class.
    """
    if config.data.eval_split == "validation" and data.validation is None:
        raise InputError(f"config.data.eval_split='validation', but {_no_validation(config, data)}")
    held_out = {"": data.split(config.data.eval_split)}
    if config.data.eval_split == "test":
        held_out |= {f"_{name}": split for name, split in data.also.items()}
    if "auc" in data.metrics:
        for ending, split in held_out.items():
            _check_auc(config.data.eval_split + ending, split, data)
    return held_out


def choosing(config: ml_collections.ConfigDict, data: Dataset) -> Split | None:
    """The validation split if the best step is chosen by it, else None.

    Raises:
      InputError: if the choice needs a validation split and there is none; the message says how to hold one out.
    """
    if config.eval.choose == "last":
        return None
    if data.validation is None:
        raise InputError(
            f"config.eval.choose={config.eval.choose!r} chooses by a validation split, but "
            f"{_no_validation(config, data)}"
        )
    if "auc" in data.metrics:
        _check_auc("validation", data.validation, data)
    return data.validation


def _no_validation(config: ml_collections.ConfigDict, data: Dataset) -> str:
    """The end of a message: there is no validation split, and how to get one."""
    count, tenth = len(data.train), max(len(data.train) // 10, 1)
    of_its_own = "text_columns" in data.keys or data.kind != "text"  # else a task of GLUE, whose test has no labels
    more = "add a test split, or " if of_its_own and data.test_is == "validation" else ""
    taken = ": its validation split is reported as the test split, as it has no other" * (data.test_is == "validation")
    return (
        f"data.source={config.data.source!r} has none{taken}; {more}set config.data.validation_examples={tenth}, which "
        f"holds that many of its {count} training examples out"
    )


def _possible(data: Dataset) -> list[str]:
    """The metrics that can be computed for the labels of a data set."""
    of_classes = [name for name in (*metrics.METRICS, *metrics.SCORED) if name not in metrics.OF_NUMBERS]
    if data.num_classes != 2:
        of_classes.remove("f1")
    return list(metrics.OF_NUMBERS) if data.regression else of_classes


def _check_auc(name: str, split: Split, data: Dataset) -> None:
    """Reports classes without examples, which AUC leaves out; raises InputError if all examples are of one class."""
    there = np.unique(split.labels)
    names = data.names
    if len(there) < 2:
        raise InputError(
            f"config.eval.metrics names 'auc', but all {len(split)} examples of the {name} split are of class "
            f"{names[int(there[0])]!r}; expected two classes or more there"
        )
    if absent := [one for label, one in enumerate(names) if label not in there]:
        shown = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
        say(f"auc of the {name} split is the mean over the classes that occur in it; these do not: {shown}")
