"""Building blocks for a config file's `sweep()`: overrides of single keys, and ways to combine them.

    def sweep():
        return sweeps.product({"peft.family": ["circulant", "toeplitz"], "seed": [0, 1, 2]})

Overrides are a dict of dotted keys, without `config.`, and values. Lists of them can be added (`+`), multiplied
(`product`) and combined in parallel (`zipped`); any other iterable of such dicts works as well.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from surm.errors import InputError

Overrides = dict[str, Any]
"""Dotted keys of the config and their values."""

Part = Mapping[str, Iterable[Any]] | Iterable[Mapping[str, Any]]
"""Keys with lists of their values, or overrides that are combined already."""


def product(*parts: Part, **lists: Iterable[Any]) -> list[Overrides]:
    """Combines every value of one key with every value of all others; the last key changes fastest.

    Args:
      *parts: keys with lists of their values, or overrides from `product` and `zipped`.
      **lists: values of keys without a dot.

    Returns:
      The overrides of every run.

    Raises:
      InputError: if a key is given twice, or its values are not a list or an empty one.

    Examples:
      >>> product({"peft.family": ["circulant", "toeplitz"]}, seed=[0, 1])[:3]
      [{'peft.family': 'circulant', 'seed': 0}, {'peft.family': 'circulant', 'seed': 1}, {'peft.family': 'toeplitz', \
'seed': 0}]
    """
    return [_merged(chosen) for chosen in itertools.product(*_axes(parts, lists))]


def zipped(*parts: Part, **lists: Iterable[Any]) -> list[Overrides]:
    """Combines the first values of all keys, then the second values, and so on.

    Args:
      *parts: keys with lists of their values, or overrides from `product` and `zipped`.
      **lists: values of keys without a dot.

    Returns:
      The overrides of every run.

    Raises:
      InputError: as in `product`, and if the lengths differ.

    Examples:
      >>> zipped({"peft.family": ["circulant", "toeplitz"], "optim.learning_rate": [8e-3, None]})
      [{'peft.family': 'circulant', 'optim.learning_rate': 0.008}, {'peft.family': 'toeplitz', 'optim.learning_rate': \
None}]
    """
    axes = _axes(parts, lists)
    if len({len(axis) for axis in axes}) > 1:
        lengths = ", ".join(f"{len(axis)} of {' and '.join(axis[0])}" for axis in axes)
        raise InputError(f"zipped needs the same number of values for every key, given {lengths}")
    return [_merged(chosen) for chosen in zip(*axes, strict=True)]


def flags(overrides: Mapping[str, Any]) -> list[str]:
    """The arguments of `python -m surm.train` that set these keys.

    Examples:
      >>> flags({"peft.targets": r".*\\.(query|value)", "optim.learning_rate": None})
      ['--config.peft.targets=.*\\\\.(query|value)', '--config.optim.learning_rate=None']
    """
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def _axes(parts: tuple[Part, ...], lists: Mapping[str, Iterable[Any]]) -> list[list[Overrides]]:
    """One list of overrides for each key with its values, and for each list that is combined already."""
    axes: list[list[Overrides]] = []
    for part in (*parts, lists):
        if isinstance(part, Mapping):
            axes += [[{key: value} for value in _values(key, values)] for key, values in part.items()]
        else:
            axes.append([dict(overrides) for overrides in _values("combination", part)])
    return axes


def _values(what: str, values: Iterable[Any]) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"a sweep's {what} is {values!r}, expected a list")
    found = list(values)
    if not found:
        raise InputError(f"a sweep's {what} is an empty list")
    return found


def _merged(chosen: Iterable[Overrides]) -> Overrides:
    merged: Overrides = {}
    for overrides in chosen:
        if both := merged.keys() & overrides.keys():
            raise InputError(f"a sweep sets {min(both)!r} twice in one run")
        merged |= overrides
    return merged
