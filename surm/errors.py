"""The error for input that cannot be used, and helpers for one-line messages."""

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """Input cannot be used; the message says what was given and what was expected.

    The command line prints it as one line and exits with a non-zero status; callers of the library may catch
    it as the `ValueError` it is.
    """


def nearest(given: str, known: Iterable[str], count: int = 3) -> str:
    """Names the known names closest to the given one, for the end of an error message.

    Args:
      given: what the user wrote.
      known: everything that would have been accepted.
      count: how many names to show at most.

    Returns:
      `"nearest: a, b"`, or all names (up to 12) if none is close.
    """
    names = sorted(set(known))
    by_folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(given.casefold(), by_folded, n=count, cutoff=0.5)
    if close:
        return "nearest: " + ", ".join(by_folded[folded] for folded in close)
    return "known: " + ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


_LONGEST = 300  # characters of somebody else's error


def one_line(what: object) -> str:
    """The text of an error in one line, for the middle of a message.

    Args:
      what: an error, or any text.

    Returns:
      The text in one line, cut if it is long; the type's name if it is empty.

    Examples:
      >>> one_line(ValueError("bad\\n  magic")), one_line(EOFError())
      ('bad magic', 'EOFError')
    """
    text = " ".join(str(what).split()) or type(what).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def pasted(pattern: str) -> str:
    r"""A pattern in a form to paste into a shell, or into Python behind an r, without doubled backslashes.

    Args:
      pattern: a regular expression, or any text.

    Returns:
      The text between single quotes, in one line.

    Examples:
      >>> print(pasted(r".*\.bias"))
      '.*\.bias'
    """
    return "'" + pattern.replace("\n", r"\n").replace("'", "'\"'\"'") + "'"


def quoted(value: object) -> str:
    """A value of a config in a form to paste: strings by `pasted`, several separated by commas, others as in Python."""
    if isinstance(value, str):
        return pasted(value)
    if isinstance(value, list | tuple) and value and all(isinstance(part, str) for part in value):
        return ", ".join(map(pasted, value))
    return repr(value)


def few(names: Sequence[str], count: int = 8) -> str:
    """The first names of a list and the number of the others, on one line, for an error message."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return one_line(", ".join(names[:count]) or "none") + more
