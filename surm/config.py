"""All keys of a config with their defaults, and the checks that turn a config into a `Plan`.

A config file starts from `default()` and sets the keys that differ; keys that are not declared cannot be set.
docs/config.md and `surm train --help` list them all. Importing this module does not import jax, but `checked` does.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_collections
from ml_collections import config_dict

from surm.data.config_keys import DATA, lengths_of
from surm.errors import InputError
from surm.machine.config_keys import MESH, RUN
from surm.machine.keys import Key, Section, check_key, leaves
from surm.machine.keys import arguments as arguments
from surm.machine.keys import differences as differences
from surm.models.config_keys import MODEL
from surm.tasks import choosing
from surm.tasks.config_keys import EVAL, OPTIM

if TYPE_CHECKING:
    import surm.peft.spec

_PEFT = Section(
    "how the model is adapted: the fields of `surm.PeftSpec` as text (docs/methods.md)",
    {
        "method": Key("update", "How the model is adapted.", registry="surm.peft.spec.METHODS"),
        "family": Key("circulant", "The family of the trained matrices.", registry="surm.matrices.FAMILIES"),
        "options": Key(
            "",
            "Options of the family or the method, separated by commas, such as `rank=8`; empty takes their defaults.",
        ),
        "targets": Key(
            "",
            "A regular expression for the paths of the layers to adapt; empty takes those that `rules` match, or else "
            "the method's default. For updates that is query, key and value in the attention of an encoder, and all "
            "linear layers in the blocks of a decoder.",
        ),
        "rules": Key(
            "",
            "Other families, options or scales for the layers that a pattern matches, such as "
            "`.*value => family=low_rank, rank=2; .*up => off`.",
        ),
        "exclude": Key("", "A regular expression for layers that are not adapted, even if `targets` matches them."),
        "train": Key(
            "head",
            "A regular expression for additional variables to train; the default trains nothing of a language model, "
            "which has no head of its own.",
        ),
        "scale": Key(1.0, "The factor of the update, LoRA's alpha/r; for methods with updates."),
        "magnitude": Key(
            False,
            "Whether the norms of the rows of an updated weight are trained separately, as in DoRA; for updates only.",
        ),
        "dropout": Key(0.0, "The dropout rate of the input of the update or adapter, from 0 to less than 1."),
        "path": Key(
            "auto",
            "How products with the trained matrix are computed: `branch`, `branch_dft`, `branch_dense`, `fused`, "
            "`fused_dft`, `fused_dense`, or `auto`, which takes the one that was measured to be fastest, by "
            "`surm calibrate` on this device if that was run. The result is the same up to rounding.",
        ),
        "activation": Key(
            "gelu",
            "The function inside an adapter or a bottleneck.",
            registry="surm.ops.activations.BRANCH_ACTIVATIONS",
        ),
    },
)

SECTIONS: dict[str, Section] = {
    "": RUN, "data": DATA, "model": MODEL, "peft": _PEFT, "eval": EVAL, "optim": OPTIM, "mesh": MESH
}  # fmt: skip
"""All sections of a config by name; the keys of the section "" stand at the top level."""

KEYS: dict[str, Key] = {
    f"{section}.{name}".lstrip("."): key for section, (_, keys) in SECTIONS.items() for name, key in keys.items()
}
"""All keys by dotted name."""


def default() -> ml_collections.ConfigDict:
    """The configuration of a run with every key at its default; locked, so that a mistyped key is an error."""
    config = ml_collections.ConfigDict()
    for name, section in SECTIONS.items():
        values = {
            key: config_dict.placeholder(float) if declared.default is None else declared.default
            for key, declared in section.keys.items()
        }
        config.update({name: values} if name else values)
    return config.lock()


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config, parsed and checked once.

    Attributes:
      config: the configuration itself, for keys that need no parsing.
      spec: how the model is adapted.
      optimizer: the method's own optimiser if it has one, else the config's.
      head_first_fraction: fraction of the steps, at the start, in which only the head trains; afterwards only the
        parameters of the method train. 0 trains both all the time.
      metrics: the metrics that the config lists; empty for the task's own.
      lengths: the lengths in tokens that batches of texts are padded to, in increasing order.
    """

    config: ml_collections.ConfigDict
    spec: "surm.peft.spec.PeftSpec"
    optimizer: str
    head_first_fraction: float
    metrics: tuple[str, ...]
    lengths: tuple[int, ...]

    def total_steps(self, examples: int) -> int:
        """The number of steps of a run on a number of training examples."""
        optim = self.config.optim
        return optim.steps or optim.epochs * math.ceil(examples / optim.batch_size)


