"""What a config's numbers and names may be, each looked at by itself."""

from collections.abc import Mapping

from surm.data.pipeline import AUGMENTATIONS
from surm.errors import InputError

AT_LEAST: dict[str, int] = {
    "checkpoint_every_steps": 0,
    "data.test_examples": 0,
    "data.threads": 1,
    "data.train_examples": 0,
    "data.validation_examples": 0,
    "eval.patience": 0,
    "eval_every_steps": 0,
    "keep_best_checkpoints": 0,
    "keep_checkpoints": 1,
    "log_every_steps": 1,
    "members_at_once": 0,
    "model.image_size": 0,
    "optim.accumulation_steps": 1,
    "optim.batch_size": 1,
    "optim.ema_decay": 0,
    "optim.epochs": 0,
    "optim.gradient_clip": 0,
    "optim.head_first_fraction": 0,
    "optim.head_learning_rate": 0,
    "optim.head_weight_decay": 0,
    "optim.label_smoothing": 0,
    "optim.learning_rate": 0,
    "optim.momentum": 0,
    "optim.steps": 0,
    "optim.warmup_fraction": 0,
    "optim.weight_decay": 0,
    "profile_steps": 0,
    "seed": 0,
}
AT_MOST: dict[str, int] = {
    "optim.ema_decay": 1,
    "optim.head_first_fraction": 1,
    "optim.label_smoothing": 1,
    "optim.momentum": 1,
    "optim.warmup_fraction": 1,
}
CHOICES: dict[str, tuple[str, ...]] = {
    "data.augment": AUGMENTATIONS,
    "data.eval_split": ("test", "validation"),
    "data.sampling": ("uniform", "balanced"),
    "eval.choose": ("last", "best", "least_loss"),
    "model.dtype": ("float32", "bfloat16"),
    "model.pooling": ("auto", "class", "mean"),
    "optim.name": ("adamw", "sgd", "loko"),
    "optim.schedule": ("cosine", "linear", "constant"),
}


def check(given: Mapping[str, object]) -> None:
    """Raises InputError for a value out of its range, or a name that is none of its key's.

    Args:
      given: every key of a config, dotted, with its value; None where the default is somebody else's.
    """
    for key, low in AT_LEAST.items():
        if given[key] is not None and not low <= given[key] < float("inf"):
            finite = "" if given[key] < low else ", and a finite number"
            raise InputError(f"config.{key}={given[key]}, expected at least {low}{finite}")
    for key, high in AT_MOST.items():
        if given[key] is not None and not given[key] <= high:
            raise InputError(f"config.{key}={given[key]}, expected at most {high}")
    for key in ("mesh.data", "mesh.model"):
        if given[key] != -1 and given[key] < 1:
            raise InputError(f"config.{key}={given[key]}, expected at least 1, or -1 for all that is left")
    for key, names in CHOICES.items():
        if given[key] not in names:
            raise InputError(f"config.{key}={given[key]!r}, expected {' or '.join(names)}")
