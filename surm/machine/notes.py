"""Notices to the user: the library sends them to one logger, and only commands show them.

A library does not print. Notices go to Python's logger `surm`. A command shows them; a notebook or another program can
do so with `logging.basicConfig(level=logging.INFO)`.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator

_LOGGER = logging.getLogger("surm")


def say(text: str) -> None:
    """Reports the progress of a run, or unusual but usable input and how it is treated."""
    _LOGGER.info(text)


def warn(text: str) -> None:
    """Reports a failure that the run can survive."""
    _LOGGER.warning(text)


@contextlib.contextmanager
def shown(*, alone: bool = True) -> Iterator[None]:
    """Shows notices during a `with` block, on standard output, and warnings on standard error.

    Args:
      alone: whether no other handler of Python's logging gets them meanwhile.
    """
    if any(isinstance(handler, _Lines) for handler in _LOGGER.handlers):  # the caller shows them already
        yield
        return
    level, passed_on, handler = _LOGGER.level, _LOGGER.propagate, _Lines()
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = not alone  # the root's handlers may write to the terminal, too
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)
        _LOGGER.propagate = passed_on


class _Lines(logging.Handler):
    """Writes each line immediately, to the stream that is current at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno < logging.WARNING:
            print(text, flush=True)
        else:
            print(f"warning: {text}", file=sys.stderr, flush=True)
