"""The names of a model's variables in versions of transformers and in files of weights, and their conversion."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.core import FrozenDict

from surm.errors import InputError
from surm.models.tables import Rule, Table

NEW, OLD, FILES = "transformers5", "transformers4", "files"


class Naming(NamedTuple):
    """The names of the variables of one kind of model.

    Attributes:
      table: the names, as rules between keys and surm's paths.
      prefix: stands before every key except those of the classifier.
      foreign: pattern of keys that the table contains, but that this naming does not have.
      head: the first parts of the keys of the classifier, which a bare encoder lacks.
      joint: the maps of surm's that are one map in this naming: their names, in the order of the outputs, by the name
        that the table has for the one map, such as `attention.joint`.
      transposed: pattern of keys whose weights are (in, out), those of transformers' Conv1D.
    """

    table: Table
    prefix: str
    foreign: str
    head: tuple[str, ...] = ("classifier",)
    joint: Mapping[str, tuple[str, ...]] = FrozenDict()
    transposed: str = "$."

    def of_head(self, name: str) -> bool:
        """Whether a module or key is part of the classifier."""
        return name.split(".")[0] in self.head

    def theirs(self, path: str) -> str:
        """The key of a variable of surm's, or of the map that it is part of; raises InputError if there is none."""
        key = self._found(self.joined(path))[0]
        return key if self.of_head(key) else self.prefix + key

    def their_array(self, path: str, array: np.ndarray, shape: Any) -> np.ndarray:
        """A variable of surm's in the layout of transformers; `shape` is the configuration of the model."""
        return self._found(path)[1].inverse(array, shape)

    def joined(self, path: str) -> str:
        """The path of the map that a module or variable is part of here; the same path if it is one by itself."""
        for name, parts in self.joint.items():
            around, _, last = name.rpartition(".")
            if match := re.fullmatch(rf"(.*\.)?{around}\.(?:{'|'.join(parts)})(\..*)?", path):
                return f"{match[1] or ''}{around}.{last}{match[2] or ''}"
        return path

    def apart(self, path: str) -> tuple[str, ...]:
        """The paths of the parts of a module or variable that `joined` gives; else the path alone."""
        for name, parts in self.joint.items():
            if match := re.fullmatch(rf"(.*\.)?{re.escape(name)}(\..*)?", path):
                around = name.rpartition(".")[0]
                return tuple(f"{match[1] or ''}{around}.{part}{match[2] or ''}" for part in parts)
        return (path,)

    def ours(self, key: str) -> tuple[str, Rule] | None:
        """The path of surm's variable for a key, and the rule that converts its array; None for unknown keys."""
        short = key.removeprefix(self.prefix)
        if re.fullmatch(self.foreign, short):
            return None
        found = ((re.fullmatch(rule.pattern, short), rule) for rule in self.table.rules)
        return next(((match.expand(rule.path), rule) for match, rule in found if match), None)

    def _found(self, path: str) -> tuple[str, Rule]:
        for rule in self.table.rules:
            key = rule.key(path)
            if key is not None and not re.fullmatch(self.foreign, key):
                return key, rule
        raise InputError(f"{path} has no counterpart in a model of {self.table.name}")


def named(new: Naming, old: Naming | None = None, files: Naming | None = None) -> Mapping[str, Naming]:
    """The namings of one kind of model by version.

    Args:
      new: the names of modules in transformers 5.
      old: the names in transformers 4, if they differ from `new`.
      files: the names in files of weights, if they differ from `old`.

    Returns:
      The namings under `NEW`, `OLD` and `FILES`.
    """
    return {NEW: new, OLD: old or new, FILES: files or old or new}
