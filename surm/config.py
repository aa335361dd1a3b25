"""Every key a config may have, with its default, and the check that a config has no other.

A file under `configs/` starts from `default()` and changes what differs; keys not listed here cannot be set.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from surm import ranges
from surm.data import tokens
from surm.errors import InputError, nearest
from surm.peft.spec import METHODS, PeftSpec
from surm.tasks import choosing, metrics


def default() -> ml_collections.ConfigDict:
    """The configuration of a run, every key at its default; locked, so that a mistyped key is an error.

    Returns:
      data:   `source` (`digits`; `tfds:NAME`; a path to an .npz, to a folder of images or tables, or to one table),
              `data_dir` (of TFDS), `train_examples` (a class-balanced subset; 0 = all), `validation_examples` (taken
              out of the training split to serve as the validation split; 0 = none), `test_examples` (likewise as the
              held-out split of a source that has none), `subset_seed` of all three, `eval_split` (`test` or
              `validation`), `sampling` (`uniform`, or `balanced`: every class equally often), `threads`; of images
              `augment` (`none` or `crop_flip`) and `image_column` (of a table; `auto`: its only one); of texts `task`
              (of GLUE, `classification` or `regression`; `auto`: by the folder's name), `text_columns` (of tables of
              one's own; `label_column` of images in tables, too), `tokenizer` (a folder, followed as transformers does;
              a tokenizer.json, used as it stands; empty: the weights' folder), `lengths` in tokens that batches are
              filled up to (longer texts are cut to the last, or to the tokenizer's model_max_length).
      model:  `name` (a preset, or `auto`: what the weights say), `weights` (`none`; `asset:NAME`; a folder or file;
              `hf:OWNER/NAME`; `package:NAME`), `image_size` in pixels (0 = the preset's), `pooling` (`class`, `mean`,
              or `auto`: what the weights say), `dropout` in the frozen model itself (of texts), `dtype` to compute in
              and to keep frozen matrices in (what trains is float32), `remat`: whether the backward pass computes
              every block again, which spares memory (on a CPU from jax 0.12 on).
      peft:   the fields of `surm.PeftSpec`, options and patterns as strings; `train` is what trains besides.
      eval:   `metrics` (of `surm.tasks.metrics`, separated by commas, the first is the main one; empty: the task's
              own), `choose` (whose adapter is saved and measured: the `last` step's, or that of the `best` main metric
              or the `least_loss` on the validation split, looked at every `eval_every_steps`; the test split is
              measured once, with it), `patience` (so many looks without a better one end the run; 0 = off).
      optim:  `name` (`adamw`, `sgd`, or `loko`, a Kalman filter, whose rates are the variances that it starts from),
              `learning_rate` (None = the method's and family's own), `head_learning_rate`, `weight_decay`,
              `head_weight_decay` (biases and norms are never decayed), `momentum` (of sgd), `schedule` (`cosine`,
              `linear` or `constant`), `warmup_fraction` of all steps, `gradient_clip` (global norm; 0 =
              off), `label_smoothing`, `class_weights` (of the loss: `none`; `balanced`, by how rare a class is;
              `1,2.5,1` in the order of the classes; `cat=2.5` by name), `batch_size`, and `epochs` or `steps` (0 = not
              given; one of them, not both).
              `accumulation_steps` (parts that a batch is taken in, one after the other: the same step with less
              memory, but for dropout, which is drawn anew for every part), `ema_decay` (of an average of the trained
              arrays, which is what is measured and saved; 0 = none), `head_first_fraction` (of the steps, in which the
              head trains alone and after which it rests; None = the method's own, for most 0: both all the time; what
              rests still counts in `gradient_clip`).
      mesh:   how the devices are used, see `surm.machine.mesh`: `data` (batches are spread over it) and `model` devices
              (-1 = all that is left), `shard_base` (whether the frozen base is spread over all of them),
              `shard_members` (whether `data` holds the members of a population instead).
      population (of runs that train together, as `seed=0|1|2,learning_rate=1e-3|3e-3`; see `surm.training.population`),
      members_at_once (how many of them a step computes side by side; 0 = one on a CPU, else all),
      seed, init_adapter (a folder to start from), log_every_steps, eval_every_steps and checkpoint_every_steps
      (0 = at the end only; a run that is asked to stop saves one too), keep_checkpoints (of the newest) and
      keep_best_checkpoints (besides, of those that were saved right after an evaluation, by the main metric),
      writers (what shows metrics beside metrics.jsonl: `tensorboard`, `wandb` or `tensorboard,wandb`),
      profile_steps (how many are traced by JAX's profiler, after the first three, into the run's folder `profile`).
    """
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_adapter = ""
    config.log_every_steps = 10
    config.eval_every_steps = 0
    config.checkpoint_every_steps = 200
    config.keep_checkpoints = 2
    config.keep_best_checkpoints = 0
    config.writers = ""
    config.profile_steps = 0
    config.population = ""
    config.members_at_once = 0

    config.data = ml_collections.ConfigDict()
    config.data.source = "digits"
    config.data.data_dir = ""
    config.data.train_examples = 0
    config.data.validation_examples = 0
    config.data.test_examples = 0
    config.data.subset_seed = 0
    config.data.eval_split = "test"
    config.data.augment = "none"
    config.data.sampling = "uniform"
    config.data.threads = 2
    config.data.task = "auto"
    config.data.text_columns = "sentence"
    config.data.label_column = "label"
    config.data.image_column = "auto"
    config.data.tokenizer = ""
    config.data.lengths = "16,32,64,96,128"

    config.model = ml_collections.ConfigDict()
    config.model.name = "auto"
    config.model.weights = "asset:vit_micro"
    config.model.image_size = 0
    config.model.pooling = "auto"
    config.model.dropout = 0.0
    config.model.dtype = "float32"
    config.model.remat = False

    config.peft = ml_collections.ConfigDict()
    config.peft.method = "update"
    config.peft.family = "circulant"
    config.peft.options = ""
    config.peft.targets = ""
    config.peft.rules = ""
    config.peft.exclude = ""
    config.peft.train = "head"
    config.peft.scale = 1.0
    config.peft.magnitude = False
    config.peft.dropout = 0.0
    config.peft.path = "auto"
    config.peft.activation = "gelu"

    config.eval = ml_collections.ConfigDict()
    config.eval.metrics = ""
    config.eval.choose = "last"
    config.eval.patience = 0

    config.optim = ml_collections.ConfigDict()
    config.optim.name = "adamw"
    config.optim.learning_rate = config_dict.placeholder(float)
    config.optim.head_learning_rate = 5e-3
    config.optim.weight_decay = 0.0
    config.optim.head_weight_decay = 0.0
    config.optim.momentum = 0.9
    config.optim.schedule = "cosine"
    config.optim.warmup_fraction = 0.05
    config.optim.gradient_clip = 0.0
    config.optim.label_smoothing = 0.0
    config.optim.class_weights = "none"
    config.optim.batch_size = 64
    config.optim.accumulation_steps = 1
    config.optim.ema_decay = 0.0
    config.optim.epochs = 0
    config.optim.steps = 0
    config.optim.head_first_fraction = config_dict.placeholder(float)

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1
    config.mesh.model = 1
    config.mesh.shard_base = False
    config.mesh.shard_members = False
    return config.lock()


def check(config: ml_collections.ConfigDict) -> None:
    """Checks keys and the values that only make sense together.

    Args:
      config: a run's configuration.

    Raises:
      InputError: for an unknown or missing key (the nearest known one is named) or a value out of range.
    """
    known, given = dict(leaves(default())), dict(leaves(config))
    for key in given:
        check_key(key, known)
    for key in known:
        if key not in given:
            raise InputError(f"config lacks the key {key!r}; start from surm.config.default()")
    ranges.check(given)
    if not config.optim.epochs and not config.optim.steps:
        raise InputError("neither config.optim.epochs nor config.optim.steps is given: how long shall it train?")
    if config.optim.epochs and config.optim.steps:
        raise InputError(
            "config.optim.epochs and config.optim.steps exclude each other: give one of them, "
            f"got epochs={config.optim.epochs} and steps={config.optim.steps}"
        )
    if config.mesh.shard_members and not config.population:
        raise InputError("config.mesh.shard_members is set, but config.population is empty")
    if config.optim.name == "sgd" and config.optim.learning_rate is None and config.peft.method != "head":
        raise InputError("config.optim.name='sgd' needs config.optim.learning_rate: the defaults are AdamW's")
    tokens.lengths_of(config.data.lengths)
    choosing.check(config)
    metrics.listed(config.eval.metrics)
    _check_optimizer(config, spec(config))


def _check_optimizer(config: ml_collections.ConfigDict, spec: PeftSpec) -> None:
    """Refuses what an optimiser does not do."""
    own = METHODS[spec.method].optimizer
    if own and config.optim.name not in (own, default().optim.name):
        raise InputError(
            f"config.optim.name={config.optim.name!r}, but config.peft.method={spec.method!r} trains by {own}"
        )
    if "loko" not in (own, config.optim.name):
        return
    unread = {"accumulation_steps": 1, "gradient_clip": 0.0, "weight_decay": 0.0, "head_weight_decay": 0.0}
    for key, expected in unread.items():
        if config.optim[key] != expected:
            raise InputError(
                f"config.optim.{key}={config.optim[key]}, but loko has no gradient to do that to; expected {expected}"
            )
    if config.optim.class_weights != "none":
        raise InputError(
            f"config.optim.class_weights={config.optim.class_weights!r}, but loko has no loss to weigh; expected "
            "'none'; config.data.sampling='balanced' works with it"
        )
    if any(one.training.get("penalty") for one in (spec, *spec.ruled())):
        raise InputError(
            "loko has no loss that a family could add a penalty to; expected config.peft.options=penalty=0"
        )


def check_key(key: str, known: Mapping[str, object]) -> None:
    """Raises InputError, naming the nearest known ones, if a dotted key is not known."""
    if key not in known:
        raise InputError(f"config has no key {key!r}; {nearest(key, known)}")


def arguments(text: str, known: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Parses the arguments behind the colon of `--config=FILE:NAME=VALUE,...`.

    Args:
      text: what stands behind the colon; may be empty.
      known: every argument with its values, the default first.

    Returns:
      A value for every argument.

    Raises:
      InputError: for an unknown argument or value; the nearest known ones are named.

    Examples:
      >>> arguments("family=toeplitz", {"family": ("circulant", "toeplitz"), "task": ("mrpc", "cola")})
      {'family': 'toeplitz', 'task': 'mrpc'}
    """
    chosen = {name: values[0] for name, values in known.items()}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in known:
            raise InputError(f"the config takes no argument {name!r}; {nearest(name, known)}")
        if value not in known[name]:
            raise InputError(f"the config's argument {name}={value!r}; {nearest(value, known[name])}")
        chosen[name] = value
    return chosen


def spec(config: ml_collections.ConfigDict) -> PeftSpec:
    """The `PeftSpec` that `config.peft` describes."""
    return PeftSpec(**config.peft.to_dict())


def of_an_earlier_run(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A configuration as a run wrote it down, with the keys that came later at their defaults.

    Args:
      values: what the run's JSON holds.

    Returns:
      The configuration; not yet checked.
    """
    later = default().to_dict()
    both = {key: {**later[key], **value} if isinstance(later.get(key), dict) and isinstance(value, dict) else value
            for key, value in values.items()}  # fmt: skip
    return ml_collections.ConfigDict({**later, **both})


def differences(one: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> list[str]:
    """The dotted keys in which two configurations differ, with both values."""
    first, second = dict(leaves(one)), dict(leaves(other))
    return [f"{key}: {first.get(key)!r} against {second.get(key)!r}"
            for key in sorted(first.keys() | second.keys())
            if first.get(key) != second.get(key)]  # fmt: skip


def apply_durations(config: ml_collections.ConfigDict, overrides: dict[str, object]) -> None:
    """Lets `steps` from the command line replace the file's `epochs`, and the other way round.

    Args:
      config: changed in place.
      overrides: what the command line set, by dotted key.
    """
    if "optim.steps" in overrides and "optim.epochs" not in overrides:
        config.optim.epochs = 0
    elif "optim.epochs" in overrides and "optim.steps" not in overrides:
        config.optim.steps = 0


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every dotted key of a configuration with its value."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict | dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
