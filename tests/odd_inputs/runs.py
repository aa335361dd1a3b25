"""Runs that go on, choose, weigh and start elsewhere."""

import json
import pathlib
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

import surm
from surm import config as configs
from surm.data.splits import ArraySplit, Dataset
from surm.peft.variables import Trainable
from surm.rundir import checkpoint, going_on
from surm.rundir.workdir import Workdir
from surm.tasks import balance, choosing, held_out, metrics
from surm.training import kept, runs, start
from tests.odd_inputs.row import Line, Odd


def _config(**more: Any):
    found = configs.default()
    found.optim.steps, found.optim.schedule, found.optim.warmup_fraction = 10, "constant", 0.0
    found.update_from_flattened_dict(more)
    return found


def _checked(**more: Any):
    return lambda folder: configs.check(_config(**more))


def _data(counts=(3, 2, 1), validation: bool = False, **more: Any) -> Dataset:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    split = ArraySplit(np.zeros((len(labels), 2, 2, 3), np.uint8), labels)
    return Dataset(split, split if validation else None, split, len(counts), **more)


def _again(before: dict[str, Any], now: dict[str, Any]):
    """What is said of a folder of one config that shall go on with another."""

    def act(folder: pathlib.Path) -> list[str]:
        (folder / "config.json").write_text(json.dumps(_config(**before).to_dict()))
        return [str(change) for change in Workdir(folder, _config(**now)).changes]

    return act


def _of_an_older_version(folder: pathlib.Path) -> list[str]:
    written = _config().to_dict()
    del written["eval"], written["optim"]["class_weights"], written["data"]["sampling"]
    (folder / "config.json").write_text(json.dumps(written))
    return [str(change) for change in Workdir(folder, _config()).changes]


def _of_a_newer_version(folder: pathlib.Path) -> list[str]:
    (folder / "config.json").write_text(json.dumps(_config().to_dict() | {"sharpness": 0.1}))
    return Workdir(folder, _config()).changes


def _weights(text: str):
    return lambda folder: balance.class_weights(_config(**{"optim.class_weights": text}), _data())


def _asked(data: Dataset, **more: Any):
    def act(folder: pathlib.Path) -> tuple[str, ...]:
        found = held_out.measured_as_asked(_config(**more), data)
        held_out.reported(_config(**more), found)
        held_out.choosing(_config(**more), found)
        return found.metrics

    return act


def _start(make, place=str):
    def act(folder: pathlib.Path) -> None:
        make(folder)
        plan = configs.checked(_config(init_adapter=place(folder)))
        start.from_adapter(plan, None, None, lambda outputs: None)

    return act


def _kept(make):
    def act(folder: pathlib.Path) -> None:
        make(folder / "run")
        kept.at_step(folder / "run", None, "best", {"config": _config().to_dict()})

    return act


class OneNumber(nnx.Module):
    """The least that trains."""

    def __init__(self):
        self.a = Trainable(jnp.zeros(()))


def _best_of(steps, *measured):
    """Which of some kept steps is the best, by the lines of `metrics.jsonl`."""
    lines = [{"step": step, "split": split, "values": {"accuracy": value}} for step, split, value in measured]

    def act(folder: pathlib.Path) -> int:
        result = {"config": _config().to_dict(), "metric": "accuracy"}
        with checkpoint.Checkpoints(folder / "checkpoints", keep=9) as saved:
            for step in steps:
                saved.save(step, {"trainable": {"a": np.float32(step)}}, {})
        return int(kept.at_step(folder, OneNumber(), "best", result, lines).a[...])

    return act


def _predicted(examples: Any, kind: str = "image") -> Any:
    result = {"kind": kind, "num_texts": 1, "num_outputs": 2}
    task = types.SimpleNamespace(ready=lambda split: split, outputs=2)
    return runs.LoadedRun(_config(), None, [], result, task).predict(examples)


def _of_transformers(folder: pathlib.Path) -> None:
    (folder / "config.json").write_text('{"model_type": "vit"}')
    (folder / "model.safetensors").write_bytes(b"")


def _file(folder: pathlib.Path) -> str:
    (folder / "model.safetensors").write_bytes(b"")
    return str(folder / "model.safetensors")


