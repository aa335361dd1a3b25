"""What every source ends as: random-access splits of labelled examples, which is what grain reads."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np

from surm.errors import InputError


class Split(Protocol):
    """Random access to examples: `{"image": uint8 H×W×C, "label": int}` or `{"texts": (str, ...), "label": ...}`."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example."""

    @property
    def labels(self) -> np.ndarray:
        """All labels, in order, without decoding an image."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The splits of one data set, and how answers to it are measured.

    Attributes:
      train: what is trained on.
      validation: what choices are made on; None where the source has none.
      test: the held-out split.
      num_classes: labels are 0 .. num_classes − 1; 1 for regression.
      metrics: names in `surm.metrics.METRICS`, the main one first.
      regression: whether labels are numbers to be met.
      also: further held-out splits, by a name that their metrics carry.
      kind: what the examples hold.
      class_names: what the classes are called, in order; empty where the source does not say.
    """

    train: Split
    validation: Split | None
    test: Split
    num_classes: int
    metrics: tuple[str, ...] = ("accuracy",)
    regression: bool = False
    also: Mapping[str, Split] = dataclasses.field(default_factory=dict)
    kind: Literal["image", "text"] = "image"
    class_names: tuple[str, ...] = ()

    def split(self, name: str) -> Split:
        """The split called `train`, `validation` or `test`; InputError if there is none of that name."""
        found = getattr(self, name, None) if name in ("train", "validation", "test") else None
        if found is None:
            present = [n for n in ("train", "validation", "test") if getattr(self, n) is not None]
            raise InputError(f"the data has no split {name!r}; it has {', '.join(present)}")
        return found

    def fingerprint(self) -> str:
        """A hash of sizes, classes and examples: of every text, and of 64 images a split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test, **self.also}
        sizes = {name: len(split) for name, split in splits.items() if split is not None}
        digest = hashlib.sha256(repr((self.kind, self.num_classes, self.class_names, sizes)).encode())
        for name, size in sizes.items():
            for index in range(0, size, 1 if self.kind == "text" else math.ceil(size / 64)):
                example = splits[name][index]
                for key in sorted(example):
                    value = example[key]
                    digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySplit:
    """A split held in memory."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index], "label": self.labels[index]}


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some examples of a split, in the order of `indices`."""

    parent: Split
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.parent[int(self.indices[index])]

    @property
    def labels(self) -> np.ndarray:
        """Labels of the subset."""
        return self.parent.labels[self.indices]
