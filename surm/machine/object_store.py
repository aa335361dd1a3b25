"""s3:// for `etils.epath`, through obstore: objects are read whole or in ranges, and written in one step.

epath reaches remote paths through a file system of fsspec. The usual one for S3, s3fs, requires an older
python-dateutil than the tested versions have, and obstore's own ends the interpreter with SIGABRT (0.12.1).
"""

import datetime
import functools
import io
import os
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec
import fsspec.spec
import obstore.store
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError

from surm.errors import one_line

Value = TypeVar("Value")
_PATIENCE = {"max_retries": 5, "retry_timeout": datetime.timedelta(seconds=60)}
"""Limits for one request; by itself the store retries ten times, for three minutes."""


class ObjectStore(fsspec.AbstractFileSystem):
    """The objects of S3's buckets by name, `bucket/key`; a folder exists while an object's name begins with it."""

    protocol = "s3"

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Lists a folder without caching, because another process may have written to it meanwhile."""
        bucket, key = _parts(self._strip_protocol(path))
        listed = _asked(path, lambda: _store(bucket).list_with_delimiter(f"{key}/" if key else None))
        found = [_object(f"{bucket}/{each['path']}", each["size"]) for each in listed["objects"]]
        found += [_folder(f"{bucket}/{prefix.rstrip('/')}") for prefix in listed["common_prefixes"]]
        if not found:
            found = [self._head(path)]
        return found if detail else sorted(each["name"] for each in found)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Describes the object or folder of a name; raises FileNotFoundError if there is neither."""
        try:
            return self._head(path)
        except FileNotFoundError:
            bucket, key = _parts(self._strip_protocol(path))
            listed = _asked(path, lambda: _store(bucket).list_with_delimiter(f"{key}/" if key else None))
            if not listed["objects"] and not listed["common_prefixes"]:
                raise
            return _folder(f"{bucket}/{key}")

    def exists(self, path: str, **_: Any) -> bool:
        """Whether a name exists; unlike fsspec's own method it does not take a failed request for a no."""
        try:
            return bool(self.info(path))
        except FileNotFoundError:
            return False

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Reads an object's bytes, or some of them."""
        bucket, key = _parts(self._strip_protocol(path))
        if start is None and end is None:
            return _asked(path, lambda: _store(bucket).get(key).bytes().to_bytes())
        first, behind = start or 0, self._head(path)["size"] if end is None else end
        return _asked(path, lambda: _store(bucket).get_range(key, start=first, end=behind).to_bytes())

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Writes an object in one step: afterwards it has all its new bytes, or it is as it was."""
        bucket, key = _parts(self._strip_protocol(path))
        _asked(path, lambda: _store(bucket).put(key, value, mode=mode))

    def rm_file(self, path: str) -> None:
        """Removes an object."""
        bucket, key = _parts(self._strip_protocol(path))
        _asked(path, lambda: _store(bucket).delete(key))

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Removes an object, or all objects below a name."""
        for each in self.expand_path(path, recursive=recursive, maxdepth=maxdepth):
            if self._is_object(each):
                self.rm_file(each)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copies an object."""
        self.pipe_file(path2, self.cat_file(path1))

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Does nothing, because a folder exists as soon as there is an object in it."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Does nothing, because a folder exists as soon as there is an object in it."""

    def _is_object(self, path: str) -> bool:
        return self.info(path)["type"] == "file"

    def _head(self, path: str) -> dict[str, Any]:
        bucket, key = _parts(self._strip_protocol(path))
        if not key:
            raise FileNotFoundError(path)
        return _object(f"{bucket}/{key}", _asked(path, lambda: _store(bucket).head(key))["size"])

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.IOBase:
        if mode == "rb":
            return _Read(self, path)
        if mode == "wb":
            return _Written(functools.partial(self.pipe_file, path))
        raise ValueError(f"an object is opened to read (rb) or to write (wb), got {mode!r}")


class _Read(fsspec.spec.AbstractBufferedFile):
    """An object that is read in parts."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)


class _Written(io.BytesIO):
    """Bytes that become an object once all are written; after an exception nothing is written."""

    def __init__(self, put: Callable[[bytes], None]):
        super().__init__()
        self._put = put

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            super().close()
        self.close()

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._put(data)


def _parts(name: str) -> tuple[str, str]:
    bucket, _, key = name.partition("/")
    return bucket, key.strip("/")


def _object(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "size": size, "type": "file"}


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _store(bucket: str) -> obstore.store.S3Store:
    """Opens a bucket with the credentials, region and endpoint of the environment (AWS_...) as they are now."""
    return _opened(bucket, frozenset(item for item in os.environ.items() if item[0].startswith("AWS_")))


@functools.cache
def _opened(bucket: str, environment: frozenset[tuple[str, str]]) -> obstore.store.S3Store:
    """The bucket, opened once for each environment, which obstore reads itself."""
    return obstore.store.S3Store(bucket, retry_config=_PATIENCE)


def _asked(path: str, act: Callable[[], Value]) -> Value:
    """The answer of a request; its errors become those of files, each in one line."""
    try:
        return act()
    except (FileNotFoundError, NotFoundError) as error:
        raise FileNotFoundError(f"{path}: {_short(error)}") from error
    except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
        raise PermissionError(f"{path}: {_short(error)}") from error
    except (BaseError, OSError) as error:
        raise OSError(f"{path}: {_short(error)}") from error


def _short(error: Exception) -> str:
    return one_line(str(error).partition("Debug source")[0])
