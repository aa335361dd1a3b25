"""The rows of every batch that one process reads if several train together."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np


@dataclasses.dataclass(frozen=True)
class Share:
    """One of equal parts of every batch.

    Attributes:
      index: the index of the part, from 0.
      count: the number of parts.
    """

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch; its size must be a multiple of the count.

        Examples:
          >>> Share(1, 4).rows(8)
          slice(2, 4, None)
        """
        size = batch_size // self.count
        return slice(self.index * size, (self.index + 1) * size)


WHOLE = Share()
"""The share of a single process: every row."""


class Shared(grain.MapDataset):
    """The examples of one share, batch by batch; if a pass ends within a batch, masked examples follow.

    Examples that another process reads are not computed here.
    """

    def __init__(self, parent: grain.MapDataset, batch_size: int, share: Share):
        """Takes the examples of a pass, in the order of the batches that all processes read together."""
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, share.rows(batch_size)

    def __len__(self) -> int:
        return -(-len(self._parent) // self._batch_size) * (self._rows.stop - self._rows.start)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """The example at a position of the share, counted on over passes."""
        number_of_pass, place = divmod(index, len(self))
        batch, row = divmod(place, self._rows.stop - self._rows.start)
        place, first = batch * self._batch_size + self._rows.start + row, number_of_pass * len(self._parent)
        if place < len(self._parent):
            return self._parent[first + place]
        return {name: np.zeros_like(value) for name, value in self._parent[first].items()}
