"""The tasks of GLUE: which columns hold the texts, what the labels are called, how answers are measured.

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
      columns: of the text, or of both texts of a pair.
      label: column of the label.
      labels: what the classes are called, in order; empty for regression, None where the training rows tell.
      metrics: names in `surm.tasks.metrics.METRICS`, the main one first.
      held_out: files that are held out, without their suffix; the results of all but the first carry its suffix.
      header: the columns of files that do not name them.
      fields: names of the texts in TensorFlow Datasets; empty for those of `columns`.
      has_broken_rows: whether the published files hold rows that are cut short or empty, to be left out and counted.
      hub_labels: what the hub calls the classes, in the same order, where that is something else.
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
        """Whether this is a table of one's own, no task of GLUE."""
        return not self.held_out

    @property
    def regression(self) -> bool:
        """Whether labels are numbers to be met, rather than classes."""
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
    """The task with the names of columns that a table has: the benchmark's own, or the hub's.

    Args:
      task: from `task`.
      columns: of the table.

    Returns:
      The layout of which the table has more columns; the benchmark's own if that decides nothing.
    """
    hub = dataclasses.replace(task, columns=task.fields or task.columns, label="label", header=())
    return max((task, hub) if not task.own else (task,), key=lambda one: len({*one.columns, one.label} & {*columns}))


def task(name: str, text_columns: str = "sentence", label_column: str = "label") -> Task:
    """Looks a task up.

    Args:
      name: a key of `TASKS`, or `classification` or `regression` for a table of one's own.
      text_columns: of one's own table, one name or two separated by a comma.
      label_column: of one's own table.

    Returns:
      The task.

    Raises:
      InputError: if there is no such task (the nearest are named), or more than two text columns.

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
