"""The names of splits' files and folders, as people and the hub use them."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from etils import epath

from surm.errors import InputError

NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Every split with the names that mean it, in upper or lower case."""

_SHARD = re.compile(r"(?P<stem>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]{8,})?")


class Shard(NamedTuple):
    """The parts of a file's name: the split's name as written, and the number of the shard and of all shards."""

    stem: str
    number: int = 0
    count: int = 1


def shard(stem: str) -> Shard:
    """Parses a file's name without its suffix.

    Examples:
      >>> shard("train-00001-of-00002"), shard("Train")
      (Shard(stem='train', number=1, count=2), Shard(stem='Train', number=0, count=1))
    """
    parts = _SHARD.fullmatch(stem)
    return Shard(parts["stem"], int(parts["number"]), int(parts["count"])) if parts else Shard(stem)


def split_of(stem: str) -> str:
    """The split that a name means, or an empty text; `_matched` and `_mismatched` are kept.

    Examples:
      >>> split_of("Val"), split_of("dev_matched"), split_of("metadata")
      ('validation', 'validation_matched', '')
    """
    first, line, rest = stem.lower().partition("_")
    found = [name for name, spellings in NAMES.items() if first in spellings]
    return found[0] + line + rest if found and rest in ("", "matched", "mismatched") else ""


def by_split(paths: Iterable[epath.Path]) -> dict[str, list[epath.Path]]:
    """Groups files or folders by the split that their names mean, with shards in order.

    Raises:
      InputError: if one split has two files that are not its shards, or a shard is missing.
    """
    found: dict[str, list[epath.Path]] = {}
    for path in sorted(paths, key=lambda path: path.name):
        if name := split_of(shard(path.stem).stem):
            found.setdefault(name, []).append(path)
    for paths_of_one in found.values():
        _check_shards(paths_of_one)
    return found


def _check_shards(paths: list[epath.Path]) -> None:
    first, folder = shard(paths[0].stem), str(paths[0].parent)
    if len({(path.suffix.lower(), shard(path.stem).stem, shard(path.stem).count) for path in paths}) > 1 or (
        first.count == 1 and len(paths) > 1
    ):
        raise InputError(f"{folder!r} holds both {paths[0].name} and {paths[1].name}; expected one of them")
    if missing := sorted(set(range(first.count)) - {shard(path.stem).number for path in paths}):
        raise InputError(
            f"{folder!r} holds {len(paths)} of the {first.count} files of {first.stem!r}; number {missing[0]:05d} is "
            "missing"
        )


def told(found: Mapping[str, list[epath.Path]]) -> str:
    """The names of the files found, for a message."""
    return ", ".join(path.name for paths in found.values() for path in paths[:1])
