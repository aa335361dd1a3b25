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
    absl.logging.set_verbosity(absl.logging.FATAL)  # what goes wrong is raised, and said in one line
    if not os.environ.get("GCSFS_DEBUG"):
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # which writes down every error that it raises
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × shows ?, and the run goes on
    try:
        with notes.shown():
            status = act()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # who read the output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  nothing may fail on what is left in the buffer either
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
        print(f"error: a store did not answer as it should: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
