"""One training step: the function from a state and a batch to the next state, which `Program` compiles."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from surm.config import Plan
from surm.models import scanned
from surm.models.scanned import Layout
from surm.ops.fusion import computed_once
from surm.peft import layers, select, surgery, variables
from surm.peft.schedules import penalty, rank_budget
from surm.tasks.task import Batch, FixedOutputs, Sums, Task, with_outputs
from surm.training import loko, optim, stacking
from surm.training.optim import Hyperparameters
from surm.training.prepared import Run

TrainState = dict[str, Any]
"""The state that a step updates: `trainable` (arrays by path), `opt_state`, `step`, `key` (for random numbers) and, if
a moving average is kept, `average`. It has two forms. By path, as in checkpoints and results, every array has its own
path. Packed, as programs of single runs keep it, the arrays of scanned blocks are stacked at the path of the first."""

Step = Callable[[TrainState, nnx.State, Batch, Hyperparameters], tuple[TrainState, dict[str, jax.Array]]]


def initial_state(prepared: Run, seed: int, *, averaged: bool, model: nnx.Module | None = None) -> TrainState:
    """The state before the first step.

    Args:
      prepared: the prepared run.
      seed: the seed of the random numbers that steps draw, such as dropout masks.
      averaged: whether a moving average of the trained arrays is kept.
      model: a model of the same structure that gives the trained arrays; None for the run's model.

    Returns:
      The state.
    """
    trainable = {path: jnp.array(value) for path, value in surgery.split(model or prepared.model)[1].items()}
    anything = Hyperparameters(*[0.0] * len(Hyperparameters._fields))  # the initial state does not depend on them
    state = {
        "trainable": trainable,
        "opt_state": transformation(prepared)(anything).init(trainable),
        "step": jnp.int32(0),
        "key": jax.random.key_data(jax.random.key(seed)),
    }
    return state | ({"average": jax.tree.map(jnp.copy, trainable)} if averaged else {})


def groups_of(model: nnx.Module) -> dict[str, str]:
    """The group of every trained array, by path: `"adapter"` for the method's, `"head"` for all others."""
    trained = nnx.to_flat_state(nnx.state(model, variables.Trainable))
    is_adapter = {select.dotted(path): isinstance(one, variables.AdapterParam) for path, one in trained}
    return {path: "adapter" if own else "head" for path, own in is_adapter.items()}


def transformation(
    prepared: Run, layout: Layout | None = None
) -> Callable[[Hyperparameters], optax.GradientTransformationExtraArgs]:
    """The function from the hyperparameters of a step to its gradient transformation; see `optim.optimizer`.

    Args:
      prepared: the prepared run.
      layout: the trained arrays that are stacked, from `stacked_of`.

    Returns:
      The function.
    """
    config, model, of_filter = prepared.config, prepared.model, filtered(prepared.plan, prepared.task)
    groups = groups_of(model)
    return functools.partial(
        optim.optimizer,
        prepared.plan.optimizer,
        groups={path: groups[path] for path in scanned.packed(dict.fromkeys(groups), layout or {})},
        factors=optim.multipliers(config.optim, model),
        budgets=rank_budget.budgets_of(model, prepared.total_steps, _adapters_first_step(prepared)),
        outputs=of_filter.outputs if of_filter else 1,
    )


def stacked_of(prepared: Run) -> Layout:
    """The trained arrays that are stacked because their blocks are scanned, and that the optimiser treats alike.

    Schedules and filters that look at each array of the adapter get them one by one.
    """
    one_by_one = prepared.plan.optimizer == "loko" or penalty.penalised(prepared.model)
    if one_by_one or rank_budget.budgets_of(prepared.model, prepared.total_steps, _adapters_first_step(prepared)):
        return {}
    groups, factors = groups_of(prepared.model), optim.multipliers(prepared.config.optim, prepared.model)
    return scanned.layout(stacking.runs(prepared.model), groups, lambda path: (groups[path], factors.get(path, 1)))


def filtered(plan: Plan, task: Task) -> FixedOutputs | None:
    """Returns the task if the run's optimiser is the Kalman filter `loko`, else None.

    Args:
      plan: the run's plan.
      task: the run's task.

    Returns:
      The same task, or None.

    Raises:
      InputError: if the optimiser is `loko`, but the task has no fixed number of outputs.
    """
    return with_outputs(task, "config.peft.method='loko'") if plan.optimizer == "loko" else None


def _adapters_first_step(prepared: Run) -> int:
    """The step at which the parameters of the method start to train."""
    return round(prepared.plan.head_first_fraction * prepared.total_steps)


def answering(state: TrainState) -> dict[str, jax.Array | np.ndarray]:
    """The trained arrays with which a run is evaluated and saved: their moving average if one is kept."""
    return state.get("average", state["trainable"])


def packing_of(prepared: Run) -> stacking.Packing:
    """The functions between the two forms of a run's state, by path and packed; see `TrainState`."""
    return stacking.packing(stacked_of(prepared), frozenset(groups_of(prepared.model)))


def train_step(prepared: Run) -> Step:
    """The training step of a run, not compiled, on a state by path.

    Args:
      prepared: the prepared run.

    Returns:
      A function (state, frozen, batch, hyperparameters) -> (state, metrics).
    """
    step, (layout, pack, unpack) = packed_step(prepared), packing_of(prepared)
    if layout:  # else XLA would put the update into the parts of every stack
        pack = computed_once(pack)

    def by_path(state, frozen, batch, hyperparameters):
        new, values = step(pack(state), frozen, batch, hyperparameters)
        return unpack(new), values

    return by_path


