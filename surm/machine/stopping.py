"""Stopping a run politely: Ctrl-C and SIGTERM let the step in progress finish, then the run saves and ends.

Before the first step there is nothing to save, so the signals end the program immediately. So does a second signal
while the run saves.
"""

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_ONE_REQUEST = 0.3  # seconds; `timeout` sends a process the same signal twice, once to it and once to its group
_leaving = threading.Lock()
_GOING_ON = "the same command continues from the last checkpoint"
_said_at_once = _GOING_ON


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
def at_once(said: str = _GOING_ON) -> Iterator[None]:
    """Makes SIGINT and SIGTERM end the process inside a `with` block, with a line and status 128 + the signal's number.

    This is for a program that connects or compiles. An exception raised inside a callback of a compiler is lost, or
    crashes the process with a segmentation fault, and none is raised while a library waits. So the handler itself ends
    the process, and if Python does not get to call the handler, a thread does. Inside `requests` only a second signal
    of the same kind ends the process. Outside the main thread, which alone may handle signals, nothing changes.

    Args:
      said: the end of the line, which says what is left.
    """
    global _said_at_once
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    said_before, _said_at_once = _said_at_once, said
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
        _said_at_once = said_before
        # While Python ends, JAX disconnects; a KeyboardInterrupt there would print a traceback.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)


def _leave(number: int, _: object = None) -> None:
    """The handler of `at_once`, also called by its thread; whichever comes second leaves it to the first.

    `os._exit` does not wait for other threads. The threads in which orbax writes a checkpoint would hold up an orderly
    exit until they have finished, which can take minutes. What they leave has a temporary name, which the next start
    removes, and the operating system releases the lock of the run's folder.
    """
    if not _leaving.acquire(blocking=False):
        return
    said = f"stopped by {signal.Signals(number).name} at once; {_said_at_once}\n"
    try:
        os.write(2, said.encode())  # the stream itself may be in the middle of a line
    finally:  # nobody may be reading any more
        os._exit(128 + number)


def _watch(reading: int) -> None:
    """Ends the process when a signal for `at_once` comes; returns at the end of the `with` block."""
    with open(reading, "rb", buffering=0) as pipe:
        while came := pipe.read(1):
            handler = signal.getsignal(came[0])
            if handler is _leave or (isinstance(handler, _Collecting) and handler.is_second(came[0])):
                _leave(came[0])


class _Collecting:
    """The handler of `requests` inside `at_once`, whose thread acts on a second signal."""

    def __init__(self, asked: list[int], watched: set[int]):
        self._asked, self._watched = asked, watched
        self._first: dict[int, float] = {}

    def __call__(self, number: int, _: object) -> None:
        if number not in self._asked:
            self._asked.append(number)

    def is_second(self, number: int) -> bool:
        """Whether a signal that has just come repeats an earlier one. Only the thread of `at_once` calls this."""
        now = time.monotonic()
        return number in self._watched and now - self._first.setdefault(number, now) > _ONE_REQUEST


@contextlib.contextmanager
def requests() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM inside a `with` block; a second signal of the same kind acts immediately.

    Inside `at_once` the second signal ends the process, whatever its threads are doing. Elsewhere it does what it did
    before the block; in a notebook it raises KeyboardInterrupt.

    Yields:
      The numbers of the signals that have come so far. Outside the main thread the list stays empty, because only the
      main thread may handle signals.
    """
    asked: list[int] = []
    before = _handlers()

    def note(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    watched = {number for number, handler in before.items() if handler is _leave}
    with _handled(_Collecting(asked, watched) if watched else note, before):
        yield asked


def _handlers() -> dict[int, Any]:
    """The current handler of each signal; empty outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    # A handler that was not set from Python is None, and cannot be put back.
    return {number: signal.getsignal(number) or signal.SIG_DFL for number in _NUMBERS}


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
