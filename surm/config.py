"""Every key that a config may have, and what a config comes to.

A file under `configs/` starts from `default()` and changes what differs; keys that are not declared cannot be set.
docs/config.md and `surm train --help` list them all. Only a config that is looked at as a whole waits for jax.
"""

import dataclasses
import math
from collections.abc import Mapping
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
    "what is trained, and how it enters: the fields of `surm.PeftSpec` as text (docs/methods.md)",
    {
        "method": Key("update", "How the model is adapted.", registry="surm.peft.spec.METHODS"),
        "family": Key("circulant", "The family of matrices that is trained.", registry="surm.matrices.FAMILIES"),
        "options": Key(
            "",
            "Options of the family or the method, with commas between, such as `rank=8`; empty leaves their defaults.",
        ),
        "targets": Key("", "A regular expression for the layers that are adapted; empty is the method's own."),
        "rules": Key(
            "",
            "Other families, options or scales for what a pattern matches, such as "
            "`.*value => family=low_rank, rank=2; .*up => off`.",
        ),
        "exclude": Key("", "A regular expression for layers that are not adapted, whatever else matches them."),
        "train": Key("head", "A regular expression for additional variables to train."),
        "scale": Key(1.0, "The factor of the update; of a method with updates."),
        "magnitude": Key(
            False, "Whether the norms of the rows of an updated weight train by themselves, as in DoRA; of updates."
        ),
        "dropout": Key(0.0, "The rate of dropout of the input of the update or adapter, from 0 to less than 1."),
        "path": Key(
            "auto",
            "How the trained matrix is multiplied by: `branch`, `branch_dft`, `branch_dense`, `fused`, `fused_dense`, "
            "or `auto`, which is the quickest by what was measured. The result is the same up to rounding.",
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
"""Every section of a config by its name; the keys of the first one stand in no section."""

KEYS: dict[str, Key] = {
    f"{section}.{name}".lstrip("."): key for section, (_, keys) in SECTIONS.items() for name, key in keys.items()
}
"""Every key by its dotted name."""


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
    """What a config comes to, parsed and checked once.

    Attributes:
      config: the configuration, for keys that are taken as they stand.
      spec: what is trained, and how it enters.
      optimizer: the method's own optimiser, else that of the config.
      head_first_fraction: the share of the steps in which the head trains alone, and after which it rests; 0 for both
        all the time.
      metrics: those that the config lists; empty for the task's own.
      lengths: the lengths in tokens that batches of texts are filled up to, the shortest first.
    """

    config: ml_collections.ConfigDict
    spec: "surm.peft.spec.PeftSpec"
    optimizer: str
    head_first_fraction: float
    metrics: tuple[str, ...]
    lengths: tuple[int, ...]

    def total_steps(self, examples: int) -> int:
        """The length of the run in steps, with so many training examples."""
        optim = self.config.optim
        return optim.steps or optim.epochs * math.ceil(examples / optim.batch_size)


def checked(config: ml_collections.ConfigDict | Plan) -> Plan:
    """Checks the keys and values of a config, and those that only make sense together.

    Args:
      config: a run's configuration; a plan, which has been checked, is returned as it is.

    Returns:
      What it comes to.

    Raises:
      InputError: for an unknown or missing key (the nearest known one is named), or a value that cannot be used.
    """
    from surm.tasks import metrics

    if isinstance(config, Plan):
        return config
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
    """Checks a config as `checked` does, for whoever has no use for what it comes to."""
    checked(config)


def optimizer_name(optim: ml_collections.ConfigDict, spec: "surm.peft.spec.PeftSpec") -> str:
    """What trains: the method's own optimiser, else the one that a config's `optim` part names."""
    from surm.peft.spec import METHODS

    return METHODS[spec.method].optimizer or optim.name


def head_first_fraction(optim: ml_collections.ConfigDict, spec: "surm.peft.spec.PeftSpec") -> float:
    """The share of the steps in which the head trains alone, and after which it rests; 0 for both all the time."""
    from surm.peft.spec import METHODS

    own = METHODS[spec.method].head_first_fraction
    return own if optim.head_first_fraction is None else optim.head_first_fraction


def _check_values(config: ml_collections.ConfigDict) -> None:
    """Refuses a key that there is not, one that is missing, and a value out of its key's range."""
    given = dict(leaves(config))
    for name in given:
        check_key(name, KEYS)
    for name in KEYS:
        if name not in given:
            raise InputError(f"config lacks the key {name!r}; start from surm.config.default()")
    for name, key in KEYS.items():
        key.check(name, given[name])


def _check_durations(config: ml_collections.ConfigDict) -> None:
    """Refuses a run without a length, and one with two."""
    epochs, steps = config.optim.epochs, config.optim.steps
    if not epochs and not steps:
        raise InputError("neither config.optim.epochs nor config.optim.steps is given: how long shall it train?")
    if epochs and steps:
        raise InputError(
            "config.optim.epochs and config.optim.steps exclude each other: give one of them, "
            f"got epochs={epochs} and steps={steps}"
        )


def _check_optimizer(plan: Plan) -> None:
    """Refuses what an optimiser does not do."""
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
                f"config.optim.{name}={config.optim[name]}, but loko has no gradient to do that to; expected {expected}"
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


def spec(config: ml_collections.ConfigDict) -> "surm.peft.spec.PeftSpec":
    """The `PeftSpec` that `config.peft` describes."""
    from surm.peft.spec import PeftSpec

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