def packed_step(prepared: Run) -> Step:
    """The training step of a run, not compiled, on a packed state, as `packing_of` makes it.

    A program that keeps its state packed from step to step compiles nearly as fast for a deep model as for a shallow
    one, and copies no array to stack it. Only the trained arrays have gradients and optimiser states.

    Args:
      prepared: the prepared run.

    Returns:
      A function (state, frozen, batch, hyperparameters) -> (packed state, metrics).
    """
    config, layout = prepared.config, stacked_of(prepared)
    optimizer = transformation(prepared, layout)
    first = _adapters_first_step(prepared)
    budgets = rank_budget.budgets_of(prepared.model, prepared.total_steps, first)
    penalised = bool(penalty.penalised(prepared.model))
    prepared.model.train()
    graphdef = surgery.split(prepared.model)[0]
    prepared.model.eval()
    gradients = _mean_gradients(_sums(prepared, graphdef, layout), config.optim.accumulation_steps)
    of_filter = filtered(prepared.plan, prepared.task)
    measurements = _measurements(prepared, of_filter, graphdef) if of_filter else lambda *_: {}

    def update(found, opt_state, trainable, now, more):
        updates, opt_state = optimizer(now).update(found, opt_state, trainable, **more)
        return updates, optax.apply_updates(trainable, updates), opt_state

    update = computed_once(update) if layout else update  # for the same reason as in `train_step`

    def step(state, frozen, batch, hyperparameters):
        now, trainable = hyperparameters.at(state["step"]), state["trainable"]
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        found, values = gradients(trainable, frozen, batch, key, now)
        if penalised:
            progress = (state["step"] - first) / max(prepared.total_steps - first, 1)
            values["penalty"], slopes = penalty.gradients(graphdef, trainable, frozen, progress)
            found = jax.tree.map(jnp.add, found, slopes)
        more = measurements(trainable, frozen, batch, key, now)
        updates, moved, opt_state = update(found, state["opt_state"], trainable, now, more)
        new = state | {"trainable": moved, "opt_state": opt_state, "step": state["step"] + 1}
        if "average" in state:
            average = optim.average(state["average"], new["trainable"], now.ema_decay, state["step"])
            new["average"] = rank_budget.switched_off(average, new["trainable"], budgets)
        if budgets:
            values["active_rank"] = sum(rank_budget.active_ranks(new["trainable"], budgets).values())
        return new, values | {"gradient_norm": optax.tree.norm(found), "update_norm": optax.tree.norm(updates)}

    return step


def _outputs(prepared: Run, graphdef: nnx.GraphDef, layout: Layout | None = None) -> Callable[..., jax.Array]:
    """The function from the parts of a model and a batch to the model's outputs."""

    def outputs(trainable, frozen, batch, key, now):
        model = surgery.join(graphdef, scanned.spread(trainable, layout or {}), frozen, scale=now.scale)
        layers.reseed_dropout(model, key)
        return model(**prepared.task.inputs(batch))

    return outputs


def _sums(prepared: Run, graphdef: nnx.GraphDef, layout: Layout) -> Callable[..., tuple[jax.Array, Sums]]:
    """The function to differentiate: it returns the sum of losses over a batch, and beside it all sums of the task."""
    answers, task = _outputs(prepared, graphdef, layout), prepared.task

    def sums(trainable, frozen, batch, key, now):
        outputs = answers(trainable, frozen, batch, key, now)
        found = task.sums(outputs, batch, label_smoothing=now.label_smoothing)
        return found["loss"], found

    return sums


def _mean_gradients(sums: Callable, parts: int) -> Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """The gradient of the mean loss of a batch, and the means of all sums; `parts` is the number of parts of a batch.

    The sums of all parts are added up before they are divided, so that parts may differ in weight.
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
        weight = sums.pop("weight")
        count = sums.pop("count", weight)
        means = {name: total / (weight if name == "loss" else count) for name, total in sums.items()}
        return jax.tree.map(lambda total: total / weight, found), means

    return gradients


def _measurements(prepared: Run, task: FixedOutputs, graphdef: nnx.GraphDef) -> Callable[..., dict[str, Any]]:
    """The arguments of `loko.kalman`'s update: the residuals and Jacobians of every example."""
    answers = _outputs(prepared, graphdef)

    def measurements(trainable, frozen, batch, key, now):
        def of_one(example, number):
            alone, own_key = jax.tree.map(lambda x: x[None], example), jax.random.fold_in(key, number)

            def measured(trainable):
                return task.said(answers(trainable, frozen, alone, own_key, now)[0].astype(jnp.float32))

            return loko.measurement(measured, trainable)

        real = task.real(batch)  # rows that only pad the batch get zeros, so that they change nothing
        said, jacobians = jax.vmap(of_one)(batch, jnp.arange(len(real)))
        wanted = task.wanted(batch, label_smoothing=now.label_smoothing)
        jacobians = jax.tree.map(lambda rows: jnp.where(real.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0), jacobians)
        residuals = jnp.where(real[:, None], wanted - said, 0)
        return {"residuals": residuals, "jacobians": jacobians, "examples": jnp.sum(real)}

    return measurements
