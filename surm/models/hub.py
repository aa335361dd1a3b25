"""Files of the Hugging Face hub, or of its local cache, by names of the form hf:OWNER/NAME[/PATH][@REVISION]."""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from surm.errors import InputError, one_line

PREFIX = "hf:"
_REMEDY = "download it elsewhere and name the folder, or let HF_HOME point at a cache that holds it"


class Place(NamedTuple):
    """A folder or file in a repository of the hub.

    Attributes:
      repository: OWNER/NAME.
      path: of a folder or file in it; empty for its root.
      revision: a branch, tag or commit; None for the main branch.
    """

    repository: str
    path: str
    revision: str | None


def place(name: str) -> Place:
    """Parses a name.

    Args:
      name: `hf:OWNER/NAME`, optionally followed by `/PATH` and `@REVISION`.

    Returns:
      Its parts.

    Raises:
      InputError: if the name has another form.

    Examples:
      >>> place("hf:some/lora/checkpoint-500@v2")
      Place(repository='some/lora', path='checkpoint-500', revision='v2')
    """
    part = r"[\w.-]+"
    match = re.fullmatch(rf"{PREFIX}({part}/{part}|{part})((?:/{part})*)/?(?:@(.+))?", name)
    if match is None or ".." in match[2].split("/"):
        forms = f"{PREFIX}OWNER/NAME, optionally followed by /FOLDER and @REVISION"
        raise InputError(f"{name!r} cannot be fetched (it is no valid name on the hub); expected {forms}")
    return Place(match[1], match[2].strip("/"), match[3])


def fetched(name: str, patterns: Sequence[str]) -> pathlib.Path:
    """Downloads files of a folder on the hub into the local cache, unless they are there.

    Args:
      name: a name as `place` parses it.
      patterns: patterns of the names of files in that folder; `*` also matches `/`.

    Returns:
      The local folder. It may lack files, for a pattern need not match any.

    Raises:
      InputError: if the repository is not in the cache and cannot be downloaded, or has no such folder.
    """
    repository, folder, _ = place(name)
    root = _snapshot(name, [f"{folder}/{pattern}" if folder else pattern for pattern in patterns])
    if not (root / folder).is_dir():
        raise InputError(
            f"{name!r}: {repository} has no folder {folder!r} with any of {', '.join(patterns)}; {_REMEDY}"
        )
    return root / folder


def fetched_file(name: str) -> pathlib.Path:
    """Downloads one file of the hub into the local cache, unless it is there.

    Args:
      name: a name as `place` parses it, whose path is that of a file.

    Returns:
      The local file.

    Raises:
      InputError: if the repository is not in the cache and cannot be downloaded, or has no such file.
    """
    repository, path, _ = place(name)
    file = _snapshot(name, [path]) / path
    if not file.is_file():
        raise InputError(f"{name!r}: {repository} has no file {path!r}; {_REMEDY}")
    return file


def _snapshot(name: str, wanted: Sequence[str]) -> pathlib.Path:
    """The local copy of a repository, with the files that match patterns."""
    repository, _, revision = place(name)
    try:
        from huggingface_hub import snapshot_download

        return pathlib.Path(snapshot_download(repository, revision=revision, allow_patterns=[*wanted]))
    except Exception as error:  # its own exceptions, or those of requests or httpx, depending on the version
        reason = one_line(f"{type(error).__name__}: {error}")
        raise InputError(f"{name!r} cannot be fetched ({reason}); {_REMEDY}") from error
