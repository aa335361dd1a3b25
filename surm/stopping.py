"""Stopping a run politely: Ctrl-C and SIGTERM let the step in progress finish, then the run saves and ends."""

import contextlib
import signal
import threading
from collections.abc import Iterator


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
def requests() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM inside a `with` block; a second one of a kind acts at once, as it always does.

    Yields:
      The numbers of the signals that have come; empty as long as none has. Outside the main thread it stays empty:
      only the main thread may handle signals.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    # A handler that was not set from Python is None, and cannot be put back.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, note)
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