ALWAYS = {"eval_every_steps": 2}
ROWS = [
    Odd(
        "other threads and writers",
        _again({}, {"data.threads": 4, "writers": "wandb"}),
        ["data.threads 2 → 4", "writers '' → 'wandb'"],
    ),
    Odd("moved weights", _again({}, {"model.weights": "~/vit"}), ["model.weights 'asset:vit_micro' → '~/vit'"]),
    Odd("a longer run", _again({}, {"optim.steps": 20}), ["optim.steps 10 → 20"]),
    Odd(
        "epochs for steps",
        _again({}, {"optim.steps": 0, "optim.epochs": 3}),
        ["optim.epochs 0 → 3", "optim.steps 10 → 0"],
    ),
    Odd(
        "a longer run that decays",
        _again({"optim.schedule": "linear"}, {"optim.schedule": "linear", "optim.steps": 9}),
        Line("and the linear schedule falls to 0 at the last step: the steps of a longer or shorter run differ"),
    ),
    Odd(
        "a longer run that warms up",
        _again({"optim.warmup_fraction": 0.1}, {"optim.warmup_fraction": 0.1, "optim.steps": 20}),
        Line("the warm-up is a fraction of the steps"),
    ),
    Odd(
        "a longer run and another seed",
        _again({}, {"optim.steps": 20, "seed": 1}),
        Line("they differ (there against here) in seed: 0 against 1; name another workdir or remove this one"),
    ),
    Odd("a run of a version without new keys", _of_an_older_version, []),
    Odd("a run of a version with keys of its own", _of_a_newer_version, Line("sharpness: 0.1 against None")),
    Odd("evaluated more often", _again({}, {"eval_every_steps": 5}), ["eval_every_steps 0 → 5"]),
    Odd(
        "evaluated more often where that chooses",
        _again(ALWAYS | {"eval.choose": "best"}, {"eval_every_steps": 5, "eval.choose": "best"}),
        Line("eval_every_steps: 2 against 5"),
    ),
    Odd("the best of one look", _checked(**{"eval.choose": "best"}), Line("but config.eval_every_steps=0 evaluates")),
    Odd(
        "chosen and reported on one split",
        _checked(**ALWAYS, **{"eval.choose": "best", "data.eval_split": "validation"}),
        Line("chooses by the validation split and reports the test split, but config.data.eval_split='validation'"),
    ),
    Odd(
        "patience without a choice",
        _checked(**{"eval.patience": 3}),
        Line("config.eval.patience=3 stops by the validation split, but config.eval.choose='last'; set"),
    ),
    Odd(
        "the best of a population",
        _checked(**ALWAYS, **{"eval.choose": "best", "population": "seed=0|1"}),
        Line("exclude each other, as members share their checkpoints; python -m surm.sweep"),
    ),
    Odd("a best that there is not", _checked(**{"eval.choose": "first"}), Line("expected last or best or least_loss")),
    Odd(
        "no validation split to choose by",
        _asked(_data((300, 200)), **ALWAYS, **{"eval.choose": "least_loss"}),
        Line("has none; set config.data.validation_examples=50, which holds that many of its 500 training examples"),
    ),
    Odd(
        "no validation split to report",
        _asked(_data((3, 2)), **{"data.eval_split": "validation"}),
        Line("config.data.eval_split='validation', but data.source='digits' has none; set config.data.valid"),
    ),
    Odd("f1 of three classes", _asked(_data(), **{"eval.metrics": "f1"}), Line("'macro_f1' is the mean over all")),
    Odd(
        "a correlation of classes", _asked(_data(), **{"eval.metrics": "pearson"}), Line("but the labels are classes;")
    ),
    Odd(
        "an auc of numbers",
        _asked(_data((1,), regression=True, metrics=("pearson",)), **{"eval.metrics": "auc"}),
        Line("but the labels are numbers; expected pearson, spearman"),
    ),
    Odd(
        "an auc of one class",
        _asked(_data((4, 0)), **{"eval.metrics": "auc"}),
        Line("all 4 examples of the test split are of class '0'; expected two classes or more"),
    ),
    Odd(
        "a metric that the task has already", _asked(_data(), **{"eval.metrics": "auc, accuracy"}), ("auc", "accuracy")
    ),
    Odd(
        "the loss as a metric", _checked(**{"eval.metrics": "loss"}), Line("by it, set config.eval.choose='least_loss'")
    ),
    Odd("an unknown metric", _checked(**{"eval.metrics": "f1_macro"}), Line("names 'f1_macro'; nearest: macro_f1")),
    Odd("weights of too few classes", _weights("1,2"), Line("lists 2 numbers, expected 3, one per class: 0, 1, 2")),
    Odd("a weight by the number of a class", _weights("2=4"), np.array([1, 1, 4], np.float32)),
    Odd("a weight of nothing", _weights("1,0,1"), Line("'0', expected a number above 0")),
    Odd(
        "weights for a Kalman filter",
        _checked(**{"peft.method": "loko", "optim.class_weights": "balanced"}),
        Line("loko has no loss to weight; expected 'none'; config.data.sampling='balanced' works with it"),
    ),
    Odd(
        "an infinite rate",
        _checked(**{"optim.learning_rate": float("inf")}),
        Line("config.optim.learning_rate=inf, expected at least 0, and a finite number"),
    ),
    Odd(
        "a sampling that there is not", _checked(**{"data.sampling": "weighted"}), Line("expected uniform or balanced")
    ),
    Odd(
        "an adapter of a run that has not finished",
        _start(lambda folder: (folder / "config.json").write_text("{}")),
        Line("is a run that has not finished: its adapter comes at the end"),
    ),
    Odd(
        "the weights of transformers for an adapter",
        _start(_of_transformers),
        Line("holds a model's weights and no adapter; config.model.weights takes those"),
    ),
    Odd(
        "a file of weights for an adapter",
        _start(lambda folder: None, _file),
        Line("holds a model's weights and no adapter; config.model.weights takes those"),
    ),
    Odd(
        "an adapter of nothing",
        _start(lambda folder: None),
        Line("holds no adapter_config.json; expected a finished run's folder, or an adapter's"),
    ),
    Odd(
        "an adapter of a population",
        _start(lambda folder: (folder / "members" / "seed=0").mkdir(parents=True)),
        Line("is a population; expected one of its members, such as"),
    ),
    Odd(
        "the best of no checkpoint", _kept(lambda run: run.mkdir()), Line("keeps no checkpoint, only its final adapter")
    ),
    Odd("the best of one that was measured after it was saved", _best_of([4], (4, "test", 0.5)), 4),
    Odd("the best of equals", _best_of([2, 4, 6], (2, "test", 0.5), (6, "test", 0.75), (4, "test", 0.75)), 4),
    Odd(
        "the best of what was measured on another split",
        _best_of([2, 4], (4, "validation", 0.5), (3, "test", 0.5)),
        Line("keeps checkpoints of the steps 2, 4, none of which was measured on the test split, so none is known to"),
    ),
    Odd(
        "one picture for several",
        lambda folder: _predicted(Image.new("RGB", (2, 2))),
        Line("given a Image, expected a list of images, such as [image], each a uint8 array or an image of Pillow's"),
    ),
    Odd(
        "a path for pictures", lambda folder: _predicted("cat.jpg"), Line("given 'cat.jpg', expected a list of images")
    ),
    Odd(
        "a file's bytes for pictures", lambda folder: _predicted(b"\xff\xd8"), Line("given a bytes, expected a list of")
    ),
    Odd(
        "a mapping for texts",
        lambda folder: _predicted({"text": ["a"]}, kind="text"),
        Line("given a dict, expected a list of strings, as the run was trained on"),
    ),
    Odd(
        "a step that is no number",
        lambda folder: surm.load_run(folder, step=2.0),
        Line("step=2.0, expected a number of steps, 'best' or None"),
    ),
    Odd("an area under the curve of one example a class", lambda folder: metrics.auc(np.eye(3), np.arange(3)), 1.0),
    Odd(
        "best checkpoints of looks and saves that never meet",
        lambda folder: choosing.remarks(
            _config(eval_every_steps=3, checkpoint_every_steps=5, keep_best_checkpoints=1), 15
        ),
        [
            "config.keep_best_checkpoints=1 keeps steps that are evaluated and saved; with config.eval_every_steps=3 "
            "and config.checkpoint_every_steps=5 only the last step is both"
        ],
    ),
    Odd(
        "a finished run that shall be shorter",
        lambda folder: going_on.check_length({}, 10, 5, "runs/a"),
        Line("workdir 'runs/a' holds a run that has taken 10 steps, expected 5 or fewer; increase config.optim.steps"),
    ),
]
