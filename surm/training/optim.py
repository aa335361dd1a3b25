"""The optimiser of a run: one schedule, with separate learning rates and weight decays for adapter and head."""

import functools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float32

from surm import matrices
from surm.config import head_first_fraction, optimizer_name
from surm.peft import counts, select, surgery, variables
from surm.peft.schedules import rank_budget
from surm.peft.schedules.rank_budget import RankBudget
from surm.peft.spec import PeftSpec
from surm.training import loko

METHOD_LEARNING_RATES: dict[str, float] = {
    "bottleneck": 1e-3,
    "full": 5e-5,
    "bitfit": 2e-3,
    "hadamard_adapter": 2e-3,
    "loko": 1e-3,
}
"""Default learning rates of the methods without a family, for AdamW.

That of `bottleneck` was measured on MRPC. That of `full` is near the best on CoLA (4e-5), and a third of the best on
MRPC and SST-2. Those of `bitfit` and `hadamard_adapter` are customary values. That of `loko` is the filter's initial
variance, and has not been tuned.
"""


def learning_rate(optim: ml_collections.ConfigDict, spec: PeftSpec) -> float:
    """The peak learning rate of the parameters that the method trains.

    It is the head's for the method `head`, else the config's if it sets one, else the default of the method or family.
    """
    if spec.method == "head":
        return optim.head_learning_rate
    if optim.learning_rate is not None:
        return optim.learning_rate
    if spec.method in METHOD_LEARNING_RATES:
        return METHOD_LEARNING_RATES[spec.method]
    return _of_family(spec)


def multipliers(optim: ml_collections.ConfigDict, model: nnx.Module) -> dict[str, float]:
    """The factors that multiply the run's learning rate for single adapter arrays.

    A factor is not 1 where `config.peft.rules` gives a layer another family, with another default learning rate.

    Args:
      optim: the config's `optim` section; if it sets a learning rate, all layers have that one.
      model: the model with its adapter.

    Returns:
      The factors other than 1, by path of the array.
    """
    spec = surgery.spec_of(model)
    if not spec.rules:
        return {}
    found, rates = {}, layer_rates(optim, model)
    for path, layer in surgery.wrapped_layers(model):
        factor = rates[select.dotted(path)] / learning_rate(optim, spec)
        for name, _ in nnx.to_flat_state(nnx.state(layer, variables.AdapterParam)):
            found[select.dotted((*path, *name))] = factor
    return {path: factor for path, factor in found.items() if factor != 1}


def layer_rates(optim: ml_collections.ConfigDict, model: nnx.Module) -> dict[str, float]:
    """The peak learning rate of each adapted layer, by path: the config's if it sets one, else its family's default."""
    return {path: learning_rate(optim, own) for path, own in surgery.specs(model, surgery.spec_of(model)).items()}


def _of_family(spec: PeftSpec) -> float:
    """The default learning rate of a family, for updates or for adapters, whichever the spec asks for.

    For updates, it is near the best of the rates tried on MRPC with MiniLM (experiments/glue_methods/results), and
    within half a point of the best on CIFAR-10 with vit_micro (experiments/vit_families/results). Some tasks need a
    lower one: on CoLA, toeplitz and low_displacement_rank learnt at 8e-4, and did not learn at 3e-3. For adapters, it
    was measured on MRPC for circulant, kronecker and low_displacement_rank (best at 1.6e-3); the other families have a
    rate like theirs.
    """
    family = matrices.FAMILIES[spec.family]
    if spec.position == "adapter":
        return family.adapter_learning_rate
    if (option := family.learning_rate_by_root) is None:
        return family.learning_rate
    return family.learning_rate / math.sqrt(spec.options.get(option, family.options[option]))


def summary(optim: ml_collections.ConfigDict, model: nnx.Module) -> str:
    """One line with the peak learning rates that says whether they come from the config or are defaults."""
    spec, head = surgery.spec_of(model), f"head {optim.head_learning_rate:g}"
    if spec.method == "head":
        return f"learning rate: {head}"
    rates = dict.fromkeys(layer_rates(optim, model).values()) or [learning_rate(optim, spec)]
    whose = "by the config" if optim.learning_rate is not None else "the default" if len(rates) == 1 else "defaults"
    counted = counts.count_parameters(model)
    beside = "" if counted.adapter == counted.trainable else f", {head}"
    return f"learning rate: {spec.method} {' and '.join(f'{rate:g}' for rate in rates)} ({whose}){beside}"


