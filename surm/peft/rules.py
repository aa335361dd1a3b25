"""Rules give the layers that a pattern matches another family, other options or another scale."""

import re
from collections.abc import Mapping
from typing import Any

from surm.errors import InputError, pasted
from surm.peft.options import parse_options

FIELDS = ("family", "options", "scale", "dropout", "magnitude")
"""The fields that may differ from layer to layer."""


def parse_rules(text: str) -> dict[str, dict[str, Any] | None]:
    """Parses `".*value => family=low_rank, rank=2; blocks\\.0\\..* => off"`.

    Args:
      text: rules `PATTERN => NAME=VALUE, ...` or `PATTERN => off`, separated by semicolons; may be empty.

    Returns:
      For every pattern the fields that it changes, where names that are not fields are in `options`; None for `off`.

    Raises:
      InputError: if a rule is not of that form, or a pattern is given twice.

    Examples:
      >>> parse_rules(".*value => family=low_rank, rank=2; .*key => off")
      {'.*value': {'family': 'low_rank', 'options': {'rank': 2}}, '.*key': None}
    """
    rules: dict[str, dict[str, Any] | None] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        pattern, arrow, change = (piece.strip() for piece in part.partition("=>"))
        if not arrow or not pattern or not change:
            expected = "is not PATTERN => NAME=VALUE, ... or PATTERN => off"
            raise InputError(f"peft.rules={pasted(text)}: {pasted(part)} {expected}")
        if pattern in rules:
            raise InputError(f"peft.rules={pasted(text)} gives {pasted(pattern)} twice")
        rules[pattern] = None if change == "off" else _parsed_change(change)
    return rules


def _parsed_change(text: str) -> dict[str, Any]:
    named = [(part.partition("=")[0].strip(), part) for part in text.split(",")]
    families = [part.partition("=")[2].strip() for name, part in named if name == "family"]
    if len(families) > 1:
        raise InputError(f"peft.rules: {text!r} gives 'family' twice")
    given = parse_options(",".join(part for name, part in named if name != "family"), "peft.rules", FIELDS)
    change: dict[str, Any] = {"family": families[0]} if families else {}
    change |= {name: value for name, value in given.items() if name in FIELDS}
    options = {name: value for name, value in given.items() if name not in FIELDS}
    return change | ({"options": options} if options else {})


def claiming(rules: Mapping[str, Any], *names: str) -> tuple[list[str], bool]:
    """The patterns of the rules that match a layer.

    Args:
      rules: the rules by pattern; None stands for off.
      *names: the layer's dotted paths; there are several if the layer is used in several places.

    Returns:
      The patterns, and whether one of them is `off`. Without `off` there is at most one.

    Raises:
      InputError: if two rules match the layer and none of them is `off`.
    """
    found = [pattern for pattern in rules if any(re.fullmatch(pattern, name) for name in names)]
    off = any(rules[pattern] is None for pattern in found)
    if len(found) > 1 and not off:
        layer, two = " = ".join(names), " and ".join(map(pasted, found[:2]))
        raise InputError(f"{layer} is claimed by two rules, {two}; expected one at most")
    return found, off
