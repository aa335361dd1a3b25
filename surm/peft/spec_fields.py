"""The types of the fields of a `PeftSpec`, as they may be given, and how messages call them."""

from collections.abc import Mapping, Sequence

from surm.errors import InputError

TYPES: dict[str, type | tuple[type, ...]] = {
    "method": str, "family": str, "activation": str, "path": str, "options": (str, Mapping), "targets": (str, Sequence),
    "train": (str, Sequence), "scale": (int, float), "dropout": (int, float), "rules": (str, Mapping),
    "exclude": (str, Sequence), "magnitude": bool,
}  # fmt: skip
"""The accepted types of every field."""

IN_WORDS = {
    str: "a name", (str, Mapping): "a mapping or a string such as 'rank=8'",
    (str, Sequence): "a pattern or a sequence of patterns", (int, float): "a number", bool: "True or False",
}  # fmt: skip


def patterns(field: str, given: Sequence | str) -> tuple[str, ...]:
    """The patterns of a field that is given as one or as several; raises InputError if one is no string."""
    patterns = (given,) * bool(given) if isinstance(given, str) else tuple(given)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(f"{field}={given!r}, expected a pattern or a sequence of patterns")
    return patterns
