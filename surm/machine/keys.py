"""The keys of a config: how one is declared and checked, and how the keys of two configs are told apart.

A room declares the keys that it reads in its `config_keys.py`. `surm.config` declares the others and puts all together.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import ml_collections

from surm.errors import InputError, nearest

Decision = Literal["free", "content", "length", "choice", "decides"]
"""What follows where a run goes on with another value of a key than it began with.

free        nothing: the key cannot change the result, as it says how data is read, what is shown or what is kept
content     the key names a place; what lies there decides, and is compared when the checkpoint is opened
length      the run becomes longer or shorter, which is possible where no step depends on how many follow
choice      nothing, unless the best step is chosen: then the key decides
decides     the key changes the result, so that it is another run, and is refused
"""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config. Its default, its check, its help and its row in docs/config.md are made from this record.

    Attributes:
      default: the value where nobody gives one; None stands for a number that something else supplies, which the
        meaning names.
      meaning: what the key does, in plain sentences.
      least: the smallest number that it may be; None for no limit.
      most: the largest number that it may be; None for no limit.
      beside: one further number and what it stands for, such as `(-1, "all that is left")`.
      choices: the names that it may be; empty where it is no name, or where somebody else checks it.
      registry: the dotted name of the dictionary whose keys it may be, where the owner of the dictionary checks it.
      decision: what follows where a run goes on with another value.
    """

    default: bool | int | float | str | None
    meaning: str
    least: int | None = None
    most: int | None = None
    beside: tuple[int, str] | None = None
    choices: tuple[str, ...] = ()
    registry: str = ""
    decision: Decision = "decides"

    def check(self, name: str, value: Any) -> None:
        """Raises InputError for a value out of the range, or a name that is none of the choices.

        Args:
          name: the dotted key, for the message.
          value: what a config holds; None, where something else supplies the value, is never refused.
        """
        if self.choices and value not in self.choices:
            raise InputError(f"config.{name}={value!r}, expected {' or '.join(self.choices)}")
        if value is None or (self.beside and value == self.beside[0]):
            return
        if self.least is not None and not self.least <= value < float("inf"):
            finite = "" if value < self.least else ", and a finite number"
            also = f", or {self.beside[0]} for {self.beside[1]}" if self.beside else ""
            raise InputError(f"config.{name}={value}, expected at least {self.least}{finite}{also}")
        if self.most is not None and not value <= self.most:
            raise InputError(f"config.{name}={value}, expected at most {self.most}")


class Section(NamedTuple):
    """Keys that stand together in a config, by name, and what they are about."""

    about: str
    keys: Mapping[str, Key]


def check_key(key: str, known: Mapping[str, object]) -> None:
    """Raises InputError, naming the nearest known ones, if a dotted key is not known."""
    if key not in known:
        raise InputError(f"config has no key {key!r}; {nearest(key, known)}")


def leaves(config: ml_collections.ConfigDict | Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every dotted key of a configuration with its value."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict | dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differences(one: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> list[str]:
    """The dotted keys in which two configurations differ, with both values."""
    first, second = dict(leaves(one)), dict(leaves(other))
    return [
        f"{key}: {first.get(key)!r} against {second.get(key)!r}"
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    ]


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
