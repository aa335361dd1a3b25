"""The optimiser of a run: one schedule, separate rates and decays for adapter and head."""

import jax
import ml_collections
import optax

from surm.peft.spec import PeftSpec

LEARNING_RATES: dict[str, float] = {
    "circulant": 1e-3,
    "skew_circulant": 1e-3,
    "toeplitz": 4e-3,
    "kronecker": 1.6e-2,
    "low_displacement_rank": 1e-3,
    "low_rank": 4e-3,  # between the best of rank 1, 1.6e-2, and of rank 8, 1e-3
    "block_circulant": 1e-3,
}
"""AdamW's rate for each family where a config gives none: the best of the three tried on CIFAR-10 with vit_micro
(experiments/vit_families/results); skew_circulant and block_circulant are set as circulant, unmeasured."""

METHOD_LEARNING_RATES: dict[str, float] = {"bottleneck": 1e-3, "full": 3e-4, "bitfit": 2e-3}
"""AdamW's rate for the methods that have no family; customary values, unmeasured here."""


def learning_rate(optim: ml_collections.ConfigDict, spec: PeftSpec) -> float:
    """The peak rate of what the method trains: the config's, else its own; of the method `head` the head's."""
    if spec.method == "head":
        return optim.head_learning_rate
    if optim.learning_rate is not None:
        return optim.learning_rate
    return METHOD_LEARNING_RATES.get(spec.method, LEARNING_RATES[spec.family])


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
