"""Recognises the publisher's table for the keys of a file, and removes the names of wrappers from keys.

The keys of a file that was saved from a wrapped model contain the name of the wrapper, at the front or inside:
"module." by DataParallel, "_orig_mod." by torch.compile, "model." by Lightning and by many scripts.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable

from surm.errors import InputError, few
from surm.models import lazy
from surm.models.catalogue import ARCHITECTURES
from surm.models.lazy import Arrays, Named
from surm.models.tables import OURS, Table

TABLES: tuple[Table, ...] = (OURS, *(table for one in ARCHITECTURES for table in one.tables))

# Names of wrappers anywhere in a key, and those only at its front (where sentence-transformers puts numbers).
_BETWEEN = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_FRONT = r"(?:(?:model|base_model|auto_model|backbone|\d+)\.)*"


def unwrapped(arrays: Named) -> tuple[Arrays, list[str]]:
    """Removes the names of wrappers from keys.

    Args:
      arrays: the arrays of a file by key.

    Returns:
      The same arrays under the keys of the unwrapped model, and the names that were removed.

    Raises:
      InputError: if two keys become equal, or the file holds several wrapped models.

    Examples:
      >>> import numpy as np
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
        raise InputError(f"weights of several models, under {few(sorted(found))}; expected those of one")
    return "" if "" in found else next(iter(found), "")


def _renamed(arrays: Named, names: dict[str, str]) -> Arrays:
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        both = [key for key, name in names.items() if name == repeated[0]]
        raise InputError(f"keys {both[0]!r} and {both[1]!r} are both {repeated[0]!r} without the name of a wrapper")
    return Arrays({names[key]: stored for key, stored in lazy.of(arrays).stored.items()})


def table_of(keys: Iterable[str]) -> Table:
    """The table that fits the keys of a file; raises InputError if none does."""
    keys = sorted(keys)
    for table in (OURS, *reversed(TABLES)):
        if any(re.fullmatch(f"(?:{table.prefix})?(?:{table.marker})", key) for key in keys):
            return table
    known = ", ".join(table.name for table in TABLES)
    for table in TABLES:
        for key in keys if table is not OURS else []:
            if match := re.fullmatch(rf"(.+\.)(?:{table.marker})", key):
                behind = f"key {key!r} looks like one of {table.name} with the prefix {match.group(1)!r}"
                raise InputError(f"weights of an unknown model; {behind}: save the file without that prefix")
    raise InputError(f"weights of an unknown model, with keys {few(keys, 4)}; known: {known}")


def grouped(keys: Iterable[str]) -> str:
    """Keys in a line; several keys with the same first part are summarised as `PART.* (number)`."""
    parts = Counter(key.split(".")[0] for key in keys)
    single = {key.split(".")[0]: key for key in keys}
    return few([single[part] if count == 1 else f"{part}.* ({count})" for part, count in sorted(parts.items())])


def meant(table: Table, missing: Iterable[str], there: dict[str, str]) -> list[str]:
    """Finds keys of a file that look like misspelt keys of missing variables.

    Args:
      table: the table of the file.
      missing: the paths of variables that the file lacks.
      there: the unknown keys of the file; from the key without the table's prefix to the whole key.

    Returns:
      One phrase per misspelt key.
    """
    found = []
    for path in missing:
        for key in filter(None, (rule.key(path) for rule in table.rules)):
            if close := difflib.get_close_matches(key, there, n=1, cutoff=0.85):
                found.append(f"{there[close[0]]!r} where {key!r} is expected")
                break
    return found