def schedule(optim: ml_collections.ConfigDict, peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then cosine or linear decay to 0, or constant.

    Args:
      optim: the config's `optim` section.
      peak: the highest learning rate.
      steps: number of steps of the run.

    Returns:
      A function from the step to the learning rate.
    """
    warmup = round(optim.warmup_fraction * steps)
    rest = max(steps - warmup, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }[optim.schedule]
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


class Hyperparameters(NamedTuple):
    """The numbers that a training step depends on.

    They are arguments of the compiled step, so that the members of a population, which share one program, may differ in
    them.

    Attributes:
      adapter_rate: learning rate of the parameters that the method trains, of shape (steps,), or a scalar after `at`.
      head_rate: learning rate of the head and of other trained variables, of the same shape.
      weight_decay: weight decay of the parameters that the method trains.
      head_weight_decay: weight decay of the head and of other trained variables.
      momentum: momentum of SGD.
      gradient_clip: the largest global norm of a gradient; infinite for no clipping.
      label_smoothing: ε of the targets.
      ema_decay: of the average of the trained arrays, see `average`.
      scale: factor of the update; None for the model's own.
    """

    adapter_rate: jax.typing.ArrayLike
    head_rate: jax.typing.ArrayLike
    weight_decay: jax.typing.ArrayLike
    head_weight_decay: jax.typing.ArrayLike
    momentum: jax.typing.ArrayLike
    gradient_clip: jax.typing.ArrayLike
    label_smoothing: jax.typing.ArrayLike
    ema_decay: jax.typing.ArrayLike
    scale: jax.typing.ArrayLike | None = None

    def at(self, step: jax.typing.ArrayLike) -> "Hyperparameters":
        """The numbers of one step, whose learning rates are scalars."""
        return self._replace(
            adapter_rate=jnp.asarray(self.adapter_rate)[step], head_rate=jnp.asarray(self.head_rate)[step]
        )


def hyperparameters(optim: ml_collections.ConfigDict, spec: PeftSpec, steps: int) -> Hyperparameters:
    """The hyperparameters that a config describes.

    Args:
      optim: the config's `optim` section.
      spec: decides the default learning rate and the optimiser.
      steps: number of steps of the run.

    Returns:
      The numbers, float32, with learning rates of shape (steps,) and `scale` None.
    """

    adapter, constant = learning_rate(optim, spec), optimizer_name(optim, spec) == "loko"
    alone = round(head_first_fraction(optim, spec) * steps)
    of_adapter, of_head = (
        functools.partial(_rates, optim, peak, constant=constant) for peak in (adapter, optim.head_learning_rate)
    )
    return Hyperparameters(
        adapter_rate=np.concatenate([np.zeros(alone, np.float32), of_adapter(steps - alone)]),
        head_rate=np.pad(of_head(alone), (0, steps - alone)) if alone else of_head(steps),
        weight_decay=np.float32(optim.weight_decay),
        head_weight_decay=np.float32(optim.head_weight_decay),
        momentum=np.float32(optim.momentum),
        gradient_clip=np.float32(optim.gradient_clip or np.inf),
        label_smoothing=np.float32(optim.label_smoothing),
        ema_decay=np.float32(optim.ema_decay),
    )


def _rates(
    optim: ml_collections.ConfigDict, peak: float, steps: int, *, constant: bool
) -> Float32[np.ndarray, " steps"]:
    """The learning rate of every step."""
    if constant:
        return np.full(steps, peak, np.float32)
    return np.asarray(jax.vmap(schedule(optim, peak, max(steps, 1)))(jnp.arange(steps)), np.float32)


def optimizer(
    name: str,
    now: Hyperparameters,
    groups: dict[str, str],
    *,
    factors: Mapping[str, float] = MappingProxyType({}),
    budgets: Sequence[RankBudget] = (),
    outputs: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """The gradient transformation of one step; its state has the same structure for all steps and passes from one to
    the next.

    Args:
      name: `adamw`, `sgd` or `loko`.
      now: the hyperparameters of this step.
      groups: `"adapter"` or `"head"` for every trained array, by path.
      factors: from `multipliers`.
      budgets: the schedules that switch off components of low-rank updates.
      outputs: number of outputs of the model for an example, which only `loko` needs.

    Returns:
      A transformation of dictionaries of arrays with the keys of `groups`. The `update` of `loko` takes further keyword
      arguments; see `surm.training.loko.kalman`.
    """
    if name == "loko":
        of_each = {path: now.adapter_rate if group == "adapter" else now.head_rate for path, group in groups.items()}
        return rank_budget.around(loko.kalman(of_each, outputs), budgets)
    each = {
        "adapter": _one(name, now.adapter_rate, now.weight_decay, now.momentum),
        "head": _one(name, now.head_rate, now.head_weight_decay, now.momentum),
    }
    scaled = optax.stateless(
        lambda updates, _: {path: factors.get(path, 1) * update for path, update in updates.items()}
    )
    chain = optax.chain(
        optax.clip_by_global_norm(now.gradient_clip),
        optax.partition(each, groups),
        *([scaled] if factors else []),
    )
    return optax.with_extra_args_support(rank_budget.around(chain, budgets))


def average(before: Any, new: Any, decay: jax.typing.ArrayLike, step: jax.typing.ArrayLike) -> Any:
    """The moving average of the trained arrays after a step: dₜ·before + (1 − dₜ)·new with dₜ = min(decay, t/(t + 1)).

    It is the plain mean of the arrays after each of the first 1/(1 − decay) steps, and an exponential moving average
    from there on.

    Args:
      before: the average before the step; it has no effect at the first step.
      new: the arrays after the step.
      decay: from 0, which gives `new`, to 1, which gives the mean over all steps.
      step: t, the number of steps before this one.

    Returns:
      The average.
    """
    return optax.incremental_update(new, before, 1 - jnp.minimum(decay, step / (step + 1)))


def _one(
    name: str, rate: jax.typing.ArrayLike, decay: jax.typing.ArrayLike, momentum: jax.typing.ArrayLike
) -> optax.GradientTransformation:
    if name == "adamw":
        return optax.adamw(rate, weight_decay=decay, mask=_decayed)
    return optax.chain(optax.add_decayed_weights(decay, mask=_decayed), optax.sgd(rate, momentum=momentum))


def _decayed(arrays: dict[str, Any]) -> dict[str, bool]:
    """True for arrays with weight decay: all except biases, shifts, magnitudes and the scales of norms."""
    return {path: path.rpartition(".")[2] not in ("bias", "scale", "shift", "magnitude") for path in arrays}
