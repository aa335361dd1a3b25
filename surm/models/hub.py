"""What lies on the Hugging Face hub, or in its copy in the local cache, by name: hf:OWNER/NAME[/FOLDER][@REVISION]."""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from surm.errors import InputError, one_line

PREFIX = "hf:"
_REMEDY = "download it elsewhere and name the folder, or let HF_HOME point at a cache that holds it"


class Place(NamedTuple):
    """A folder in a repository of the hub.

    Attributes:
      repository: OWNER/NAME.
      folder: in it; empty for its root.
      revision: a branch, tag or commit; None for the main branch.
    """

    repository: str
    folder: str
    revision: str | None


def place(name: str) -> Place:
    """The parts of a name; InputError if it has another form.

    Args:
      name: `hf:OWNER/NAME`, and perhaps `/FOLDER` and `@REVISION` behind it.

    Returns:
      Its parts.

    Examples:
      >>> place("hf:some/lora/checkpoint-500@v2")
      Place(repository='some/lora', folder='checkpoint-500', revision='v2')
    """
    part = r"[\w.-]+"
    match = re.fullmatch(rf"{PREFIX}({part}/{part}|{part})((?:/{part})*)/?(?:@(.+))?", name)
    if match is None or ".." in match[2].split("/"):
        forms = f"{PREFIX}OWNER/NAME, perhaps with /FOLDER and @REVISION behind it"
        raise InputError(f"{name!r} cannot be fetched (it is no name of the hub's); expected {forms}")
    return Place(match[1], match[2].strip("/"), match[3])


def fetched(name: str, patterns: Sequence[str]) -> pathlib.Path:
    """A folder of the hub's in the local cache, with the files that fit patterns.

    Args:
      name: see `place`.
      patterns: of names in that folder; `*` also stands for folders.

    Returns:
      The folder, whose files may be less than was asked for.

    Raises:
      InputError: in one line, if the repository is neither in the cache nor to be had, or has no such folder.
    """
    repository, folder, revision = place(name)
    try:
        from huggingface_hub import snapshot_download

        wanted = [f"{folder}/{pattern}" if folder else pattern for pattern in patterns]
        root = pathlib.Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as error:  # its own, or those of requests or httpx, by version
        reason = one_line(f"{type(error).__name__}: {error}")
        raise InputError(f"{name!r} cannot be fetched ({reason}); {_REMEDY}") from error
    if not (root / folder).is_dir():
        raise InputError(
            f"{name!r}: {repository} has no folder {folder!r} with any of {', '.join(patterns)}; {_REMEDY}"
        )
    return root / folder
