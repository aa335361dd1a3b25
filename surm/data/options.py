"""How a source is read, where it does not say it itself: the keys of `config.data` that a loader may need."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from surm.data.splits import Split, Subset, held_out
from surm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Options:
    """What is to be known of a source beside its name.

    Attributes:
      task: what a table holds (see `surm.data.glue`); `auto` goes by the folder's name.
      text_columns: of a table of one's own, one name or two separated by a comma.
      label_column: of a table of one's own.
      image_column: of a table of images; `auto` is its only one.
      test_examples: taken out of the training split to be held out, where a source has no such split; 0 = none.
      seed: decides which.
    """

    task: str = "auto"
    text_columns: str = "sentence"
    label_column: str = "label"
    image_column: str = "auto"
    test_examples: int = 0
    seed: int = 0

    def parts(self, found: Mapping[str, Split], where: str) -> dict[str, Any]:
        """The splits of a run.

        Args:
          found: what the source has, by name.
          where: the source in messages.

        Returns:
          `train`, `validation` (None if there is none), `test` and `test_is` of a `surm.data.splits.Dataset`.

        Raises:
          InputError: if there is nothing to train on or nothing to hold out.
        """
        validation, test = held_out(found)
        if "train" not in found:
            raise InputError(f"{where} has no training split; it has {', '.join(found) or 'none'}")
        if test is not None and self.test_examples:
            raise InputError(
                f"data.test_examples={self.test_examples}, but {where} has a held-out split of its own; set 0"
            )
        if test is not None:
            own = "test" if "test" in found else "validation"
            return {"train": found["train"], "validation": validation, "test": test, "test_is": own}
        train, test = self._taken(found["train"], where)
        return {"train": train, "validation": None, "test": test, "test_is": "train"}

    def _taken(self, train: Split, where: str) -> tuple[Split, Split]:
        if not self.test_examples:
            raise InputError(
                f"{where} has no test or val split beside the {len(train):,} training examples; add one, or set "
                "config.data.test_examples to a number that is held out of them"
            )
        if not 0 < self.test_examples < len(train):
            raise InputError(
                f"data.test_examples={self.test_examples}, expected less than the {len(train):,} for training"
            )
        order = np.random.default_rng((self.seed, 2)).permutation(len(train))
        taken, left = (Subset(train, np.sort(part)) for part in np.split(order, [self.test_examples]))
        return left, taken
