"""The common form of updates between surm's families and PEFT's adapter types, and helpers to read these types."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from surm.errors import InputError
from surm.machine.notes import say


class Update(NamedTuple):
    """One layer's trained matrix, scale·ΔW, in the terms of a `PeftSpec`.

    Attributes:
      family: a key of `surm.matrices.FAMILIES`.
      options: the options of the family.
      params: the parameters of the family; ΔW is n_out×n_in.
      n_out: rows.
      n_in: columns.
      scale: the factor of ΔW.
      dropout: the rate of dropout of the input in training.
      magnitude: the norms of the updated weight's rows, if they train separately.
    """

    family: str
    options: Mapping[str, Any]
    params: dict[str, np.ndarray]
    n_out: int
    n_in: int
    scale: float = 1.0
    dropout: float = 0.0
    magnitude: np.ndarray | None = None


Tensors = dict[str, dict[str, np.ndarray]]
"""Arrays by the name of the module in transformers and, below it, the rest of the key."""

ELSEWHERE = (
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "runtime_config",
)  # fmt: skip
"""Fields of every config that describe the file or name layers; they are ignored because tensors name their layers."""


def check_fields(
    where: str,
    config: Mapping[str, Any],
    reads: Mapping[str, Any],
    training: Iterable[str],
    accepts: Mapping[str, tuple] | None = None,
    reasons: Mapping[str, str] | None = None,
) -> None:
    """Refuses a config that sets an option which surm does not support.

    Args:
      where: the name of the file.
      config: its contents.
      reads: the fields that are read.
      training: the fields that matter only before or during training.
      accepts: the fields that may have only certain values.
      reasons: the reasons why other fields are not supported, by field.

    Raises:
      InputError: if there is such an option; the message names the first one and the supported values.
    """
    why = {name: f" ({reason})" for name, reason in (reasons or {}).items()}
    for name, values in (accepts or {}).items():
        if name in config and not any(config[name] is value or config[name] == value for value in values):
            supported = f"{', '.join(map(repr, values))}{why.get(name, '')}"
            raise InputError(f"{where} says {name}={config[name]!r}; supported: {supported}")
    known = {*ELSEWHERE, *reads, *training, *(accepts or {})}
    for name in sorted(config.keys() - known):
        if config[name] not in (None, False, "none", "", [], {}):
            supported = ", ".join((*reads, *(accepts or {})))
            given = f"{where} says {name}={str(config[name])[:80]}"
            raise InputError(f"{given}, which is not supported{why.get(name, '')}; supported: {supported}")


def number_for(config: Mapping[str, Any], name: str, default: int, pattern_name: str, module: str) -> float:
    """A number of the config for a module, found as PEFT finds it.

    Args:
      config: the JSON of PEFT.
      name: the name of the field.
      default: the value if the config has none.
      pattern_name: the field that maps patterns of modules to other numbers; the first match counts.
      module: the module's name in transformers.

    Returns:
      The number.

    Raises:
      InputError: if it is not a finite number, or a pattern is not a regular expression.
    """
    patterns = config.get(pattern_name) or {}
    if not isinstance(patterns, dict):
        raise InputError(f"{pattern_name}={patterns!r} in the adapter's config, expected an object")
    for pattern, value in patterns.items():
        try:
            found = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise InputError(f"{pattern_name} holds {pattern!r}, which is not a regular expression: {error}") from error
        if found:
            return _finite(f"{pattern_name}[{pattern!r}]", value)
    return number_of(config, name, default)


def number_of(config: Mapping[str, Any], name: str, default: int) -> float:
    """A number of the config that applies to all modules; InputError if it is not a finite number."""
    return _finite(name, config.get(name, default))


def rate(config: Mapping[str, Any], name: str) -> float:
    """A field with a rate of dropout, 0 if it is missing; InputError if the value is not in [0, 1)."""
    value = config.get(name, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InputError(f"{name}={value!r} in the adapter's config, expected a number of at least 0 and below 1")
    return float(value)


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name}={value!r} in the adapter's config, expected a finite number")
    return float(value)


def whole(value: float) -> float | int:
    """A number as people write it: 16 rather than 16.0."""
    return int(value) if value == int(value) else value


def take(module: str, tensors: dict[str, np.ndarray], *form: str, axes: int = 2) -> list[np.ndarray]:
    """The tensors of a module in the order of a form, as float32.

    Args:
      module: the name of the module, for messages.
      tensors: the tensors by the rest of their keys.
      *form: the rests of keys that must be there, without any others.
      axes: the number of axes that each must have.

    Returns:
      The tensors.

    Raises:
      InputError: if there are other tensors, or one belongs to another kind of layer, such as a convolution.
    """
    if sorted(form) != sorted(tensors):
        given = ", ".join(sorted(tensors)) or "none"
        raise InputError(f"{module} has the tensors {given}; supported: {', '.join(form)}")
    for name in form:
        if tensors[name].ndim != axes or tensors[name].size == 0:
            shape = tensors[name].shape
            raise InputError(f"{module}.{name} has shape {shape}, expected the {axes} axes of a linear layer's adapter")
    return [np.asarray(tensors[name], np.float32) for name in form]


def usual(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most frequent value, and the modules with other values, which is how PEFT stores differences."""
    most = Counter(values.values()).most_common(1)[0][0]
    return most, {module: value for module, value in values.items() if value != most}


def one_dropout(updates: Mapping[str, Update]) -> float:
    """The dropout of most updates, because PEFT has one for all; a notice tells if others differ."""
    dropout, others = usual({module: update.dropout for module, update in updates.items()})
    if others:
        say(f"PEFT has one dropout for all layers: {dropout:g} is written, not that of {min(others)}")
    return dropout


def refuse_magnitude(updates: Mapping[str, Update], peft_type: str) -> None:
    """Raises InputError if an update has a magnitude, for types of PEFT without one."""
    for module, update in updates.items():
        if update.magnitude is not None:
            raise InputError(f"{module} has magnitude=True, which PEFT has for family='low_rank', not for {peft_type}")


def parameter_place(trainable: dict[str, jax.Array], path: str, name: str) -> str:
    """The key, in the trained arrays of `surgery.split`, of a family's parameter of the layer at a path."""
    (place,) = (key for key in trainable if key.startswith(f"{path}.delta.") and key.endswith(f".{name}"))
    return place
