"""Looks shapes of published models up by name."""

from collections.abc import Mapping
from typing import TypeVar

from surm.errors import InputError, nearest

Shape = TypeVar("Shape")


def named(name: str, presets: Mapping[str, Shape]) -> Shape:
    """The preset of a name; raises InputError, which names the nearest, if there is none."""
    if name not in presets:
        raise InputError(f"no model is called {name!r}; {nearest(name, presets)}")
    return presets[name]