def checked(config: ml_collections.ConfigDict | Plan) -> Plan:
    """Checks and parses a config: its keys, their values, and combinations of values.

    Args:
      config: a run's configuration. A plan is already checked and is returned unchanged.

    Returns:
      The plan.

    Raises:
      InputError: if a key is unknown (the nearest known one is named) or missing, or a value cannot be used.
    """
    if isinstance(config, Plan):
        return config
    from surm.tasks import metrics

    _check_values(config)
    _check_durations(config)
    if config.mesh.shard_members and not config.population:
        raise InputError("config.mesh.shard_members is set, but config.population is empty")
    if config.optim.name == "sgd" and config.optim.learning_rate is None and config.peft.method != "head":
        raise InputError("config.optim.name='sgd' needs config.optim.learning_rate: the defaults are AdamW's")
    lengths = lengths_of(config.data.lengths)
    choosing.check(config)
    listed, own = metrics.listed(config.eval.metrics), spec(config)
    plan = Plan(
        config=config,
        spec=own,
        optimizer=optimizer_name(config.optim, own),
        head_first_fraction=head_first_fraction(config.optim, own),
        metrics=listed,
        lengths=lengths,
    )
    _check_optimizer(plan)
    return plan


def check(config: ml_collections.ConfigDict) -> None:
    """Checks a config as `checked` does, without returning the plan."""
    checked(config)


def optimizer_name(optim: ml_collections.ConfigDict, spec: "surm.peft.spec.PeftSpec") -> str:
    """The optimiser of a run: the method's own if it has one, else the one that `config.optim` names."""
    from surm.peft.spec import METHODS

    return METHODS[spec.method].optimizer or optim.name


def head_first_fraction(optim: ml_collections.ConfigDict, spec: "surm.peft.spec.PeftSpec") -> float:
    """The fraction of the steps in which only the head trains before the adapter does; see `Plan`."""
    from surm.peft.spec import METHODS

    own = METHODS[spec.method].head_first_fraction
    return own if optim.head_first_fraction is None else optim.head_first_fraction


def _check_values(config: ml_collections.ConfigDict) -> None:
    """Refuses unknown keys, missing keys, and values outside of their key's range."""
    given = dict(leaves(config))
    for name in given:
        check_key(name, KEYS)
    for name in KEYS:
        if name not in given:
            raise InputError(f"config lacks the key {name!r}; start from surm.config.default()")
    for name, key in KEYS.items():
        key.check(name, given[name])


def _check_durations(config: ml_collections.ConfigDict) -> None:
    """Refuses a run for which neither or both of epochs and steps are given."""
    epochs, steps = config.optim.epochs, config.optim.steps
    if not epochs and not steps:
        raise InputError("neither config.optim.epochs nor config.optim.steps is given; set one of them")
    if epochs and steps:
        raise InputError(
            "config.optim.epochs and config.optim.steps exclude each other; set only one of them, "
            f"got epochs={epochs} and steps={steps}"
        )


def _check_optimizer(plan: Plan) -> None:
    """Refuses settings that the optimiser does not support."""
    config, spec = plan.config, plan.spec
    if config.optim.name not in (plan.optimizer, KEYS["optim.name"].default):
        raise InputError(
            f"config.optim.name={config.optim.name!r}, but config.peft.method={spec.method!r} trains by "
            f"{plan.optimizer}"
        )
    if plan.optimizer != "loko":
        return
    for name in ("accumulation_steps", "gradient_clip", "weight_decay", "head_weight_decay"):
        expected = KEYS[f"optim.{name}"].default
        if config.optim[name] != expected:
            raise InputError(
                f"config.optim.{name} must be {expected} with loko, which does not support it; got {config.optim[name]}"
            )
    if config.optim.class_weights != "none":
        raise InputError(
            f"config.optim.class_weights={config.optim.class_weights!r}, but loko has no loss to weight; expected "
            "'none'; config.data.sampling='balanced' works with it"
        )
    if any(one.training.get("penalty") for one in (spec, *spec.ruled())):
        raise InputError(
            "loko has no loss that a family could add a penalty to; expected config.peft.options=penalty=0"
        )


def spec(config: ml_collections.ConfigDict, default_train: Sequence[str] = ("head",)) -> "surm.peft.spec.PeftSpec":
    """The `PeftSpec` that `config.peft` describes.

    Args:
      config: a run's configuration.
      default_train: replaces `config.peft.train` if that has its default value.

    Returns:
      The spec.
    """
    from surm.peft.spec import PeftSpec

    given = config.peft.to_dict()
    if given["train"] == KEYS["peft.train"].default:
        given["train"] = tuple(default_train)
    return PeftSpec(**given)


def of_an_earlier_run(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The configuration of a run that an earlier version may have written.

    Args:
      values: the contents of the run's config.json.

    Returns:
      The configuration, not yet checked; keys that the file lacks have their defaults.
    """
    later = default().to_dict()
    both = {key: {**later[key], **value} if isinstance(later.get(key), dict) and isinstance(value, dict) else value
            for key, value in values.items()}  # fmt: skip
    return ml_collections.ConfigDict({**later, **both})


def apply_durations(config: ml_collections.ConfigDict, overrides: dict[str, object]) -> None:
    """Resets the config file's `epochs` to 0 if the command line sets `steps`, and vice versa.

    Args:
      config: the configuration, changed in place.
      overrides: the values that the command line set, by dotted key.
    """
    if "optim.steps" in overrides and "optim.epochs" not in overrides:
        config.optim.epochs = 0
    elif "optim.epochs" in overrides and "optim.steps" not in overrides:
        config.optim.steps = 0
