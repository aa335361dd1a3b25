"""Folders that `datasets` saved with `save_to_disk`: a DatasetDict of splits, or a Dataset, as .arrow files."""

from typing import Any

from etils import epath

from surm import files
from surm.data import split_names, tables
from surm.data.table import Table
from surm.errors import InputError
from surm.machine.notes import say

_OF_SPLITS, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"


def is_saved(folder: epath.Path) -> bool:
    """Whether `datasets` saved this folder."""
    return any((folder / name).is_file() for name in (_OF_SPLITS, _STATE))


def find(folder: epath.Path) -> tuple[dict[str, Table], dict[str, list[epath.Path]]]:
    """The tables of a saved folder.

    Args:
      folder: a folder that `save_to_disk` wrote.

    Returns:
      Tables and their files by split; a Dataset, which has no splits, is all `train`.

    Raises:
      InputError: if a file is missing or damaged, or two splits mean the same.
    """
    if (folder / _STATE).is_file():
        folders = {"train": folder}
    else:
        listed = _object(folder / _OF_SPLITS).get("splits", [])
        named = [(name, split_names.split_of(str(name))) for name in listed]
        folders = {name: folder / str(written) for written, name in named if name}
        if unread := [written for written, name in named if not name]:
            say(f"{folder}: splits with unknown names are ignored: {', '.join(unread)}")
        if len(folders) < sum(bool(name) for _, name in named):
            raise InputError(f"{str(folder)!r} has the splits {', '.join(listed)}, of which two mean the same")
    parts = {name: _files(place) for name, place in folders.items()}
    features = {name: _object(place / _INFO).get("features") or {} for name, place in folders.items()}
    return {name: tables.open_table(parts[name], features=features[name]) for name in parts}, parts


def _files(folder: epath.Path) -> list[epath.Path]:
    state = _object(folder / _STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(f"{str(folder)!r} was saved with indices by an old version of datasets; save it again")
    found = [folder / str(entry["filename"]) for entry in state.get("_data_files", [])]
    if missing := [file for file in found if not file.is_file()]:
        raise InputError(f"{str(missing[0])!r} is missing, which {str(folder / _STATE)!r} lists")
    if not found:
        raise InputError(f"{str(folder / _STATE)!r} lists no file")
    return found


def _object(file: epath.Path) -> dict[str, Any]:
    if (value := files.json_object(file)) is None:
        raise InputError(f"{str(file)!r} is missing; every folder that datasets saved has it")
    return value
