"""The common form of all sources: random-access splits of labelled examples, which grain reads."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int, Real, Shaped

from surm.errors import InputError

_AT_A_TIME = 1024  # the number of images that are hashed at once
CONTENT = "content:"  # the prefix of all fingerprints except those of 0.1.0, which covered 64 images per split


@runtime_checkable
class Split(Protocol):
    """Random access to examples: `{"image": uint8 H×W×C, "label": int}`, `{"texts": (str, ...), "label": ...}`, or what
    `surm.data.language` reads, which has no labels.
    """

    def __len__(self) -> int:
        """The number of examples."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example."""

    @property
    def labels(self) -> Real[np.ndarray, " n"]:
        """All labels, in order, without decoding an image; zeros if there are none."""

    def content(self, index: Int[np.ndarray, " chosen"]) -> Iterator[bytes | memoryview]:
        """The contents of the examples with these indices, without labels, for hashing; images as they are stored."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The splits of one data set, and the metrics of its answers.

    Attributes:
      train: the training split.
      validation: the split for choices; None if the source has none.
      test: the held-out split.
      num_classes: labels are 0 .. num_classes − 1; 1 for regression, and if there are no labels.
      metrics: names in `surm.tasks.metrics.METRICS`, the main metric first; empty if there are no labels.
      regression: whether the targets are real numbers.
      also: further held-out splits, by the name that their metrics carry.
      kind: the kind of the examples.
      class_names: the names of the classes, in order; empty for regression, and if there are no labels.
      keys: the keys of `config.data`, besides the common ones, that the reading of the source depends on.
      test_is: the source's split from which `test` comes: `validation` if there is no other, `train` if examples were
        taken out of the training split.
    """

    train: Split
    validation: Split | None
    test: Split
    num_classes: int
    metrics: tuple[str, ...] = ("accuracy",)
    regression: bool = False
    also: Mapping[str, Split] = dataclasses.field(default_factory=dict)
    kind: Literal["image", "text", "language"] = "image"
    class_names: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()
    test_is: str = "test"

    @property
    def names(self) -> list[str]:
        """The names of the classes; numbers if the source has no names."""
        return [str(name) for name in self.class_names or range(self.num_classes)]

    def split(self, name: str) -> Split:
        """The split called `train`, `validation` or `test`; InputError if there is none of that name."""
        found = getattr(self, name, None) if name in ("train", "validation", "test") else None
        if found is None:
            present = [n for n in ("train", "validation", "test") if getattr(self, n) is not None]
            raise InputError(f"the data has no split {name!r}; it has {', '.join(present)}")
        return found

    def splits(self) -> dict[str, Split]:
        """All splits, by name."""
        every = {"train": self.train, "validation": self.validation, "test": self.test, **self.also}
        return {name: split for name, split in every.items() if split is not None}

    def fingerprint(self) -> str:
        """A hash of the whole content: the classes, all labels, every text, every image as it is stored."""
        every = self.splits()
        sizes = {name: len(split) for name, split in every.items()}
        digest = hashlib.sha256(repr((self.kind, self.regression, self.class_names, sizes)).encode())
        for split in every.values():
            digest.update(np.ascontiguousarray(split.labels).tobytes())
            for piece in split.content(np.arange(len(split))):
                digest.update(piece)
        return CONTENT + digest.hexdigest()

    def fingerprint_of_0_1(self) -> str:
        """The hash that version 0.1.0 wrote into checkpoints, which covered only 64 images of a split."""
        every = self.splits()
        sizes = {name: len(split) for name, split in every.items()}
        names = self.class_names if self.kind == "text" else ()
        digest = hashlib.sha256(repr((self.kind, self.num_classes, names, sizes)).encode())
        for name, size in sizes.items():
            for index in range(0, size, 1 if self.kind == "text" else math.ceil(size / 64)):
                example = every[name][index]
                for key in sorted(example):
                    value = example[key]
                    digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        return digest.hexdigest()

    def is_of(self, fingerprint: str) -> bool:
        """Whether a checkpoint with this fingerprint was trained on the same data."""
        now = self.fingerprint() if fingerprint.startswith(CONTENT) else self.fingerprint_of_0_1()
        return fingerprint == now


Part = TypeVar("Part")


def held_out(found: Mapping[str, Part]) -> tuple[Part | None, Part | None]:
    """The validation split and the test split; if there is only one of them, it is the test split."""
    validation, test = found.get("validation"), found.get("test")
    return (validation, test) if test is not None else (None, validation)


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySplit:
    """A split held in memory."""

    images: Shaped[np.ndarray, "n ..."]
    labels: Real[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index]}

    def content(self, index: Int[np.ndarray, " chosen"]) -> Iterator[bytes | memoryview]:
        """The shapes and pixels of the images."""
        yield repr((self.images.dtype.str, self.images.shape[1:])).encode()
        for start in range(0, len(index), _AT_A_TIME):
            yield np.ascontiguousarray(self.images[index[start : start + _AT_A_TIME]]).data.cast("B")


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some examples of a split, in the order of `indices`."""

    parent: Split
    indices: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.parent[int(self.indices[index])]

    @property
    def labels(self) -> Real[np.ndarray, " n"]:
        """The labels of the subset."""
        return self.parent.labels[self.indices]

    def content(self, index: Int[np.ndarray, " chosen"]) -> Iterator[bytes | memoryview]:
        """The contents of the examples at these places, for hashing."""
        return self.parent.content(self.indices[index])
