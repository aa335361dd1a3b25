"""Relative paths in a run's config, and how to find their files from another directory."""

import os
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from surm import files
from surm.errors import InputError
from surm.machine import buckets

KEYS = ("model.weights", "data.tokenizer")
"""The keys whose files are needed to open a finished run."""


def written_out(config: ml_collections.ConfigDict) -> dict[str, dict[str, str]]:
    """The absolute paths, by key, of a config's relative paths, as `full_names`; empty if it has none."""
    named = {key: _relative(config, key) for key in KEYS}
    full = {key: str(name.absolute()) for key, name in named.items() if name is not None and name.exists()}
    return {"full_names": full} if full else {}


def found_again(
    config: ml_collections.ConfigDict, result: Mapping[str, Any], folder: epath.Path
) -> ml_collections.ConfigDict:
    """A config whose relative paths are replaced by paths where the files are now.

    Args:
      config: the config of a finished run.
      result: the result of that run, with what `written_out` returned at the time.
      folder: the run's folder, for the message.

    Returns:
      A config whose files exist.

    Raises:
      InputError: if a file is neither where it was nor in the current directory; the message names both.
    """
    full, found = result.get("full_names") or {}, config.copy_and_resolve_references()
    for key in KEYS:
        if (name := _relative(config, key)) is None or key not in full:
            continue
        if files.path(full[key]).exists():
            found.update_from_flattened_dict({key: full[key]})
        elif not name.exists():
            raise InputError(
                f"the run {str(folder)!r} was trained with config.{key}={str(name)!r}; there is nothing at "
                f"{full[key]!r}, where it lay, nor at {str(name.absolute())!r}; put it in either place"
            )
    return found


def _relative(config: ml_collections.ConfigDict, key: str) -> epath.Path | None:
    """The relative path of a key; None if its value is an absolute path, or no path."""
    section, _, field = key.partition(".")
    name = str(config[section][field] or "")
    if not name or ":" in name or os.path.isabs(os.path.expanduser(name)) or buckets.holds(name):
        return None
    return None if name == "none" else files.path(name)
