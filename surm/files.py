"""Places by name, and files that are whole or absent, never half-written."""

import contextlib
import json
import os
import pathlib
import uuid

from etils import epath

from surm.errors import InputError, one_line


def path(name: str | os.PathLike) -> epath.Path:
    """The place that a name means: a local path, with ~ for the home folder.

    Args:
      name: as a person wrote it.

    Returns:
      The path.
    """
    return epath.Path(os.path.expanduser(os.fspath(name)))


def json_object(file: epath.Path) -> dict | None:
    """The JSON object that a file holds.

    Args:
      file: where it lies.

    Returns:
      The object; None if there is no such file.

    Raises:
      InputError: if the file cannot be read, or holds something else.
    """
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        said = one_line(f"{type(error).__name__}: {error}")
        raise InputError(f"{str(file)!r} cannot be read as JSON ({said})") from error
    if not isinstance(content, dict):
        raise InputError(f"{str(file)!r} holds a JSON {type(content).__name__}, expected an object")
    return content


def replace(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes a file in one step: under a name that nobody else uses first, then renamed.

    Args:
      path: the file; its folder must exist.
      data: what it will hold; text is written as UTF-8.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing in it
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # nobody knows the partial one
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def made_folder(path: str | os.PathLike) -> pathlib.Path:
    """A folder to write to, made if absent; InputError if the path is a file."""
    folder = pathlib.Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file, expected a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
