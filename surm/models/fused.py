"""Arrays that files store as one, split into those of a model's maps, and joined again."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Fused(NamedTuple):
    """Several maps of one input that a file stores as one map.

    Attributes:
      whole: the last words of the module's name in the file.
      parts: the names that stand in their place after the split, in the order of the outputs.
      sizes: a function from all arrays, the first words of the module's name and the number of its outputs to the
        number of outputs of every part; None if it cannot be told, in which case the array is left as it is.
      axis: the axis of the outputs in a weight.
    """

    whole: str
    parts: tuple[str, ...]
    sizes: Callable[[Arrays, str, int], list[int] | None]
    axis: int = 0

    def split(self, arrays: Arrays) -> Arrays:
        """Splits the arrays of such modules; others stay as they are."""
        found = {}
        for key, array in arrays.items():
            match = re.fullmatch(rf"(.*\.)?{re.escape(self.whole)}\.(weight|bias)", key)
            axis = self.axis if array.ndim > 1 else 0
            sizes = self.sizes(arrays, match[1] or "", array.shape[axis]) if match and array.ndim else None
            if sizes is None:
                found[key] = array
                continue
            pieces = np.split(np.asarray(array), np.cumsum(sizes)[:-1], axis)
            found |= {
                f"{match[1] or ''}{part}.{match[2]}": piece for part, piece in zip(self.parts, pieces, strict=True)
            }
        return found

    def join(self, arrays: Arrays) -> Arrays:
        """The inverse of `split`."""
        found = {}
        for key, array in arrays.items():
            match = re.fullmatch(rf"(.*\.)?({'|'.join(map(re.escape, self.parts))})\.(weight|bias)", key)
            if match is None:
                found[key] = array
            elif match[2] == self.parts[0]:
                pieces = [arrays[f"{match[1] or ''}{part}.{match[3]}"] for part in self.parts]
                whole = f"{match[1] or ''}{self.whole}.{match[3]}"
                found[whole] = np.concatenate(pieces, self.axis if array.ndim > 1 else 0)
        return found


def equal(count: int) -> Callable[[Arrays, str, int], list[int] | None]:
    """The `sizes` of parts with equally many outputs."""
    return lambda arrays, front, outputs: None if outputs % count else [outputs // count] * count
