"""What a run is measured on and by: the held-out splits that are reported, the one that chooses, and the metrics."""

import dataclasses

import ml_collections
import numpy as np

from surm.data.splits import Dataset, Split
from surm.errors import InputError
from surm.machine.notes import say
from surm.tasks import metrics


def measured_as_asked(config: ml_collections.ConfigDict, data: Dataset) -> Dataset:
    """The data with the metrics that `config.eval.metrics` names before those of its own, the main one first.

    Args:
      config: a run's configuration.
      data: with the metrics that are its own.

    Returns:
      The data; itself where the config names none.

    Raises:
      InputError: for a metric that such labels do not have.
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
                f"config.eval.metrics={config.eval.metrics!r} names 'f1', which is that of class 1 of two, but there "
                f"are {data.num_classes} classes; 'macro_f1' is the mean over all"
            )
    return dataclasses.replace(data, metrics=tuple(dict.fromkeys([*asked, *data.metrics]))) if asked else data


def reported(config: ml_collections.ConfigDict, data: Dataset) -> dict[str, Split]:
    """The splits that are reported, by the ending of their metrics' names."""
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
    """The validation split where the best step is chosen by it, else None.

    Raises:
      InputError: if there is none; the message offers to hold one out.
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
    """That there is no validation split, and how to have one."""
    count, tenth = len(data.train), max(len(data.train) // 10, 1)
    of_its_own = "text_columns" in data.keys or data.kind == "image"  # else a task of GLUE, whose test has no labels
    more = "add a test split, or " if of_its_own and data.test_is == "validation" else ""
    taken = ": its validation split is reported as the test split, as it has no other" * (data.test_is == "validation")
    return (
        f"data.source={config.data.source!r} has none{taken}; {more}set config.data.validation_examples={tenth}, which "
        f"holds that many of its {count} training examples out"
    )


def _possible(data: Dataset) -> list[str]:
    """The metrics that such labels have."""
    of_classes = [name for name in (*metrics.METRICS, *metrics.SCORED) if name not in metrics.OF_NUMBERS]
    if data.num_classes != 2:
        of_classes.remove("f1")
    return list(metrics.OF_NUMBERS) if data.regression else of_classes


def _check_auc(name: str, split: Split, data: Dataset) -> None:
    """Says which classes an AUC leaves out; InputError where it leaves out all."""
    there = np.unique(split.labels)
    names = data.names
    if len(there) < 2:
        raise InputError(
            f"config.eval.metrics names 'auc', but all {len(split)} examples of the {name} split are of class "
            f"{names[int(there[0])]!r}; expected two classes or more there"
        )
    if absent := [one for label, one in enumerate(names) if label not in there]:
        shown = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
        say(f"auc of the {name} split is the mean over the classes there; absent: {shown}")
