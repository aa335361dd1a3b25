"""Orders of examples in which every class is equally frequent, however many examples it has."""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Int

from surm.data.splits import Split


def drawn(labels: Int[np.ndarray, " n"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Draws as many examples as there are, with every class equally frequent, give or take one.

    If a class has too few examples, all of them come before any is repeated. If it has too many, some are left out.

    Args:
      labels: the labels of all examples.
      rng: the random generator that chooses the examples and their order.

    Returns:
      The indices of the examples.
    """
    classes = rng.permutation(np.unique(labels))  # the first ones get one example more if numbers cannot be equal
    chosen = []
    for place, label in enumerate(classes):
        members = np.flatnonzero(labels == label)
        want = len(labels) // len(classes) + (place < len(labels) % len(classes))
        rounds = [rng.permutation(members) for _ in range(-(-want // len(members)))]
        chosen.append(np.concatenate([members[:0], *rounds])[:want])
    return rng.permutation(np.concatenate(chosen))


@dataclasses.dataclass(frozen=True, eq=False)
class BalancedSplit:
    """An endless sequence of passes over a split for grain, each made by `drawn` from a seed.

    Attributes:
      parent: the examples.
      seed: the seed of the order.
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
        """The order of a pass; the last two requested ones are cached."""
        labels = self.parent.labels
        return functools.lru_cache(maxsize=2)(lambda number: drawn(labels, np.random.default_rng((self.seed, number))))
