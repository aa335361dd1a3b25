"""Files that a run's config names by a path from where it was started: found again from another folder."""

import os
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from surm import files
from surm.errors import InputError
from surm.machine import buckets

KEYS = ("model.weights", "data.tokenizer")
"""What a finished run is opened with."""


def written_out(config: ml_collections.ConfigDict) -> dict[str, dict[str, str]]:
    """The full names, by key, of what a config names from the current folder, as `full_names`; nothing without any."""
    named = {key: _relative(config, key) for key in KEYS}
    full = {key: str(name.absolute()) for key, name in named.items() if name is not None and name.exists()}
    return {"full_names": full} if full else {}


def found_again(
    config: ml_collections.ConfigDict, result: Mapping[str, Any], folder: epath.Path
) -> ml_collections.ConfigDict:
    """A config with full names in the place of those that it has from the folder that its run was started in.

    Args:
      config: of a finished run.
      result: of that run, with what `written_out` found when it ran.
      folder: the run's, for the message.

    Returns:
      Another config, whose files are there.

    Raises:
      InputError: if what a name means is neither where it was nor in the current folder; both are named.
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
    """The path from the current folder that stands under a key; None if that is named in full, or no path."""
    section, _, field = key.partition(".")
    name = str(config[section][field] or "")
    if not name or ":" in name or os.path.isabs(os.path.expanduser(name)) or buckets.holds(name):
        return None
    return None if name == "none" else files.path(name)
