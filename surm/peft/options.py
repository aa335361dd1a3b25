"""Reads the options of a family or method from text and checks them."""

import ast
import math
from collections.abc import Mapping, Sequence
from typing import Any

from surm.errors import InputError, nearest

_KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "a pattern"}


def parse_options(text: str, key: str = "peft.options", fields: Sequence[str] = ()) -> dict[str, Any]:
    """Parses `"rank=8"` or `"terms=2,hadamard=False"`; values are Python literals.

    Args:
      text: name=value pairs separated by commas; may be empty.
      key: the config key of the text, for messages.
      fields: names of fields; a similar name counts as a misspelling of one of them.

    Returns:
      The options by name.

    Raises:
      InputError: if a part is not of the form name=value with a literal value, or a name is given twice.

    Examples:
      >>> parse_options("terms=2,hadamard=False")
      {'terms': 2, 'hadamard': False}
    """
    options = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name in options:
            raise InputError(f"{key}={text!r} gives {name!r} twice")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            if name not in fields and (near := nearest(name, fields)).startswith("nearest"):
                raise InputError(f"{key}={text!r}: no field is called {name!r}; {near}") from error
            raise InputError(
                f"{key}={text!r}: {part!r} is not NAME=VALUE with a number, True or False, as in rank=8"
            ) from error
    return options


def check_type(family: str, name: str, value: Any, default: Any) -> None:
    """Refuses a value of an option that has another type than its default, or is negative.

    Args:
      family: the family, for messages.
      name: the name of the option.
      value: the given value.
      default: the option's default; None stands for a whole number or None.

    Raises:
      InputError: if the value does not fit.
    """
    expected = int if default is None else type(default)
    fits = type(value) in ((int, float) if expected is float else (expected,))
    if not fits and not (value is None and default is None):
        raise InputError(f"{family}: {name}={value!r}, expected {_KINDS[expected]}")
    if expected is float and not 0 <= value < math.inf:
        raise InputError(f"{family}: {name}={value}, expected at least 0")


def check_schedule(whose: str, options: Mapping[str, Any]) -> None:
    """Refuses a schedule for the number of components that does not run forward."""
    if "begin" not in options:
        return
    begin, end, every = options["begin"], options["end"], options["every_steps"]
    if not 0 <= begin < end <= 1 or every < 1:
        raise InputError(
            f"{whose}: begin={begin}, end={end}, every_steps={every}, expected shares of the training with "
            "0 <= begin < end <= 1, and at least every step"
        )
