"""Files that are whole or absent, never half-written."""

import os
import pathlib


def replace(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes a file in one step: under a name of its own first, then renamed.

    Args:
      path: the file; its folder must exist.
      data: what it will hold; text is written as UTF-8.
    """
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data.encode() if isinstance(data, str) else data)
    os.replace(partial, path)
