"""Options for reading a source: the keys of `config.data` that a loader may need."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from surm.data.splits import Split, Subset, held_out
from surm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Options:
    """How to read a source, beyond its name.

    Attributes:
      task: the task of a table (see `surm.data.glue`); `auto` reads it from the folder's name.
      text_columns: the text columns of the user's own table, one name or two separated by a comma.
      label_column: the label column of the user's own table.
      image_column: the image column of a table; `auto` takes its only one.
      test_examples: the number of training examples to hold out if the source has no test split; 0 = none.
      seed: the seed that chooses these examples.
    """

    task: str = "auto"
    text_columns: str = "sentence"
    label_column: str = "label"
    image_column: str = "auto"
    test_examples: int = 0
    seed: int = 0

    def parts(self, found: Mapping[str, Split], where: str) -> dict[str, Any]:
        """Chooses the splits of a run.

        Args:
          found: the splits of the source, by name.
          where: the name of the source in messages.

        Returns:
          `train`, `validation` (None if there is none), `test` and `test_is` of a `surm.data.splits.Dataset`.

        Raises:
          InputError: if there is no training split or no held-out split.
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
                "config.data.test_examples to hold out that many of them"
            )
        if not 0 < self.test_examples < len(train):
            raise InputError(
                f"data.test_examples={self.test_examples}, expected less than the {len(train):,} for training"
            )
        order = np.random.default_rng((self.seed, 2)).permutation(len(train))
        taken, left = (Subset(train, np.sort(part)) for part in np.split(order, [self.test_examples]))
        return left, taken
