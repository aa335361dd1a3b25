"""One training step: from a state and a batch to the next state. What a run compiles, and a population maps over."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from surm import config as configs
from surm.peft import layers, select, surgery, variables
from surm.peft.schedules import penalty, rank_budget
from surm.tasks import metrics
from surm.training import loko, optim
from surm.training.optim import Hyperparameters
from surm.training.preparation import Run

TrainState = dict[str, Any]
"""`trainable` (arrays by path), `opt_state`, `step` and `key`, and `average` where one is kept: all that a checkpoint
holds beside the data position."""

Batch = dict[str, np.ndarray]
Step = Callable[[TrainState, nnx.State, Batch, Hyperparameters], tuple[TrainState, dict[str, jax.Array]]]


def initial_state(prepared: Run, seed: int, *, averaged: bool, model: nnx.Module | None = None) -> TrainState:
    """The state before the first step.

    Args:
      prepared: the run.
      seed: of what the steps draw.
      averaged: whether an average of the trained arrays is kept.
      model: one with other values than the run's; None for that.

    Returns:
      The state.
    """
    trainable = {path: jnp.array(value) for path, value in surgery.split(model or prepared.model)[1].items()}
    anything = Hyperparameters(*[0.0] * len(Hyperparameters._fields))  # the optimiser's state is the same for all
    state = {
        "trainable": trainable,
        "opt_state": transformation(prepared)(anything).init(trainable),
        "step": jnp.int32(0),
        "key": jax.random.key_data(jax.random.key(seed)),
    }
    return state | ({"average": jax.tree.map(jnp.copy, trainable)} if averaged else {})


def groups_of(model: nnx.Module) -> dict[str, str]:
    """`"adapter"` for every array that the method trains, `"head"` for every other that trains, by path."""
    kinds = dict(nnx.to_flat_state(nnx.state(model, variables.AdapterParam)))
    adapter = {select.dotted(path) for path in kinds}
    return {path: "adapter" if path in adapter else "head" for path in surgery.split(model)[1]}


def transformation(prepared: Run) -> Callable[[Hyperparameters], optax.GradientTransformationExtraArgs]:
    """What makes a run's gradient transformation of a step from the step's numbers; see `optim.optimizer`."""
    config, model = prepared.config, prepared.model
    return functools.partial(
        optim.optimizer,
        optim.optimizer_name(config.optim, configs.spec(config)),
        groups=groups_of(model),
        factors=optim.multipliers(config.optim, model),
        budgets=rank_budget.budgets_of(model, prepared.total_steps, _adapters_first_step(prepared)),
        outputs=prepared.data.num_classes,
    )


def _adapters_first_step(prepared: Run) -> int:
    """The step at which what the method trains begins to."""
    optim_config = prepared.config.optim
    return round(optim.head_first_fraction(optim_config, configs.spec(prepared.config)) * prepared.total_steps)


def answering(state: TrainState) -> dict[str, jax.Array]:
    """The trained arrays that a run is measured with and saves: their average where one is kept."""
    return state.get("average", state["trainable"])


def train_step(prepared: Run) -> Step:
    """One step, not compiled: gradients and optimiser state of the trained arrays alone.

    Args:
      prepared: the run.

    Returns:
      A function (state, frozen, batch, hyperparameters) -> (state, metrics).
    """
    config, optimizer = prepared.config, transformation(prepared)
    first = _adapters_first_step(prepared)
    budgets = rank_budget.budgets_of(prepared.model, prepared.total_steps, first)
    penalised = bool(penalty.penalised(prepared.model))
    prepared.model.train()
    graphdef = surgery.split(prepared.model)[0]
    prepared.model.eval()
    gradients = _mean_gradients(_sums(prepared, graphdef), config.optim.accumulation_steps)
    filtered = optim.optimizer_name(config.optim, configs.spec(config)) == "loko"
    measurements = _measurements(prepared, graphdef) if filtered else lambda *_: {}

    def step(state, frozen, batch, hyperparameters):
        now, trainable = hyperparameters.at(state["step"]), state["trainable"]
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        found, values = gradients(trainable, frozen, batch, key, now)
        if penalised:
            progress = (state["step"] - first) / max(prepared.total_steps - first, 1)
            values["penalty"], slopes = penalty.gradients(graphdef, trainable, frozen, progress)
            found = jax.tree.map(jnp.add, found, slopes)
        more = measurements(trainable, frozen, batch, key, now)
        updates, opt_state = optimizer(now).update(found, state["opt_state"], trainable, **more)
        new = state | {
            "trainable": optax.apply_updates(trainable, updates),
            "opt_state": opt_state,
            "step": state["step"] + 1,
        }
        if "average" in state:
            average = optim.average(state["average"], new["trainable"], now.ema_decay, state["step"])
            new["average"] = rank_budget.switched_off(average, new["trainable"], budgets)
        if budgets:
            values["active_rank"] = sum(rank_budget.active_ranks(new["trainable"], budgets).values())
        return new, values | {"gradient_norm": optax.tree.norm(found), "update_norm": optax.tree.norm(updates)}

    return step


def _outputs(prepared: Run, graphdef: nnx.GraphDef) -> Callable[..., jax.Array]:
    """A model's answers to a batch, from its parts."""

    def outputs(trainable, frozen, batch, key, now):
        model = surgery.join(graphdef, trainable, frozen, scale=now.scale)
        layers.reseed_dropout(model, key)
        return model(**prepared.inputs(batch))

    return outputs


