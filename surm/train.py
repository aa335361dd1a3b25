"""Trains what a config names: `python -m surm.train --config=configs/vit_digits.py --workdir=runs/digits`.

The loop's order is fixed: stop? -> eval? -> save? -> next batch -> step -> log, one step late -> stop on a non-finite
loss. A run starts from its own workdir if that holds a checkpoint, else from `config.init_adapter` if that is set, else
fresh; stopped and started again it ends exactly as if it had never stopped.
"""

import functools
import io
import os
import platform
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from flax import nnx

import surm
from surm import checkpoint, command_line, memory, metrics, optim, report, stopping
from surm import config as configs
from surm.errors import InputError
from surm.evaluate import evaluator
from surm.peft import layers, select, store, surgery
from surm.preparation import Run, prepare
from surm.progress import NonFiniteError, Progress, check_finite
from surm.stopping import Stopped
from surm.workdir import Workdir

TrainState = dict[str, Any]
"""`trainable` (arrays by path), `opt_state`, `step` and `key`: all that a checkpoint holds beside the data position."""


def run(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains, evaluates and writes a run's folder.

    Args:
      config: as `surm.config.default()`, with other values.
      workdir: the run's folder; a finished run is not repeated, an unfinished one is continued.

    Returns:
      What `result.json` holds.

    Raises:
      InputError: if config, data, weights or workdir cannot be used.
      NonFiniteError: if the loss stops being a number; the message names the step.
      Stopped: if SIGINT or SIGTERM asked the run to stop; a checkpoint has been written.
      OSError: if the workdir cannot be written any more.
    """
    configs.check(config)
    folder = Workdir(workdir, config)
    if (finished := folder.result()) is not None:
        print(f"{workdir} holds the finished run of this config; remove it to train again")
        return finished
    prepared = prepare(config, resumed=folder.has_checkpoint)
    with folder.claimed(), stopping.requests() as stop:
        if (finished := folder.result()) is not None:  # by a run that was at work while this one prepared
            return finished
        print(surgery.table(prepared.model), flush=True)
        print(optim.summary(config.optim, configs.spec(config)), flush=True)
        trainable, measured = _train(prepared, folder, stop)
        return _finish(prepared, folder, trainable, measured)


def _finish(prepared: Run, folder: Workdir, trainable: dict[str, jax.Array], measured: dict) -> dict[str, Any]:
    """Writes the adapter, the curves and, last, the result."""
    config = prepared.config
    graphdef, _, frozen = surgery.split(prepared.model)
    trained = surgery.join(graphdef, trainable, frozen)
    store.save_adapter(folder.adapter, trained, base_name=config.model.weights)
    report.draw_curves(folder.metrics(), folder.path / "curves.png", folder.path.name, metric=prepared.data.metrics[0])
    result = _result(prepared, measured)
    folder.write_json("result.json", result)
    return result


def initial_state(prepared: Run) -> tuple[TrainState, optax.GradientTransformation]:
    """The state before the first step, and the optimiser that its `opt_state` belongs to."""
    trainable = {path: jnp.array(value) for path, value in surgery.split(prepared.model)[1].items()}
    kinds = dict(nnx.to_flat_state(nnx.state(prepared.model, layers.AdapterParam)))
    adapter = {select.dotted(path) for path in kinds}
    groups = {path: "adapter" if path in adapter else "head" for path in trainable}
    config = prepared.config
    tx = optim.optimizer(config.optim, configs.spec(config), groups, prepared.total_steps)
    key = jax.random.key_data(jax.random.key(config.seed))
    return {"trainable": trainable, "opt_state": tx.init(trainable), "step": jnp.int32(0), "key": key}, tx


def train_step(
    graphdef: nnx.GraphDef, tx: optax.GradientTransformation, prepared: Run
) -> Callable[[TrainState, nnx.State, dict[str, np.ndarray]], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles one step: gradients and optimiser state of the trained arrays alone.

    Args:
      graphdef: of the model in training mode, from `surgery.split`.
      tx: from `initial_state`.
      prepared: the run.

    Returns:
      A function (state, frozen, batch) -> (state, metrics); the given state's buffers are reused.
    """
    smoothing = prepared.config.optim.label_smoothing

    def loss(trainable, frozen, batch, key):
        model = surgery.join(graphdef, trainable, frozen)
        layers.reseed_dropout(model, key)
        outputs = model(**prepared.inputs(batch))
        labels, mask = batch["label"], batch["mask"]
        losses = metrics.losses(outputs, labels, regression=prepared.data.regression, label_smoothing=smoothing)
        values = {"loss": jnp.mean(losses, where=mask)}
        if not prepared.data.regression:
            values["accuracy"] = jnp.mean(metrics.predictions(outputs) == labels, where=mask)
        return values["loss"], values

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, frozen, batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        gradients, values = jax.grad(loss, has_aux=True)(state["trainable"], frozen, batch, key)
        updates, opt_state = tx.update(gradients, state["opt_state"], state["trainable"])
        new = {
            "trainable": optax.apply_updates(state["trainable"], updates),
            "opt_state": opt_state,
            "step": state["step"] + 1,
            "key": state["key"],
        }
        norms = {"gradient_norm": optax.tree.norm(gradients), "update_norm": optax.tree.norm(updates)}
        return new, values | norms

    return step


def _train(prepared: Run, folder: Workdir, stop: list[int]) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Trains, from the newest checkpoint if there is one; the trained arrays, and what was measured."""
    with checkpoint.Checkpoints(folder.checkpoints, prepared.config.keep_checkpoints) as saved:
        loop = _Loop(prepared, folder, saved)
        steps = loop.train(stop)
        evaluated = loop.evaluate(prepared.total_steps)
    return loop.state["trainable"], {"eval": evaluated, "seconds": loop.seconds, "steps": steps}


class _Loop:
    """A run while it trains: its state between two steps, and what is done with it there."""

    def __init__(self, prepared: Run, folder: Workdir, saved: checkpoint.Checkpoints):
        self.began, self.earlier = time.perf_counter(), 0.0
        self.prepared, self.folder, self.saved = prepared, folder, saved
        data = prepared.data
        self.state, tx = initial_state(prepared)
        prepared.model.train()
        graphdef, _, self.frozen = surgery.split(prepared.model)
        self.step = train_step(graphdef, tx, prepared)
        prepared.model.eval()
        graphdef = surgery.split(prepared.model)[0]
        self.measure = evaluator(graphdef, prepared.inputs, data.metrics, regression=data.regression)
        self.belongs_to = {"weights": store.base_hash(prepared.model), "examples": data.fingerprint()}
        self.batches = prepared.training_batches()
        self.start = self._resume()

    @property
    def seconds(self) -> float:
        """Spent on the run so far, before it was stopped included."""
        return self.earlier + time.perf_counter() - self.began

    def train(self, stop: list[int]) -> list[float]:
        """Takes the steps that are left, saves at the end; seconds of each step. Raises Stopped if asked to stop."""
        config, total = self.prepared.config, self.prepared.total_steps
        with Progress(self.folder, config, self.start, total) as progress:
            for step in range(self.start, total):
                if stop:
                    progress.flush()
                    self.save(step)
                    raise Stopped(stop[0], step)
                if _due(step, config.eval_every_steps):
                    progress.flush()
                    self.evaluate(step)
                if _due(step, config.checkpoint_every_steps):
                    progress.flush()
                    self.save(step)
                self.state, values = self.step(self.state, self.frozen, next(self.batches))
                progress.step(step + 1, values)
            progress.flush()
        self.save(total)
        if stop:
            raise Stopped(stop[0], total)
        return progress.step_seconds

    def evaluate(self, step: int) -> dict[str, float]:
        """The metrics on all held-out splits, logged; read from the log where they are there already."""
        split = self.prepared.config.data.eval_split
        if (before := self.folder.logged(step, split)) is not None:
            return before  # by this run, before it was stopped
        values = {
            name + ending: value
            for ending, open_batches in self.prepared.evaluation_batches.items()
            for name, value in self.measure(self.state["trainable"], self.frozen, open_batches()).items()
        }
        check_finite(step, values)
        self.folder.log(step, split, values)
        return values

    def save(self, step: int) -> None:
        """Writes a checkpoint in the background."""
        notes = {"data": self.batches.get_state(), "seconds": self.seconds, **self.belongs_to}
        self.saved.save(step, self.state, notes)

    def _resume(self) -> int:
        """Takes over what the newest checkpoint holds; the number of steps taken before."""
        step = self.saved.latest_step
        if step is not None:
            print(f"going on after step {step}, from the checkpoint in {self.folder.checkpoints}", flush=True)
            notes = self.saved.notes()
            for what, expected in self.belongs_to.items():
                if notes[what] != expected:
                    raise InputError(
                        f"the checkpoint of {str(self.folder.path)!r} belongs to other {what} than the config's are "
                        "now; name another workdir"
                    )
            self.state = self.saved.restore(self.state)
            self.batches.set_state(notes["data"])
            self.earlier = notes["seconds"]
        self.folder.rewind(step or 0)
        return step or 0


def _due(step: int, every: int) -> bool:
    return bool(every) and step > 0 and step % every == 0


def _result(prepared: Run, measured: dict[str, Any]) -> dict[str, Any]:
    config, data, count = prepared.config, prepared.data, surgery.count_parameters(prepared.model)
    steady = measured["steps"][2:] or measured["steps"]  # the first two wait for the compiler
    return {
        "eval": measured["eval"],
        "metric": data.metrics[0],
        "kind": data.kind,
        "num_outputs": data.num_classes,
        "num_texts": len(data.train[0]["texts"]) if data.kind == "text" else 0,
        "classes": list(data.class_names),
        "family": config.peft.family if config.peft.method in ("update", "adapter") else None,
        "method": config.peft.method,
        "adapter_parameters": count.adapter,
        "trainable_parameters": count.trainable,
        "total_parameters": count.total,
        "steps": prepared.total_steps,
        "learning_rate": optim.learning_rate(config.optim, configs.spec(config)),
        "seconds": measured["seconds"],
        "step_seconds_median": statistics.median(steady) if steady else None,
        "peak_bytes": _peak_bytes(),
        "seed": config.seed,
        "versions": versions(),
        "config": config.to_dict(),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """What a result was measured with: packages, device and machine."""
    return {
        "surm": surm.__version__, "jax": jax.__version__, "flax": flax.__version__,
        "optax": optax.__version__, "numpy": np.__version__, "python": platform.python_version(),
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
    }  # fmt: skip


def _peak_bytes() -> int:
    """The device's peak memory where it tells, else this process's."""
    of_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    unit = 1 if sys.platform == "darwin" else 1024
    return of_device or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(argv: list[str] | None = None) -> int:
    """The command line: one clear line, and status 2 for unusable input or a workdir that cannot be written, 3 for a
    non-finite loss, 128 + the signal's number for a run that was asked to stop.

    Args:
      argv: as `sys.argv`.

    Returns:
      The exit status.
    """
    logging.set_verbosity(logging.FATAL)  # what goes wrong is raised, and said in one line
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × shows ?, and the run goes on
    try:
        flags = command_line.parse(sys.argv if argv is None else argv)
        if jax.default_backend() == "cpu":
            memory.keep_freed_memory()
        result = run(flags.config, flags.workdir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"error: {error}; checkpoints written before are kept; try a lower learning rate or "
              "config.optim.gradient_clip in another workdir", file=sys.stderr)  # fmt: skip
        return 3
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    print(report.summary(result, flags.workdir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
