"""Stopping a run politely: Ctrl-C and SIGTERM let the step in progress finish, then the run saves and ends."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Stopped(BaseException):
    """A run was asked to stop and did, with a checkpoint of all it had done.

    Like `KeyboardInterrupt`, no `Exception`: what goes on after a failed run does not go on after this.

    Attributes:
      signal: the number of the signal that asked.
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.signal = number


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Lets SIGINT and SIGTERM end the process inside a `with` block with a line and 128 + the signal's number.

    For a command before its loop, where compilers and readers would be left by an exception at a bad place: one raised
    inside a callback of theirs is lost, or ends the process with a fault of memory.
    """

    def leave(number: int, _: object) -> None:
        said = f"stopped by {signal.Signals(number).name} at once; the same command goes on from what was saved\n"
        os.write(2, said.encode())  # the stream itself may be in the middle of a line
        os._exit(128 + number)

    with _handled(leave):
        yield


@contextlib.contextmanager
def requests() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM inside a `with` block; a second one of a kind acts at once, as it always does.

    Yields:
      The numbers of the signals that have come; empty as long as none has. Outside the main thread it stays empty:
      only the main thread may handle signals.
    """
    asked: list[int] = []

    def note(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    with _handled(note) as before:
        yield asked


@contextlib.contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[dict[int, Any]]:
    """Has both signals handled inside a `with` block, in the main thread; yields what handled them before."""
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    # A handler that was not set from Python is None, and cannot be put back.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield before
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
