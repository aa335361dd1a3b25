"""Keeps freed memory in the process on Linux, so that the next step can reuse it, and returns it between runs."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of mallopt, in malloc.h


def keep_freed_memory() -> bool:
    """Tells the C library to reuse freed memory instead of returning it to the system.

    XLA's CPU backend allocates the temporaries of every call anew. Blocks of their size come fresh from the system and
    go back to it, and the system clears every page when it is first touched, in every step again. Call this before
    JAX computes anything. The price is that the process never shrinks below its peak.

    Returns:
      Whether the C library accepted the setting; only glibc has it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Every block from the heap, never a mapping of its own; one heap, which is never trimmed.
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])


def return_freed_memory() -> bool:
    """Tells the C library to return all freed memory to the system, once, also that between blocks in use.

    A process that trains one run after another needs this after `keep_freed_memory`: blocks of other sizes do not fit
    into the gaps that the last run left, so that the process would grow with every run.

    Returns:
      Whether anything was returned; only glibc can.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return bool(trim and trim(0))
