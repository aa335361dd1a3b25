"""The tasks of GLUE: the columns of their texts, the names of their labels, and their metrics.

Columns are those of the benchmark's own TSV files; `fields` are the names of the same texts in TensorFlow Datasets and
on the hub, where the label's column is always called `label`.

Source: Wang et al., "GLUE: a multi-task benchmark", arXiv 1804.07461, table 1 and section 3; metrics as there, and for
tasks with two the one that the paper of this method reports (arXiv 2406.17740) comes first.
"""

import dataclasses
from collections.abc import Sequence

from surm.errors import InputError, nearest


@dataclasses.dataclass(frozen=True)
class Task:
    """One way to read rows of a table as texts and labels.

    Attributes:
      columns: the column of the text, or of both texts of a pair.
      label: the column of the label.
      labels: the names of the classes, in order; empty for regression, None to take them from the training rows.
      metrics: names in `surm.tasks.metrics.METRICS`, the main metric first.
      held_out: the held-out files, without their suffix; results of all but the first carry the file's name.
      header: the columns of files that do not name them.
      fields: the names of the texts in TensorFlow Datasets; empty if they are those in `columns`.
      has_broken_rows: whether the published files hold truncated or empty rows, which are left out and counted.
      hub_labels: the hub's names of the classes, in the same order, if they differ.
    """

    columns: tuple[str, ...]
    label: str = "label"
    labels: tuple[str, ...] | None = ("0", "1")
    metrics: tuple[str, ...] = ("accuracy",)
    held_out: tuple[str, ...] = ("dev",)
    header: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    has_broken_rows: bool = False
    hub_labels: tuple[str, ...] = ()

    @property
    def own(self) -> bool:
        """Whether this is the user's own table rather than a task of GLUE."""
        return not self.held_out

    @property
    def regression(self) -> bool:
        """Whether the targets are real numbers (regression) rather than classes."""
        return self.labels == ()


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

TASKS: dict[str, Task] = {
    "cola": Task(
        ("sentence",), metrics=("matthews", "accuracy"), header=("source", "label", "star", "sentence"),
        hub_labels=("unacceptable", "acceptable"),
    ),
    "sst2": Task(("sentence",), hub_labels=("negative", "positive")),
    "mrpc": Task(
        ("#1 String", "#2 String"), "Quality", metrics=("f1", "accuracy"), fields=_PAIR,
        hub_labels=("not_equivalent", "equivalent"),
    ),
    "qqp": Task(
        ("question1", "question2"), "is_duplicate", metrics=("accuracy", "f1"), has_broken_rows=True,
        hub_labels=("not_duplicate", "duplicate"),
    ),
    "stsb": Task(_PAIR, "score", (), metrics=("spearman", "pearson")),
    "mnli": Task(
        _PAIR, "gold_label", ("entailment", "neutral", "contradiction"),
        held_out=("dev_matched", "dev_mismatched"), fields=("premise", "hypothesis"),
    ),
    "qnli": Task(("question", "sentence"), labels=_ENTAILMENT),
    "rte": Task(_PAIR, labels=_ENTAILMENT),
    "wnli": Task(_PAIR, hub_labels=("not_entailment", "entailment")),
}  # fmt: skip

OWN_METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "matthews"),
    "regression": ("pearson", "spearman"),
}


def layout(task: Task, columns: Sequence[str]) -> Task:
    """The task with a table's names of columns, which are the benchmark's own or the hub's.

    Args:
      task: the result of `task`.
      columns: the columns of the table.

    Returns:
      The layout that shares more columns with the table; the benchmark's own if both share as many.
    """
    hub = dataclasses.replace(task, columns=task.fields or task.columns, label="label", header=())
    return max((task, hub) if not task.own else (task,), key=lambda one: len({*one.columns, one.label} & {*columns}))


def task(name: str, text_columns: str = "sentence", label_column: str = "label") -> Task:
    """Looks a task up.

    Args:
      name: a key of `TASKS`, or `classification` or `regression` for the user's own table.
      text_columns: the text columns of the user's own table, one name or two separated by a comma.
      label_column: the label column of the user's own table.

    Returns:
      The task.

    Raises:
      InputError: if there is no such task (the message names the nearest), or there are more than two text columns.

    Examples:
      >>> task("stsb").regression, task("classification", "title,body").columns
      (True, ('title', 'body'))
    """
    if name in TASKS:
        return TASKS[name]
    if name not in OWN_METRICS:
        raise InputError(f"no task is called {name!r}; {nearest(name, [*TASKS, *OWN_METRICS])}")
    columns = tuple(column.strip() for column in text_columns.split(","))
    if len(columns) > 2 or not all(columns):
        raise InputError(f"data.text_columns={text_columns!r}, expected one name, or two separated by a comma")
    if len({*columns, label_column}) <= len(columns):
        raise InputError(
            f"data.text_columns={text_columns!r} and data.label_column={label_column!r} name a column twice"
        )
    return Task(columns, label_column, () if name == "regression" else None, OWN_METRICS[name], held_out=())
