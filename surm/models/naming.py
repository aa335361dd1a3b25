"""How versions of transformers, and files of weights, name the variables of a model: both ways through a table."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from surm.errors import InputError
from surm.models.tables import Rule, Table

NEW, OLD, FILES = "transformers5", "transformers4", "files"


class Naming(NamedTuple):
    """The names of the variables of one kind of model.

    Attributes:
      table: the names, as patterns of keys.
      prefix: stands before every key but those of the classifier.
      foreign: pattern of keys that the table knows, but this naming does not have.
      head: the first words of the keys of the classifier, which a bare encoder lacks.
    """

    table: Table
    prefix: str
    foreign: str
    head: tuple[str, ...] = ("classifier",)

    def of_head(self, name: str) -> bool:
        """Whether a module, or the variable of a key, is a part of the classifier."""
        return name.split(".")[0] in self.head

    def theirs(self, path: str) -> str:
        """The key of a variable of ours, the other way through the table; InputError if it has none."""
        key = self._found(path)[0]
        return key if self.of_head(key) else self.prefix + key

    def their_array(self, path: str, array: np.ndarray, shape: Any) -> np.ndarray:
        """A variable of ours as a file of transformers holds it; `shape` is the configuration of the model."""
        return self._found(path)[1].inverse(array, shape)

    def ours(self, key: str) -> tuple[str, Rule] | None:
        """The path of a key, and the rule whose `transform` its array goes through; None for a key it does not have."""
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
    """The names of one kind of model by version.

    Args:
      new: those of the modules of transformers 5.
      old: those of transformers 4, if they are others.
      files: those in files of weights, if they are not those of transformers 4.

    Returns:
      The namings under `NEW`, `OLD` and `FILES`.
    """
    return {NEW: new, OLD: old or new, FILES: files or old or new}
