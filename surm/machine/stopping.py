"""Stopping a run politely: Ctrl-C and SIGTERM let the step in progress finish, then the run saves and ends.

Before the first step there is nothing to save, so the signals end the program immediately.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_leaving = threading.Lock()


class Stopped(BaseException):
    """A run was asked to stop, and has stopped with a checkpoint of everything it had done.

    Like `KeyboardInterrupt` this is no `Exception`: code that continues after a failed run must not continue after
    this.

    Attributes:
      signal: the number of the signal.
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.signal = number


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Makes SIGINT and SIGTERM end the process inside a `with` block, with a line and status 128 + the signal's number.

    This is for a program that connects or compiles. An exception raised inside a callback of a compiler is lost, or
    crashes the process with a segmentation fault, and none is raised while a library waits. So the handler itself ends
    the process, and if Python does not get to call the handler, a thread does. Inside `requests` neither acts.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    before = signal.set_wakeup_fd(writing)
    try:
        heeded = {number: handler for number, handler in _handlers().items() if handler is not signal.SIG_IGN}
        with _handled(_leave, heeded):  # a signal that is ignored, as SIGINT is in the background, stays ignored
            yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)


def _leave(number: int, _: object = None) -> None:
    """The handler of `at_once`, also called by its thread; whichever comes second leaves it to the first."""
    if not _leaving.acquire(blocking=False):
        return
    said = f"stopped by {signal.Signals(number).name} at once; the same command continues from the last checkpoint\n"
    try:
        os.write(2, said.encode())  # the stream itself may be in the middle of a line
    finally:  # nobody may be reading any more
        os._exit(128 + number)


def _watch(reading: int) -> None:
    """Ends the process when a signal for `at_once` comes; returns at the end of the `with` block."""
    with open(reading, "rb", buffering=0) as pipe:
        while came := pipe.read(1):
            if signal.getsignal(came[0]) is _leave:
                _leave(came[0])


@contextlib.contextmanager
def requests() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM inside a `with` block; a second signal of the same kind acts immediately, as usual.

    Yields:
      The numbers of the signals that have come so far. Outside the main thread the list stays empty, because only the
      main thread may handle signals.
    """
    asked: list[int] = []
    before = _handlers()

    def note(number: int, _: object) -> None:
        asked.append(number)
        watched = before[number] is _leave  # that handler would not wait for the checkpoint being saved
        signal.signal(number, _USUAL[number] if watched else before[number])

    with _handled(note, before), _unwatched(before):
        yield asked


@contextlib.contextmanager
def _unwatched(before: dict[int, Any]) -> Iterator[None]:
    """Hides signals from the thread of `at_once` inside a `with` block; it looks again when the block has ended."""
    if _leave not in before.values():
        yield
        return
    pipe = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(pipe)


def _handlers() -> dict[int, Any]:
    """The current handler of each signal; empty outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    # A handler that was not set from Python is None, and cannot be put back.
    return {number: signal.getsignal(number) or signal.SIG_DFL for number in _USUAL}


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None], before: dict[int, Any]) -> Iterator[None]:
    """Installs a handler for signals inside a `with` block, and restores the previous ones afterwards."""
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
