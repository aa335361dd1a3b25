"""What one row of the table of odd inputs is."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple


class Line(NamedTuple):
    """The input is refused: one line that holds this text."""

    text: str


class Odd(NamedTuple):
    """An input that is bad or odd, and what comes of it.

    Attributes:
      name: what is odd, in a few words.
      act: does what a user would, with an empty folder at hand; returns what is compared.
      right: the value that it must return, or the `Line` that it is refused with. What a refused act would have
        written goes to `folder / "out"`, which must not be there afterwards.
    """

    name: str
    act: Callable[[pathlib.Path], Any]
    right: Any