def _sums(prepared: Run, graphdef: nnx.GraphDef) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """Sums over a batch: of the losses, whose gradient is wanted, and of what else is to be known."""
    answers, regression = _outputs(prepared, graphdef), prepared.data.regression
    weights = None if prepared.class_weights is None else jnp.asarray(prepared.class_weights)

    def sums(trainable, frozen, batch, key, now):
        outputs = answers(trainable, frozen, batch, key, now)
        labels, mask = batch["label"], batch["mask"]
        losses = metrics.losses(
            outputs,
            labels,
            regression=regression,
            label_smoothing=now.label_smoothing,
            class_weights=weights,
        )
        found = {"loss": jnp.sum(losses, where=mask)}
        if weights is not None:
            found["weight"] = jnp.sum(weights[labels], where=mask)
        if not regression:
            found["accuracy"] = jnp.sum(metrics.predictions(outputs) == labels, where=mask, dtype=losses.dtype)
        return found["loss"], found

    return sums


def _mean_gradients(sums: Callable, parts: int) -> Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """The gradient of the mean loss of a batch, and the means; part by part, if it comes in parts.

    Sums are divided by the number of examples, the loss and its gradient by the `weight` of all where there is one.
    """
    of = jax.grad(sums, has_aux=True)

    def in_parts(trainable, frozen, batch, key, now):
        def add(total, part):
            batch, key = part
            return jax.tree.map(jnp.add, total, of(trainable, frozen, batch, key, now)), None

        pieces = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
        keys = jax.random.split(key, parts)
        first = jax.tree.map(lambda x: x[0], (pieces, keys))
        nothing = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(lambda part: of(trainable, frozen, *part, now), first),
        )
        return jax.lax.scan(add, nothing, (pieces, keys))[0]

    def gradients(trainable, frozen, batch, key, now):
        found, sums = (of if parts == 1 else in_parts)(trainable, frozen, batch, key, now)
        count = jnp.sum(batch["mask"])
        weight = sums.pop("weight", count)
        means = {name: total / (weight if name == "loss" else count) for name, total in sums.items()}
        return jax.tree.map(lambda total: total / weight, found), means

    return gradients


def _measurements(prepared: Run, graphdef: nnx.GraphDef) -> Callable[..., dict[str, Any]]:
    """What a Kalman filter asks for: of every example how far the outputs are off, and their derivatives."""
    answers, regression = _outputs(prepared, graphdef), prepared.data.regression

    def measurements(trainable, frozen, batch, key, now):
        def of_one(example, number):
            alone, own_key = jax.tree.map(lambda x: x[None], example), jax.random.fold_in(key, number)

            def measured(trainable):
                outputs = answers(trainable, frozen, alone, own_key, now)[0].astype(jnp.float32)
                return outputs if regression else jax.nn.softmax(outputs)

            return loko.measurement(measured, trainable)

        outputs, jacobians = jax.vmap(of_one)(batch, jnp.arange(len(batch["mask"])))
        if regression:
            wanted = batch["label"][:, None]
        else:
            wanted = optax.smooth_labels(jax.nn.one_hot(batch["label"], outputs.shape[-1]), now.label_smoothing)
        real = batch["mask"]  # what only fills a batch up is measured to be just what it is
        jacobians = jax.tree.map(lambda rows: jnp.where(real.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0), jacobians)
        residuals = jnp.where(real[:, None], wanted - outputs, 0)
        return {"residuals": residuals, "jacobians": jacobians, "examples": jnp.sum(real)}

    return measurements
