"""Locks that keep two runs from working in one folder.

On a local path, the operating system's lock on `.lock` keeps others out. A process releases it when it ends, in
whatever way.

A store has no locks, but a new object is listed immediately (Google Cloud Storage and S3 promise this). So a run first
writes a flag of its own below `.lock/` and then lists the others. If two runs start together, at least one sees the
other, and a run that sees another one leaves. A run renews its flag every `BEAT` seconds. A flag belongs to nobody and
is removed if it was not renewed for `SILENCE` seconds, or if its process was on this machine and has ended. So a killed
run can be continued immediately on its own machine, and after `SILENCE` seconds on another. A run that was cut off from
its store for so long, and has lost its flag to another run, notices this at its next write and ends there.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from surm.errors import InputError, one_line
from surm.machine import buckets
from surm.report.run_folder import LOCK

BEAT, SILENCE = 10.0, 60.0
_BEGUN = "begun"
"""The object below `.lock/` that stays, as a sign that a run has worked here."""


class Lock:
    """Keeps other runs out of a folder."""

    def refuse_if_busy(self) -> None:
        """Raises InputError if another run works in the folder; an early check, while `held` decides."""
        raise NotImplementedError

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs out during a `with` block; InputError if a run is there, or the folder is not writable."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises OSError if another run has taken over the folder meanwhile."""


def of(folder: epath.Path) -> Lock:
    """The lock of a run's folder."""
    return FlagLock(folder) if buckets.holds(folder) else SystemLock(folder)


class SystemLock(Lock):
    """The system's lock on a local file."""

    def __init__(self, folder: epath.Path):
        self._folder, self._file = folder, pathlib.Path(folder) / LOCK

    def refuse_if_busy(self) -> None:
        """See `Lock`."""
        if os.access(self._file, os.R_OK):
            with open(self._file) as lock:
                self._hold(lock, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """See `Lock`."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch()
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        with open(self._file, "r+") as lock:
            self._hold(lock, fcntl.LOCK_EX)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def _hold(self, lock: Any, kind: int) -> None:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _busy(self._folder, lock.read().strip() or "unknown") from error


class FlagLock(Lock):
    """A flag in a store, renewed while its run lives."""

    def __init__(self, folder: epath.Path):
        self._folder, self._flags = folder, folder / LOCK
        self._beats, self._writing = 0, threading.Lock()
        self._lower()

    def _lower(self) -> None:
        """Prepares a new flag that is not written yet."""
        self._own, self._holds, self._lost = self._flags / uuid.uuid4().hex, False, ""
        self._renewed = time.monotonic()
        self._ended = threading.Event()

    def refuse_if_busy(self) -> None:
        """See `Lock`; waits up to `SILENCE` seconds for a sign of life from a run on another machine."""
        self._wait_for_others(yield_to_all=False)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """See `Lock`."""
        try:
            (self._flags / _BEGUN).write_text("")
            self._raise_flag()
        except Exception as error:  # the store's client raises exceptions of many types
            raise _unwritable(self._folder, error) from error
        beating = threading.Thread(target=self._beat, daemon=True)
        beating.start()
        try:
            self._wait_for_others(yield_to_all=True)
            self._holds = True
            self._raise_flag()
            yield
        finally:
            self._ended.set()
            beating.join()
            with contextlib.suppress(Exception):  # a flag that is left is not renewed, and the next run removes it
                self._own.unlink(missing_ok=True)
            self._lower()

    def check(self) -> None:
        """See `Lock`."""
        if self._holds and time.monotonic() - self._renewed > SILENCE:  # for instance after the process was suspended
            self._look()  # before the next beat, because the folder may belong to another run by now
        if self._lost:
            raise OSError(self._lost)

    def _raise_flag(self) -> None:
        with self._writing:
            self._beats += 1
            self._own.write_text(json.dumps(_owner() | {"holds": self._holds, "beats": self._beats}))
            self._renewed = time.monotonic()

    def _beat(self) -> None:
        """Renews the flag until the block has ended, and notices if another run considered it abandoned."""
        while not self._ended.wait(BEAT):
            try:
                if self._holds:
                    self._look()
                if self._lost:
                    return
                self._raise_flag()
            except Exception:  # the store may answer again at the next beat
                continue

    def _look(self) -> None:
        """Finds out whether another run has taken over."""
        if not self._own.exists() or any(owner.get("holds") for owner in self._others().values()):
            self._lost = (
                f"workdir {str(self._folder)!r}: this run was silent for more than {SILENCE:.0f} seconds, and another "
                "one has taken over; it ends here"
            )

    def _others(self) -> dict[str, dict[str, Any]]:
        """The flags of other runs, with their contents."""
        found = {}
        for flag in self._flags.iterdir() if self._flags.exists() else ():
            if flag.name not in (_BEGUN, self._own.name):
                with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):  # it was removed in between
                    found[flag.name] = json.loads(flag.read_text())
        return found

    def _wait_for_others(self, *, yield_to_all: bool) -> None:
        """Returns when no flag of a living run is left; raises InputError if such a run exists."""
        seen: dict[str, tuple[int, float]] = {}
        while others := self._others():
            for name, owner in others.items():
                beats, since = seen.setdefault(name, (owner["beats"], time.monotonic()))
                alive = _is_alive(owner)
                if alive is None and owner["beats"] != beats:
                    alive = True
                if alive and (owner["holds"] or (yield_to_all and self._own.name > name)):
                    raise _busy(self._folder, f"{owner['process']} on {owner['host']}")
                if alive is False or (alive is None and time.monotonic() - since > SILENCE):
                    (self._flags / name).unlink(missing_ok=True)
            if not yield_to_all and not any(owner["holds"] for owner in others.values()):
                return
            time.sleep(min(BEAT, 1.0))


def _owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "machine": _machine(), "process": os.getpid(), "began": _began(os.getpid())}


def _is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether the process that owns a flag lives; None if it is on another machine, where this is unknown."""
    if owner["machine"] != _machine():
        return None
    return _began(owner["process"]) == owner["began"]


def _machine() -> str:
    """A name for this machine since its last start, and for its namespace of process numbers."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _began(process: int) -> str:
    """When a process of this machine started, to tell it from a later one with the same number; "" if it is gone."""
    try:
        state, *_, began = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:20]
        return "" if state == "Z" else began
    except OSError:
        if pathlib.Path("/proc/self/stat").exists():
            return ""
    with contextlib.suppress(OSError):  # no /proc on this system
        os.kill(process, 0)
        return "unknown"
    return ""


def _busy(folder: epath.Path, holder: str) -> InputError:
    return InputError(
        f"workdir {str(folder)!r}: another run, process {holder}, is in it; wait for it, stop it, or name another "
        "workdir"
    )


def _unwritable(folder: epath.Path, error: Exception) -> InputError:
    return InputError(f"workdir {str(folder)!r} cannot be written ({one_line(error)}); name another")
