"""The training loop: its order, its state, and how it goes on after it was stopped.

The order is fixed: stop? -> eval? -> save? -> next batch -> step -> log, one step late -> stop on a non-finite loss.
Stopped and started again a run ends exactly as if it had never stopped.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from surm import checkpoint, metrics, optim
from surm import config as configs
from surm.errors import InputError
from surm.evaluate import evaluator
from surm.peft import layers, select, store, surgery
from surm.preparation import Run
from surm.progress import Progress, check_finite
from surm.stopping import Stopped
from surm.workdir import Workdir

TrainState = dict[str, Any]
"""`trainable` (arrays by path), `opt_state`, `step` and `key`: all that a checkpoint holds beside the data position."""


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


def narrowed(frozen: nnx.State, dtype: jax.typing.DTypeLike) -> nnx.State:
    """The frozen part of a model with its matrices in the dtype that the model computes in.

    Every use would round them so anyway: results are the same, bit for bit. Vectors stay as they are, norms need them.

    Args:
      frozen: from `surgery.split`.
      dtype: of all of the model's computations; any other would change results.

    Returns:
      The same, narrower.
    """

    def rounded(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if leaf.ndim > 1 and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(rounded, frozen)


class Loop:
    """A run while it trains: its state between two steps, and what is done with it there."""

    def __init__(self, prepared: Run, folder: Workdir, saved: checkpoint.Checkpoints):
        """Starts afresh or from the newest checkpoint.

        Raises:
          InputError: if that checkpoint is damaged, or belongs to other weights or examples.
        """
        self.began, self.earlier = time.perf_counter(), 0.0
        self.prepared, self.folder, self.saved = prepared, folder, saved
        data = prepared.data
        self.state, tx = initial_state(prepared)
        prepared.model.train()
        graphdef, _, frozen = surgery.split(prepared.model)
        self.frozen = narrowed(frozen, prepared.config.model.dtype)
        self.step = train_step(graphdef, tx, prepared)
        prepared.model.eval()
        graphdef = surgery.split(prepared.model)[0]
        self.measure = evaluator(graphdef, prepared.inputs, data.metrics, regression=data.regression)
        self.belongs_to = {"weights": store.base_hash(prepared.model), "examples": data.fingerprint()}
        nnx.update(prepared.model, jax.tree.map(_off_device, frozen, self.frozen))
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


def _off_device(original: jax.Array, used: jax.Array) -> jax.Array | np.ndarray:
    """What has a narrower copy waits in the host's memory for the end of the run, whose hash is of the original."""
    return original if used is original else np.asarray(original)


def _due(step: int, every: int) -> bool:
    return bool(every) and step > 0 and step % every == 0
