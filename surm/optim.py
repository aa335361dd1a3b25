"""The optimiser of a run: one schedule, separate rates and decays for adapter and head."""

import math

import jax
import ml_collections
import optax

from surm import matrices
from surm.peft.spec import PeftSpec

_LOW_RANK = matrices.options("low_rank")["rank"]

LEARNING_RATES: dict[str, float] = {
    "circulant": 1e-3,
    "skew_circulant": 1e-3,
    "toeplitz": 3e-3,
    "kronecker": 1e-2,
    "low_displacement_rank": 3e-3,
    "low_rank": 1e-2,  # of rank 1; of rank r by √r less, as its rows move by √r more in a step
    "block_circulant": 1e-3,
}
"""AdamW's rate for an update of each family where a config gives none: near the best of those tried on MRPC with
MiniLM (experiments/glue_methods/results) and within half a point of the best on CIFAR-10 with vit_micro
(experiments/vit_families/results); skew_circulant and block_circulant are set as circulant, unmeasured. Some tasks want
less: on CoLA toeplitz and low_displacement_rank learnt at 8e-4, and nothing at 3e-3."""

ADAPTER_LEARNING_RATES: dict[str, float] = {
    "circulant": 8e-3,
    "skew_circulant": 8e-3,
    "toeplitz": 2e-3,
    "kronecker": 8e-3,
    "low_displacement_rank": 2e-3,
    "low_rank": 8e-3,
    "block_circulant": 8e-3,
}
"""The same of adapters; measured, on MRPC, for circulant, kronecker and low_displacement_rank (best at 1.6e-3), the
others set by them, unmeasured."""

METHOD_LEARNING_RATES: dict[str, float] = {"bottleneck": 1e-3, "full": 5e-5, "bitfit": 2e-3}
"""AdamW's rate for the methods that have no family; bottleneck as measured on MRPC, full near the best on CoLA (4e-5),
three times below that on MRPC and SST-2, bitfit customary."""


def learning_rate(optim: ml_collections.ConfigDict, spec: PeftSpec) -> float:
    """The peak rate of what the method trains: the config's, else its own; of the method `head` the head's."""
    if spec.method == "head":
        return optim.head_learning_rate
    if optim.learning_rate is not None:
        return optim.learning_rate
    if spec.method in METHOD_LEARNING_RATES:
        return METHOD_LEARNING_RATES[spec.method]
    if spec.method == "adapter":
        return ADAPTER_LEARNING_RATES[spec.family]
    rate = LEARNING_RATES[spec.family]
    return rate / math.sqrt(spec.options.get("rank", _LOW_RANK)) if spec.family == "low_rank" else rate


def summary(optim: ml_collections.ConfigDict, spec: PeftSpec) -> str:
    """The peak rates in a line, and whose choice they are."""
    head = f"head {optim.head_learning_rate:g}"
    if spec.method == "head":
        return f"learning rate: {head}"
    whose = "the default" if optim.learning_rate is None else "by the config"
    return f"learning rate: {spec.method} {learning_rate(optim, spec):g} ({whose}), {head}"


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


def optimizer(
    optim: ml_collections.ConfigDict, spec: PeftSpec, groups: dict[str, str], steps: int
) -> optax.GradientTransformation:
    """The gradient transformation of a run.

    Args:
      optim: the config's `optim` part.
      spec: decides the default rate.
      groups: `"adapter"` or `"head"` for every trained array, by path.
      steps: length of the run.

    Returns:
      A transformation of trees like `groups`.
    """
    rate = learning_rate(optim, spec)
    each = optax.partition(
        {
            "adapter": _one(optim, schedule(optim, rate, steps), optim.weight_decay),
            "head": _one(optim, schedule(optim, optim.head_learning_rate, steps), optim.head_weight_decay),
        },
        groups,
    )
    return optax.chain(optax.clip_by_global_norm(optim.gradient_clip), each) if optim.gradient_clip else each


def _one(optim: ml_collections.ConfigDict, rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    if optim.name == "adamw":
        return optax.adamw(rate, weight_decay=decay, mask=_decayed)
    return optax.chain(
        optax.add_decayed_weights(decay, mask=_decayed), optax.sgd(rate, momentum=optim.momentum or None)
    )


def _decayed(arrays: dict[str, jax.Array]) -> dict[str, bool]:
    """Weight decay is for kernels and adapters; biases, shifts and the scales of norms go without."""
    return {path: path.rpartition(".")[2] not in ("bias", "scale", "shift") for path in arrays}
