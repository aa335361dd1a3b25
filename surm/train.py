"""Trains what a config names: `python -m surm.train --config=configs/vit_digits.py --workdir=runs/digits`.

The loop's order is fixed: eval? -> save? -> next batch -> step -> log, one step late -> stop on a non-finite loss.
A run starts from its own workdir if that holds a checkpoint, else from `config.init_adapter` if that is set, else
fresh; stopped and started again it ends exactly as if it had never stopped.
"""

import dataclasses
import functools
import math
import os
import platform
import resource
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
from surm import checkpoint, command_line, metrics, optim, report
from surm import config as configs
from surm.data import pipeline, sources
from surm.errors import InputError
from surm.evaluate import evaluator
from surm.models import convert, vit
from surm.models.weights import Weights, open_weights
from surm.peft import layers, select, store, surgery
from surm.progress import NonFiniteError, Progress
from surm.workdir import Workdir

TrainState = dict[str, Any]
"""`trainable` (arrays by path), `opt_state`, `step` and `key`: all that a checkpoint holds beside the data position."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a run needs that does not change while it trains."""

    config: ml_collections.ConfigDict
    model: nnx.Module
    data: sources.ImageData
    train_split: sources.Split
    eval_split: sources.Split
    image_size: int
    total_steps: int
    normalize: Callable[[jax.Array], jax.Array]


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
    """
    configs.check(config)
    folder = Workdir(workdir, config)
    if (finished := folder.result()) is not None:
        print(f"{workdir} holds the finished run of this config; remove it to train again")
        return finished
    prepared = prepare(config)
    folder.begin()
    print(surgery.table(prepared.model), flush=True)
    started = time.perf_counter()
    trainable, evaluated, step_seconds = _train(prepared, folder)
    graphdef, _, frozen = surgery.split(prepared.model)
    trained = surgery.join(graphdef, trainable, frozen)
    store.save_adapter(folder.adapter, trained, base_name=f"{config.model.weights} ({config.model.name})")
    report.draw_curves(folder.metrics(), folder.path / "curves.png", folder.path.name)
    result = _result(prepared, evaluated, time.perf_counter() - started, step_seconds)
    folder.write_json("result.json", result)
    return result


def prepare(config: ml_collections.ConfigDict) -> Run:
    """Opens data and weights and attaches the adapter; InputError where something does not fit."""
    data = sources.load(config.data.source, data_dir=config.data.data_dir or None)
    train_split = sources.balanced_subset(
        data.train, config.data.train_examples, data.num_classes, seed=config.data.subset_seed
    )
    steps_a_pass = math.ceil(len(train_split) / config.optim.batch_size)
    base, mean, std = _base(config, data.num_classes)
    spec = configs.spec(config)
    model = surgery.attach(base, spec, nnx.Rngs(config.seed))
    if config.init_adapter:
        model = store.load_adapter(config.init_adapter, base)
        if surgery.spec_of(model) != spec:
            raise InputError(f"config.init_adapter={config.init_adapter!r} was trained with another config.peft")
    return Run(
        config=config,
        model=model,
        data=data,
        train_split=train_split,
        eval_split=data.split(config.data.eval_split),
        image_size=base.config.image_size,
        total_steps=config.optim.steps or config.optim.epochs * steps_a_pass,
        normalize=functools.partial(pipeline.normalize, mean=mean, std=std),
    )


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
        logits = model(prepared.normalize(batch["image"]))
        sums = metrics.classification_sums(logits, batch["label"], batch["mask"], smoothing)
        values = metrics.means(sums)
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


def _train(prepared: Run, folder: Workdir) -> tuple[dict[str, jax.Array], dict[str, float], list[float]]:
    config, total = prepared.config, prepared.total_steps
    state, tx = initial_state(prepared)
    prepared.model.train()
    graphdef, _, frozen = surgery.split(prepared.model)
    step_function = train_step(graphdef, tx, prepared)
    prepared.model.eval()
    evaluate = evaluator(surgery.split(prepared.model)[0], prepared.normalize)
    batches = pipeline.training_batches(
        prepared.train_split, config.optim.batch_size, prepared.image_size,
        seed=config.seed, augment=config.data.augment, threads=config.data.threads,
    )  # fmt: skip

    def evaluate_now(step: int) -> dict[str, float]:
        held_out = pipeline.evaluation_batches(prepared.eval_split, config.optim.batch_size, prepared.image_size)
        values = evaluate(state["trainable"], frozen, held_out)
        folder.log(step, config.data.eval_split, values)
        return values

    with checkpoint.Checkpoints(folder.checkpoints, config.keep_checkpoints) as saved:
        start = saved.latest_step or 0
        if start:
            state, position = saved.restore(state)
            batches.set_state(position)
        folder.rewind(start)
        with Progress(folder, config, start, total) as logger:
            for step in range(start, total):
                resumed_here = start and step == start
                if _due(step, config.eval_every_steps) and not resumed_here:
                    logger.flush()
                    evaluate_now(step)
                if _due(step, config.checkpoint_every_steps) and not resumed_here:
                    logger.flush()
                    saved.save(step, state, batches.get_state())
                batch = next(batches)
                state, values = step_function(state, frozen, batch)
                logger.step(step + 1, values)
            logger.flush()
        evaluated = evaluate_now(total)
        saved.save(total, state, batches.get_state())
    return state["trainable"], evaluated, logger.step_seconds


def _base(config: ml_collections.ConfigDict, num_classes: int) -> tuple[vit.ViT, tuple[float, ...], tuple[float, ...]]:
    """The pretrained (or fresh) model and the pixel normalisation that fits it."""
    weights = None if config.model.weights == "none" else open_weights(config.model.weights)
    shape = _shape(config, weights)
    if config.model.image_size:
        shape = dataclasses.replace(shape, image_size=config.model.image_size)
    dtype = None if config.model.dtype == "float32" else jnp.dtype(config.model.dtype)
    model = vit.ViT(shape, num_classes, dtype=dtype, rngs=nnx.Rngs(config.seed))
    if weights is None:
        return model, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return convert.restore(model, weights), weights.mean, weights.std


def _shape(config: ml_collections.ConfigDict, weights: Weights | None) -> vit.ViTConfig:
    """The preset that `config.model.name` names, or for `auto` what the weights say of themselves."""
    if config.model.name != "auto":
        return vit.preset(config.model.name)
    if weights is not None and weights.model:
        return vit.preset(weights.model)
    if weights is not None and weights.config:
        return convert.config_from_hf(weights.config)
    raise InputError(
        f"config.model.name='auto', but weights {config.model.weights!r} do not say what they fit; name a preset: "
        + ", ".join(vit.PRESETS)
    )


def _due(step: int, every: int) -> bool:
    return bool(every) and step > 0 and step % every == 0


def _result(prepared: Run, evaluated: dict[str, float], seconds: float, step_seconds: list[float]) -> dict[str, Any]:
    config, count = prepared.config, surgery.count_parameters(prepared.model)
    steady = step_seconds[2:] or step_seconds  # the first two wait for the compiler
    return {
        "eval": evaluated,
        "family": config.peft.family,
        "method": config.peft.method,
        "adapter_parameters": count.adapter,
        "trainable_parameters": count.trainable,
        "total_parameters": count.total,
        "steps": prepared.total_steps,
        "seconds": seconds,
        "step_seconds_median": statistics.median(steady) if steady else None,
        "peak_bytes": _peak_bytes(),
        "seed": config.seed,
        "versions": {
            "surm": surm.__version__, "jax": jax.__version__, "flax": flax.__version__,
            "optax": optax.__version__, "numpy": np.__version__, "python": platform.python_version(),
            "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
            "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        },
        "config": config.to_dict(),
    }  # fmt: skip


def _peak_bytes() -> int:
    """The device's peak memory where it tells, else that of this process."""
    statistics_of_device = jax.local_devices()[0].memory_stats() or {}
    return statistics_of_device.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(argv: list[str] | None = None) -> int:
    """The command line: one clear line and status 2 for unusable input, 3 for a non-finite loss.

    Args:
      argv: as `sys.argv`.

    Returns:
      The exit status.
    """
    logging.set_verbosity(logging.ERROR)
    try:
        flags = command_line.parse(sys.argv if argv is None else argv)
        result = run(flags.config, flags.workdir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print(report.summary(result, flags.workdir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
