"""How the experiments train: each task's fixed settings, and a run of the real command's config in this process."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from experiments.shared import methods
from experiments.shared.results import ROOT
from surm import train
from surm.cli import command_line
from surm.training import preparation

DIGITS, CIFAR10, GLUE = "vit_digits.py", "vit_cifar.py", "bert_glue.py:weights=minilm"
"""Files under configs/, with their arguments."""


class Task(NamedTuple):
    """A task of GLUE: its folder, the metrics shown, the one that rates are chosen by, and how MiniLM trains on it."""

    folder: str
    shown: tuple[str, ...]
    chosen_by: str
    lengths: str
    run: dict[str, Any]


TASKS = {  # MRPC's rate is not chosen by F1, which a constant answer does well at
    "mrpc": Task("MRPC", ("f1", "accuracy"), "accuracy", "48,64,80,104", {"optim.epochs": 3}),
    "cola": Task("CoLA", ("matthews",), "matthews", "12,16,24,48", {"optim.epochs": 3}),
    "sst2": Task(
        "SST-2", ("accuracy",), "accuracy", "12,16,24,32,48,72", {"optim.epochs": 2, "data.train_examples": 4000}
    ),
}
_FIXED = {"optim.batch_size": 32, "optim.head_learning_rate": 5e-3, "peft.dropout": 0.0}


def on_digits(method: str, source: str | pathlib.Path | None = None) -> dict[str, Any]:
    """What a method changes in the demo's config, without a learning rate; another source of the data if given."""
    return ({"data.source": source} if source else {}) | methods.changes(method, "vit_micro")


def on_cifar10(method: str, source: str | pathlib.Path | None) -> dict[str, Any]:
    """What a method on CIFAR-10 with the shipped backbone changes in the config, without a learning rate."""
    return {"model.weights": "asset:vit_micro", **on_digits(method, source)}


def on_glue(task: str, method: str, folder: pathlib.Path) -> dict[str, Any]:
    """What a method on a task of GLUE with MiniLM changes in the config, without a learning rate."""
    recipe = TASKS[task]
    given = {"data.source": folder / recipe.folder, "data.lengths": recipe.lengths, **recipe.run}
    return {**given, **_FIXED, **methods.changes(method, "minilm")}


def flags(file: str, changes: Mapping[str, Any]) -> list[str]:
    """The flags of `python -m surm.train` for a file under configs/ with some keys changed."""
    return [f"--config=configs/{file}", *(f"--config.{key}={value}" for key, value in changes.items())]


def command(given: Iterable[str]) -> str:
    """The command that a result names, for flags that name no folder of this machine."""
    return " ".join(["python -m surm.train --workdir=DIR", *given])


def config(given: Sequence[str]) -> ml_collections.ConfigDict:
    """The config that flags come to, its files found from the clone's root."""
    with at_root():
        return command_line.parse(["run", *given, "--workdir=none"]).config


def at_root() -> contextlib.AbstractContextManager[None]:
    """The clone's root as the working folder, where configs name files below it."""
    return contextlib.chdir(ROOT)


def prepared(config: ml_collections.ConfigDict) -> preparation.Run:
    """The data and the adapted model of a config, before anything has trained."""
    with at_root():
        return preparation.prepare(config)


def trained(given: Sequence[str], workdir: pathlib.Path | None = None) -> dict[str, Any]:
    """Trains what flags say.

    Args:
      given: as `flags` gives them.
      workdir: the run's folder, where a finished run is read and not trained again; by default one that goes.

    Returns:
      What result.json holds.

    Raises:
      InputError: if the config, its data or the folder cannot be used.
      NonFiniteError: if the loss is no longer a number.
    """
    with contextlib.ExitStack() as until_the_end:
        folder = str(workdir or until_the_end.enter_context(tempfile.TemporaryDirectory()))
        until_the_end.enter_context(at_root())
        return train.run(config(given), folder)
