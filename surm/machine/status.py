"""The exit status of a command, and the one line that says what stopped it. Imports no jax."""

import io
import logging
import os
import signal
import sys
from collections.abc import Callable

import absl.logging

from surm.errors import InputError, one_line
from surm.machine import buckets, notes


def status_of(act: Callable[[], int]) -> int:
    """Runs a command to its end and says in one line what stopped it.

    Args:
      act: the command; it returns its exit status.

    Returns:
      That status; 2 if input cannot be used or a file cannot be written, 128 + SIGINT's number for Ctrl-C,
      128 + SIGPIPE's number if nobody reads the output any more.
    """
    absl.logging.set_verbosity(absl.logging.FATAL)  # errors are raised, and reported in one line below
    if not os.environ.get("GCSFS_DEBUG"):
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # gcsfs logs every error that it raises
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show × shows ? instead of failing
    try:
        with notes.shown():
            status = act()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of the output has closed it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the rest of the buffer must not fail, either
        return 128 + signal.SIGPIPE
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        what = f"{error.filename!r}: {error.strerror}" if error.filename else error
        print(f"error: {what}", file=sys.stderr)
        return 2
    except Exception as error:
        if not buckets.failed(error):
            raise
        print(f"error: an object store failed: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
