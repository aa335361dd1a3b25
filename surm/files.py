"""Finds places by name, and reads and writes files so that none is ever half-written."""

import atexit
import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import urllib.parse
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from surm.errors import InputError, one_line
from surm.machine import buckets


def path(name: str | os.PathLike) -> epath.Path:
    """The place that a name means: a local path, with ~ for the home folder, or gs://BUCKET/... or s3://BUCKET/...

    Args:
      name: as a person wrote it; file:///PATH is a local path.

    Returns:
      The path.

    Raises:
      InputError: if the scheme is unknown, the bucket's name is invalid, or the scheme's package is not installed.
    """
    text = os.fspath(name)
    if text.startswith("file:///"):
        return epath.Path(urllib.parse.unquote(text.removeprefix("file://")))
    return buckets.place(text) or epath.Path(os.path.expanduser(text))


def absolute(place: epath.Path) -> epath.Path:
    """The absolute path of a place; names in a store are absolute already, which epath does not know."""
    return place if buckets.holds(place) else place.absolute()


def cache() -> epath.Path:
    """The local folder for whatever surm can make again: `$SURM_CACHE`, else `surm` in `$XDG_CACHE_HOME` or `~/.cache`.

    Returns:
      The folder, which need not exist.

    Raises:
      InputError: if `$SURM_CACHE` names a place in an object store.
    """
    if not (named := os.environ.get("SURM_CACHE")):
        return path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "surm"
    if buckets.holds(named):
        raise InputError(f"SURM_CACHE={named!r}, expected a local folder")
    return path(named)


def json_object(file: epath.Path, remedy: str = "") -> dict[str, Any] | None:
    """Reads the JSON object of a file, if the file exists.

    Args:
      file: the file.
      remedy: a remedy for a file that cannot be read, for the end of the message.

    Returns:
      The object; None if there is no such file.

    Raises:
      InputError: if the file cannot be read, or holds something else.
    """
    return read_object(file, remedy) if file.is_file() else None


def read_object(file: epath.Path, remedy: str = "") -> dict[str, Any]:
    """Reads the JSON object of a file.

    Args:
      file: the file.
      remedy: a remedy for a file that cannot be read, for the end of the message.

    Returns:
      The object.

    Raises:
      InputError: if the file does not exist, cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{str(file)!r} cannot be read as JSON (there is no such file){remedy}") from error
    except (OSError, ValueError) as error:
        said = one_line(f"{type(error).__name__}: {error}")
        raise InputError(f"{str(file)!r} cannot be read as JSON ({said}){remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{str(file)!r} holds a JSON {type(content).__name__}, expected an object{remedy}")
    return content


def replace(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes a file in one step: under a unique name first, then renamed; a store writes objects in one step anyway.

    Args:
      path: the file; its folder must exist.
      data: its new contents; text is written as UTF-8.

    Raises:
      OSError: if it cannot be written; the old file is then unchanged.
    """
    content = data.encode() if isinstance(data, str) else data
    if buckets.holds(path):
        _put(epath.Path(path), content)
        return
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing in it
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # nobody knows the partial one
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _put(place: epath.Path, content: bytes) -> None:
    """Writes an object, which a store does in one step."""
    try:
        place.write_bytes(content)
    except Exception as error:
        if isinstance(error, OSError) or buckets.failed(error):
            raise OSError(f"{str(place)!r} cannot be written: {one_line(error)}") from error
        raise


def made_folder(name: str | os.PathLike) -> epath.Path:
    """Creates a folder to write to if needed; InputError if the path is a file."""
    folder = path(name)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file, expected a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def below(folder: epath.Path) -> Iterator[epath.Path]:
    """All files below a folder, at any depth."""
    scheme = "".join(str(folder).partition("://")[:2]) if buckets.holds(folder) else ""
    for root, _, names in folder.walk():
        at = epath.Path(f"{scheme}{os.fspath(root).removeprefix(scheme)}")  # of a store epath gives it without scheme
        yield from (at / name for name in names)


def local(place: epath.Path, *, but: tuple[str, ...] = ()) -> pathlib.Path:
    """A local place with the same contents: the place itself, or a copy of an object or folder in a store.

    Args:
      place: a file or a folder; it need not exist.
      but: endings of names that are not copied.

    Returns:
      Its local path; a copy is deleted when the process ends.
    """
    if not buckets.holds(place):
        return pathlib.Path(place)
    here = scratch() / str(place).replace("://", "/", 1)
    sources = [place] if place.is_file() else [*below(place)] if place.is_dir() else []
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as threads:
        wanted = [source for source in sources if not source.name.endswith(but)]
        for copied in [threads.submit(_fetch, source, here / source.relative_to(place)) for source in wanted]:
            copied.result()
    return here


_AT_ONCE = 16  # requests to a store


def _fetch(source: epath.Path, target: pathlib.Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def scratch() -> pathlib.Path:
    """A new local folder, which is deleted when the process ends."""
    folder = tempfile.mkdtemp(prefix="surm_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)
