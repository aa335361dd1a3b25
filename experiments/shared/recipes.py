"""How the experiments train: each task's settings, and a run of the real command's config in this process."""

import contextlib
import gc
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from experiments.shared import methods
from experiments.shared.results import ROOT
from surm import train
from surm.cli import command_line
from surm.machine import memory
from surm.training import preparation


class Glue(NamedTuple):
    """A task of GLUE: its folder, the metrics shown, the one that rates are chosen by, and the settings of MiniLM."""

    folder: str
    shown: tuple[str, ...]
    chosen_by: str
    settings: dict[str, Any]


GLUE = {  # MRPC's rate is not chosen by F1, because a constant answer does well at that
    "mrpc": Glue("MRPC", ("f1", "accuracy"), "accuracy", {"data.lengths": "48,64,80,104", "optim.epochs": 3}),
    "cola": Glue("CoLA", ("matthews",), "matthews", {"data.lengths": "12,16,24,48", "optim.epochs": 3}),
    "sst2": Glue(
        "SST-2", ("accuracy",), "accuracy",
        {"data.lengths": "12,16,24,32,48,72", "optim.epochs": 2, "data.train_examples": 4000},
    ),
}  # fmt: skip
FILES = {"digits": "vit_digits.py", "cifar10": "vit_cifar.py"} | dict.fromkeys(GLUE, "bert_glue.py:weights=minilm")
"""The file under configs/ that each task starts from, with its arguments."""
_FIXED = {"optim.batch_size": 32, "optim.head_learning_rate": 5e-3, "peft.dropout": 0.0}


def changes(task: str, method: str, source: pathlib.Path | None = None) -> dict[str, Any]:
    """The keys of a task's config that an experiment with a method sets, all but the learning rate.

    `source` holds the data: the folder of all tasks of GLUE, or what replaces the source of images in the config.
    """
    if task in GLUE:
        recipe = GLUE[task]
        settings = {"data.source": source / recipe.folder, **recipe.settings, **_FIXED}
        return settings | methods.changes(method, "minilm")
    weights = {"model.weights": "asset:vit_micro"} if task == "cifar10" else {}
    return weights | ({"data.source": source} if source else {}) | methods.changes(method, "vit_micro")


def flags(task: str, changes: Mapping[str, Any]) -> list[str]:
    """The flags of `python -m surm.train` for a task's config with some keys changed."""
    return [f"--config=configs/{FILES[task]}", *assignments(changes)]


def assignments(changes: Mapping[str, Any]) -> list[str]:
    """The flags that change some keys of a config."""
    return [f"--config.{key}={value}" for key, value in changes.items()]


def command(given: Iterable[str]) -> str:
    """The command that a result names, for flags that name no folder of this machine."""
    return " ".join(["python -m surm.train --workdir=DIR", *given])


def committed(result: dict[str, Any], task: str, method: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A run's result as it is committed: with the method's name and the command, without folders of this machine."""
    shown = dict(changes)
    if "data.source" in changes:
        shown["data.source"] = result["config"]["data"]["source"] = pathlib.Path(changes["data.source"]).name
    told = {"name": method, "peak_bytes": None}  # the process has run others before
    return {**result, **told, "command": command(flags(task, shown))}


def config(given: Sequence[str]) -> ml_collections.ConfigDict:
    """The config that flags lead to, its files found from the clone's root."""
    with at_root():
        return command_line.parse(["run", *given, "--workdir=none"]).config


def at_root() -> contextlib.AbstractContextManager[None]:
    """The clone's root as the working folder, because configs name files below it."""
    return contextlib.chdir(ROOT)


def prepared(config: ml_collections.ConfigDict) -> preparation.Run:
    """The data and the adapted model of a config, before anything has trained."""
    with at_root():
        return preparation.prepare(config)


def trained(given: Sequence[str], workdir: pathlib.Path | None = None) -> dict[str, Any]:
    """Trains what flags say, and returns the content of result.json.

    A finished run in `workdir` is read and not trained again; without one the run's folder is temporary. The errors are
    InputError if the config, its data or the folder cannot be used, and NonFiniteError if the loss is no longer finite.
    """
    with contextlib.ExitStack() as until_the_end:
        folder = str(workdir or until_the_end.enter_context(tempfile.TemporaryDirectory()))
        until_the_end.enter_context(at_root())
        result = train.run(config(given), folder)
    gc.collect()  # models refer to themselves
    memory.return_freed_memory()
    return result
