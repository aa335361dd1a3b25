"""The declaration and checks of config keys, and the comparison of two configs.

Each subpackage declares the keys that it reads in its `config_keys.py`; `surm.config` collects all of them.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import ml_collections

from surm.errors import InputError, nearest

Decision = Literal["free", "content", "length", "choice", "decides"]
"""The consequence of continuing a run with another value of a key.

free        the run continues, because the key cannot change the result (it says how data is read, what is shown or what
            is kept)
content     the run continues if the key names the same content in another place, which is compared when the checkpoint
            is opened
length      the run becomes longer or shorter, which is possible if no step depends on the total number of steps
choice      as `decides` if the best step is chosen (`config.eval.choose`), else as `free`
decides     the run is refused, because the key changes the result
"""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config. Its default, its check, its help and its row in docs/config.md are made from this record.

    Attributes:
      default: the value if none is given; None stands for a number that comes from elsewhere, as `meaning` explains.
      meaning: the effect of the key, in plain sentences.
      least: the smallest allowed number; None for no limit.
      most: the largest allowed number; None for no limit.
      beside: one further allowed number and its meaning, such as `(-1, "all that are left")`.
      choices: the allowed names; empty if the value is not a name, or if its reader checks it.
      registry: the dotted name of a dictionary whose keys are the allowed names, if its reader checks them.
      decision: the consequence of continuing a run with another value.
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
        """Raises InputError if a value is out of range or not one of the choices.

        Args:
          name: the dotted key, for the message.
          value: the value in a config; None is always accepted.
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
    """The keys of one section of a config by name, and the subject of the section for the help text."""

    about: str
    keys: Mapping[str, Key]


def check_key(key: str, known: Mapping[str, object]) -> None:
    """Raises InputError, which names the nearest known keys, if a dotted key is not known."""
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


def arguments(text: str, known: Mapping[str, Sequence[str] | str]) -> dict[str, str]:
    """Parses the arguments behind the colon of `--config=FILE:NAME=VALUE,...`.

    Args:
      text: the text behind the colon; may be empty.
      known: the allowed values of every argument, the default first; or a text, the default of an argument that takes
        any text without a comma.

    Returns:
      A value for every argument.

    Raises:
      InputError: if an argument or a value is unknown; the message names the nearest known ones.

    Examples:
      >>> arguments("family=toeplitz", {"family": ("circulant", "toeplitz"), "task": ("mrpc", "cola")})
      {'family': 'toeplitz', 'task': 'mrpc'}
    """
    chosen = {name: values if isinstance(values, str) else values[0] for name, values in known.items()}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in known:
            raise InputError(f"the config takes no argument {name!r}; {nearest(name, known)}")
        if not isinstance(known[name], str) and value not in known[name]:
            raise InputError(f"the config's argument {name}={value!r}; {nearest(value, known[name])}")
        chosen[name] = value
    return chosen
