"""Whose the keys of a file of weights are, and what its training put around them.

A file saved from a wrapped model has the wrapper's name in front of every key, or between: "module." by DataParallel,
"_orig_mod." by torch.compile, "model." by Lightning and by many a script. They are taken off.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from surm.errors import InputError, few
from surm.models.catalogue import ARCHITECTURES
from surm.models.tables import OURS, Table

TABLES: tuple[Table, ...] = (OURS, *(table for one in ARCHITECTURES for table in one.tables))

# Anywhere in a key, and only at its front (where sentence-transformers puts numbers).
_BETWEEN = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_FRONT = r"(?:(?:model|base_model|auto_model|backbone|\d+)\.)*"


def unwrapped(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Takes wrappers' names off the keys.

    Args:
      arrays: key in the file -> array.

    Returns:
      The same under the keys that the model alone would have, and the names that were taken off.

    Raises:
      InputError: if two keys become one, or several wrapped models are there.

    Examples:
      >>> kept, taken = unwrapped({"module._orig_mod.embeddings.class_embedding": np.ones(2)})
      >>> list(kept), taken
      (['embeddings.class_embedding'], ['_orig_mod.', 'module.'])
    """
    taken = {name for key in arrays for name in _BETWEEN.findall(key)}
    arrays = _renamed(arrays, {key: _BETWEEN.sub("", key) for key in arrays})
    front = _front(arrays)
    return _renamed(arrays, {key: key.removeprefix(front) for key in arrays}), sorted(taken) + [front] * bool(front)


def _front(keys: Iterable[str]) -> str:
    patterns = [re.compile(f"({_FRONT})(?:{table.prefix})?(?:{table.marker})") for table in TABLES]
    found = {match.group(1) for key in keys for pattern in patterns if (match := pattern.fullmatch(key))}
    if len(found) > 1 and "" not in found:
        raise InputError(f"weights of several models, behind {few(sorted(found))}; expected those of one")
    return "" if "" in found else next(iter(found), "")


def _renamed(arrays: dict[str, np.ndarray], names: dict[str, str]) -> dict[str, np.ndarray]:
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        both = [key for key, name in names.items() if name == repeated[0]]
        raise InputError(f"keys {both[0]!r} and {both[1]!r} are both {repeated[0]!r} without their wrapper's name")
    return {names[key]: array for key, array in arrays.items()}


def table_of(keys: Iterable[str]) -> Table:
    """The table of the publisher who names arrays so; InputError if there is none."""
    keys = sorted(keys)
    for table in (OURS, *reversed(TABLES)):
        if any(re.fullmatch(f"(?:{table.prefix})?(?:{table.marker})", key) for key in keys):
            return table
    known = ", ".join(table.name for table in TABLES)
    for table in TABLES:
        for key in keys if table is not OURS else []:
            if match := re.fullmatch(rf"(.+\.)(?:{table.marker})", key):
                behind = f"key {key!r} looks like that of a {table.name} behind {match.group(1)!r}"
                raise InputError(f"weights of an unknown model; {behind}: save the file without that prefix")
    raise InputError(f"weights of an unknown model, with keys {few(keys, 4)}; known: {known}")


def grouped(keys: Iterable[str]) -> str:
    """Keys in a line, those of one part of a model as one."""
    parts = Counter(key.split(".")[0] for key in keys)
    single = {key.split(".")[0]: key for key in keys}
    return few([single[part] if count == 1 else f"{part}.* ({count})" for part, count in sorted(parts.items())])


def meant(table: Table, missing: Iterable[str], there: dict[str, str]) -> list[str]:
    """Keys of a file that look like misspelt ones of variables that are missing.

    Args:
      table: whose keys they are.
      missing: our variables.
      there: what is not known of the file: key without the table's prefix -> whole key.

    Returns:
      A phrase each.
    """
    found = []
    for path in missing:
        for key in filter(None, (rule.key(path) for rule in table.rules)):
            if close := difflib.get_close_matches(key, there, n=1, cutoff=0.85):
                found.append(f"{there[close[0]]!r} where {key!r} is expected")
                break
    return found
