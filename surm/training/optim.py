"""The optimiser of a run: one schedule, separate rates and decays for adapter and head."""

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
from surm.peft import select, surgery, variables
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
"""AdamW's rate for the methods that have no family; bottleneck as measured on MRPC, full near the best on CoLA (4e-5),
three times below that on MRPC and SST-2, bitfit and hadamard_adapter customary; of loko, unmeasured, the variance that
it starts from."""


def learning_rate(optim: ml_collections.ConfigDict, spec: PeftSpec) -> float:
    """The peak rate of what the method trains: the config's, else its own; of the method `head` the head's."""
    if spec.method == "head":
        return optim.head_learning_rate
    if optim.learning_rate is not None:
        return optim.learning_rate
    if spec.method in METHOD_LEARNING_RATES:
        return METHOD_LEARNING_RATES[spec.method]
    return _of_family(spec)


def multipliers(optim: ml_collections.ConfigDict, model: nnx.Module) -> dict[str, float]:
    """What the rate of each adapter array is multiplied by: where rules name other families, by their defaults.

    Args:
      optim: the config's `optim` part; where it gives a rate, that is everywhere's.
      model: with its adapter.

    Returns:
      Factors other than 1, by path.
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
    """The peak rate of each adapted layer of a model, by path: the config's, else its family's own."""
    return {path: learning_rate(optim, own) for path, own in surgery.specs(model, surgery.spec_of(model)).items()}


def _of_family(spec: PeftSpec) -> float:
    """The default rate of a family in a position.

    Of an update it is near the best of those tried on MRPC with MiniLM (experiments/glue_methods/results) and within
    half a point of the best on CIFAR-10 with vit_micro (experiments/vit_families/results). Some tasks want less: on
    CoLA toeplitz and low_displacement_rank learnt at 8e-4, and nothing at 3e-3. Of an adapter it was measured on MRPC
    for circulant, kronecker and low_displacement_rank (best at 1.6e-3); the others are set by them.
    """
    family = matrices.FAMILIES[spec.family]
    if spec.position == "adapter":
        return family.adapter_learning_rate
    if (option := family.learning_rate_by_root) is None:
        return family.learning_rate
    return family.learning_rate / math.sqrt(spec.options.get(option, family.options[option]))


def summary(optim: ml_collections.ConfigDict, model: nnx.Module) -> str:
    """The peak rates in a line, and whose choice they are."""
    spec, head = surgery.spec_of(model), f"head {optim.head_learning_rate:g}"
    if spec.method == "head":
        return f"learning rate: {head}"
    rates = dict.fromkeys(layer_rates(optim, model).values()) or [learning_rate(optim, spec)]
    whose = "by the config" if optim.learning_rate is not None else "the default" if len(rates) == 1 else "defaults"
    return f"learning rate: {spec.method} {' and '.join(f'{rate:g}' for rate in rates)} ({whose}), {head}"


def schedule(optim: ml_collections.ConfigDict, peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then cosine or linear decay to 0, or constant.

    Args:
      optim: the config's `optim` part.
      peak: the highest rate.
      steps: length of the run.

    Returns:
      A function from step to rate.
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
    """The numbers that training goes by: arguments of the compiled step, so that the members of a population, which is
    one program, may differ in them.

    Attributes:
      adapter_rate: the learning rate of what the method trains; of every step, or of one.
      head_rate: the learning rate of what trains besides, likewise.
      weight_decay: of what the method trains.
      head_weight_decay: of what trains besides.
      momentum: of SGD.
      gradient_clip: the largest global norm of a gradient; infinite for none.
      label_smoothing: ε of the targets.
      ema_decay: of the average of the trained arrays, see `average`.
      scale: of the update, None for what the model has.
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
        """Those of one step."""
        return self._replace(
            adapter_rate=jnp.asarray(self.adapter_rate)[step], head_rate=jnp.asarray(self.head_rate)[step]
        )


def hyperparameters(optim: ml_collections.ConfigDict, spec: PeftSpec, steps: int) -> Hyperparameters:
    """What a config says of them.

    Args:
      optim: the config's `optim` part.
      spec: decides the default rate.
      steps: length of the run.

    Returns:
      The numbers, float32; the rates of every step. The scale is the model's.
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
    """The rate of every step."""
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
    """The gradient transformation of a step. Its state is that of every other step.

    Args:
      name: `adamw`, `sgd` or `loko`.
      now: the numbers of this step.
      groups: `"adapter"` or `"head"` for every trained array, by path.
      factors: from `multipliers`.
      budgets: of the components of low rank that stay on.
      outputs: of the model, an example.

    Returns:
      A transformation of trees like `groups`; that of `loko` takes what `surm.training.loko` says besides.
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
    """The average of the trained arrays after a step: dₜ·before + (1 − dₜ)·new with dₜ = min(decay, t/(t + 1)).

    So it is the plain mean of the first 1/(1 − decay) steps, then an exponential one that forgets the earlier ones.

    Args:
      before: the average before the step; of the first step not counted.
      new: the arrays after the step.
      decay: from 0, which gives `new`, to 1, which gives the mean of all steps.
      step: t, steps before this one.

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
    """Weight decay is for kernels and adapters; biases, shifts, magnitudes and the scales of norms go without."""
    return {path: path.rpartition(".")[2] not in ("bias", "scale", "shift", "magnitude") for path in arrays}
