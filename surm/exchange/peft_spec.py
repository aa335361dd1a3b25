"""The spec with which a model gets the updates and other trained variables that a file of PEFT holds."""

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

from flax import nnx

from surm.exchange.peft_files import module_of
from surm.exchange.updates import Update
from surm.peft import PeftSpec, select


def whole_modules(variables: Iterable[str], adapted: Container[str]) -> set[str]:
    """The modules without an update for which the file has more than a bias."""
    return {module for path in variables if not path.endswith(".bias") and (module := module_of(path)) not in adapted}


def train(base: nnx.Module, variables: Mapping[str, Any], whole: Container[str]) -> list[str]:
    """Patterns for the other trained variables: whole modules, and single variables such as biases."""
    every = list(select.variables(base))
    loose = [path for path in variables if module_of(path) not in whole]
    biases = [path for path in every if path.endswith(".bias") and module_of(path) not in whole]
    patterns = [r".*\.bias"] if loose and set(loose) == set(biases) else _patterns(loose, every)
    return sorted({re.escape(module_of(path)) for path in variables if module_of(path) in whole}) + patterns


def spec_for(updates: dict[str, Update], train: list[str], layers: list[str]) -> PeftSpec:
    """The spec for updates of one family: the options of most layers, and rules for the other layers."""
    groups: dict[tuple[int, float], list[str]] = {}
    for path, update in updates.items():
        groups.setdefault((*update.options.values(), update.scale), []).append(path)
    first, *others = sorted(groups.values(), key=len, reverse=True)
    usual = updates[first[0]]
    rules = {pattern: {"options": updates[paths[0]].options, "scale": updates[paths[0]].scale}
             for paths in others for pattern in _patterns(paths, layers)}  # fmt: skip
    return PeftSpec(
        family=usual.family,
        options=usual.options,
        targets=_patterns(first, layers),
        scale=usual.scale,
        dropout=usual.dropout,
        train=train,
        rules=rules,
        magnitude=usual.magnitude is not None,
    )


def _patterns(chosen: list[str], every: list[str]) -> list[str]:
    """Patterns that match exactly the chosen layers: for all blocks at once if possible, else one for each layer."""
    exact = {re.escape(path) for path in chosen}
    of_blocks = {re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", pattern) for pattern in exact}
    found = {path for path in every if any(re.fullmatch(pattern, path) for pattern in of_blocks)}
    return sorted(of_blocks if found == set(chosen) else exact)
