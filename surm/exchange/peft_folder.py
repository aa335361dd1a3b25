"""Finds the folder of a PEFT adapter: the given one, a folder below it, or one on the hub."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from surm import files
from surm.errors import InputError
from surm.exchange.peft_files import CONFIG, PICKLE, WEIGHTS
from surm.machine.notes import say
from surm.models import hub

_CONVERSION = "is a pickle, which surm never loads: load it in PEFT and save it again by save_pretrained"


class Adapter(NamedTuple):
    """The place of an adapter.

    Attributes:
      name: the name of its folder, locally or on the hub.
      folder: the folder that holds adapter_config.json.
    """

    name: str
    folder: epath.Path


def find(name: str | os.PathLike) -> Adapter:
    """Finds the adapter with a given name.

    PEFT saves an adapter that is not called `default` to a folder below the given one, and a trainer saves its
    checkpoints to `checkpoint-STEP`. If there is exactly one such folder, it is taken, with a notice.

    Args:
      name: a folder that holds adapter_config.json, or a folder with such folders in it; or `hf:OWNER/NAME`, from which
        only the adapter's files are fetched (`surm.models.hub`).

    Returns:
      The adapter.

    Raises:
      InputError: if there is no such folder, or there are several.
    """
    name = os.fspath(name)
    where = _fetched(name, CONFIG, f"*/{CONFIG}") if name.startswith(hub.PREFIX) else files.path(name)
    if where.is_file():
        raise InputError(f"{name!r} is a file; expected the folder of an adapter, with {CONFIG} and {WEIGHTS} in it")
    if not where.is_dir():
        raise InputError(
            f"no adapter in {name!r}: there is no such folder; expected one with {CONFIG}, or hf:OWNER/NAME"
        )
    if (where / CONFIG).is_file():
        return Adapter(name, where)
    below = sorted((folder for folder in where.iterdir() if (folder / CONFIG).is_file()), key=_natural)
    if not below:
        raise InputError(f"no adapter in {name!r}: {CONFIG} is missing")
    if len(below) > 1:
        raise InputError(f"{name!r} holds {len(below)} adapters; expected the folder of one: {_listed(name, below)}")
    say(f"{name}: the adapter in its folder {below[0].name}, the only one, is read")
    return Adapter(_below(name, below[0].name), below[0])


def weights(adapter: Adapter) -> epath.Path:
    """The file of an adapter's weights, which is fetched if it is on the hub.

    Args:
      adapter: the result of `find`.

    Returns:
      The file.

    Raises:
      InputError: if it is missing; the message names a pickle in its place.
    """
    on_hub = adapter.name.startswith(hub.PREFIX)
    folder = _fetched(adapter.name, WEIGHTS) if on_hub else adapter.folder
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    there = f" that can be fetched; its {PICKLE}, if it has one," if on_hub else f", and {PICKLE}"
    pickle = f"{there} {_CONVERSION}" if on_hub or (folder / PICKLE).is_file() else ""
    raise InputError(f"{adapter.name!r} has no {WEIGHTS}{pickle}")


def _fetched(name: str, *patterns: str) -> epath.Path:
    return epath.Path(hub.fetched(name, patterns))


def _natural(folder: epath.Path) -> tuple[str, int]:
    """The sorting key of folders: a number at the end of a name counts as a number, so 500 comes before 1000."""
    text, number = re.fullmatch(r"(.*?)(\d*)", folder.name).groups()
    return text, int(number or 0)


def _listed(name: str, folders: Sequence[epath.Path]) -> str:
    """Lists the last few folders in order, and marks the newest checkpoint."""
    shown = [_below(name, folder.name) for folder in folders[-8:]]
    if re.fullmatch(r"checkpoint-\d+", folders[-1].name):
        shown[-1] += " (the newest)"
    return (f"{len(folders) - 8} more, " if len(folders) > 8 else "") + ", ".join(shown)


def _below(name: str, *folder: str) -> str:
    """The name of a folder inside another; on the hub the revision follows it."""
    root, at, revision = name.partition("@") if name.startswith(hub.PREFIX) else (name, "", "")
    return "/".join([root.rstrip("/"), *folder]) + at + revision
