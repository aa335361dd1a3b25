"""Orders in which every class comes equally often, however many examples it has."""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Int

from surm.data.splits import Split


def drawn(labels: Int[np.ndarray, " n"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """As many examples as there are, every class that occurs equally often, give or take one.

    Of a class that has too few, all come before one comes again; of one that has too many, some stay out.

    Args:
      labels: of all examples.
      rng: decides which and in what order.

    Returns:
      Numbers of examples.
    """
    classes = rng.permutation(np.unique(labels))  # those that come first get what does not divide
    chosen = []
    for place, label in enumerate(classes):
        members = np.flatnonzero(labels == label)
        want = len(labels) // len(classes) + (place < len(labels) % len(classes))
        rounds = [rng.permutation(members) for _ in range(-(-want // len(members)))]
        chosen.append(np.concatenate([members[:0], *rounds])[:want])
    return rng.permutation(np.concatenate(chosen))


@dataclasses.dataclass(frozen=True, eq=False)
class BalancedSplit:
    """A split gone through again and again by `drawn`, in an order that a seed decides; what grain reads.

    Attributes:
      parent: the examples.
      seed: of the order.
    """

    parent: Split
    seed: int

    def __len__(self) -> int:
        return 2**30 // len(self.parent) * len(self.parent)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number_of_pass, place = divmod(int(index), len(self.parent))
        return self.parent[int(self._order_of(number_of_pass)[place])]

    @functools.cached_property
    def _order_of(self) -> Any:
        """The order of a pass; the last two asked for are remembered."""
        labels = self.parent.labels
        return functools.lru_cache(maxsize=2)(lambda number: drawn(labels, np.random.default_rng((self.seed, number))))
