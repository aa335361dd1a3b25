"""The arguments that `config.data.template_arguments` gives to a chat template."""

import ast
import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from surm.errors import InputError

CLOCK = "strftime_now"
"""The function by which templates read the clock, and the argument that stops it at a date."""


def parsed_arguments(text: str) -> dict[str, Any]:
    """Parses `config.data.template_arguments`, such as `enable_thinking=False`.

    Args:
      text: arguments as in a call in Python, with literal values; may be empty.

    Returns:
      The arguments by name. A date `strftime_now='2026-11-30'` becomes the function that templates call.

    Raises:
      InputError: if the text is not of that form.

    Examples:
      >>> parsed_arguments("enable_thinking=False, date_string='26 Jul 2024'")
      {'enable_thinking': False, 'date_string': '26 Jul 2024'}
    """
    found = dict(_arguments(text))
    if CLOCK in found:
        try:
            found[CLOCK] = datetime.date.fromisoformat(found[CLOCK]).strftime
        except (TypeError, ValueError) as error:
            said = f"config.data.template_arguments says {CLOCK}={found[CLOCK]!r}"
            raise InputError(f"{said}, expected a date such as '2026-11-30'") from error
    return found


def _arguments(text: str) -> Iterator[tuple[str, Any]]:
    expected = f"config.data.template_arguments={text!r}, expected such as enable_thinking=False"
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        own = [one for one in call.keywords if one.arg in (None, "messages", "add_generation_prompt")]
        if own or call.args or not isinstance(call.func, ast.Name):
            raise InputError(f"{expected}, and neither messages nor add_generation_prompt")
        yield from ((one.arg, ast.literal_eval(one.value)) for one in call.keywords)
    except (SyntaxError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{expected}: names with values of Python, between commas") from error


def fixed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a template whose texts are the same on every day, as those that are learned have to be.

    A stopped run goes on with the texts that it began with. With these arguments, rendering raises InputError if the
    template reads the clock and no argument sets it.
    """

    def refuse(form: str) -> str:
        raise InputError(
            "it writes the date of today, so a run could not go on tomorrow; expected a date in "
            f"config.data.template_arguments, such as {CLOCK}='{datetime.date.today()}'"
        )

    return {CLOCK: refuse, **arguments}
