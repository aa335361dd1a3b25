"""What is said on the way: one function for all that the library has to tell, shown by commands alone.

A library does not print. What is said goes to Python's logger `surm`; a command shows it, and a notebook or a program
of one's own does so with `logging.basicConfig(level=logging.INFO)`.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator

_LOGGER = logging.getLogger("surm")


def say(text: str) -> None:
    """Says what is odd but usable, and what is done with it, or what a run does."""
    _LOGGER.info(text)


def warn(text: str) -> None:
    """Says that something failed which the run can do without."""
    _LOGGER.warning(text)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Shows what is said for the length of a `with` block: on standard output, warnings on standard error."""
    if any(isinstance(handler, _Lines) for handler in _LOGGER.handlers):  # by whoever called
        yield
        return
    level, handler = _LOGGER.level, _Lines()
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)


class _Lines(logging.Handler):
    """Writes a line at once, to the stream that is there by then."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno < logging.WARNING:
            print(text, flush=True)
        else:
            print(f"warning: {text}", file=sys.stderr, flush=True)
