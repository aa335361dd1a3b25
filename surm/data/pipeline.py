"""Makes batches of images from a split: shuffling, resizing, augmentation and padding, all in grain.

A batch is `{"image": uint8 B×S×S×C, "label": int32 B, "mask": bool B}`. Every pass covers each example exactly once;
the last batch of a pass is padded with masked examples, so metrics are exact and shapes never change. The position
in the stream is a small dict (`iterator.get_state()`), and a restored iterator continues as if never stopped.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8

from surm.data.balanced import BalancedSplit
from surm.data.config_keys import AUGMENTATIONS
from surm.data.pictures import Rule, Square, prepared
from surm.data.share import WHOLE, Share, Shared
from surm.data.splits import Split
from surm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Resize:
    """Prepares every image by a rule; a number stands for a `Square` of that side with three channels."""

    rule: Rule | int

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """Prepares one example and marks it as real (not padding)."""
        rule = Square(self.rule) if isinstance(self.rule, int) else self.rule
        return {"image": prepared(example["image"], rule), "label": example["label"], "mask": np.bool_(True)}


@dataclasses.dataclass(frozen=True)
class CropFlip(grain.transforms.RandomMap):
    """Shifts an image by up to an eighth of its side (edges reflected) and mirrors every second one."""

    def random_map(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Augments one example; `rng` is grain's, so the result depends only on seed and position."""
        image = example["image"]
        size = image.shape[0]
        pad = size // 8
        row, column = rng.integers(0, 2 * pad + 1, size=2)
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        image = padded[row : row + size, column : column + size]
        return {**example, "image": image[:, ::-1] if rng.random() < 0.5 else image}


def normalize(
    images: UInt8[Array | np.ndarray, "*batch channels"],
    mean: float | tuple[float, ...],
    std: float | tuple[float, ...],
    factor: float = 1 / 255,
) -> Float32[Array, "*batch channels"]:
    """Turns uint8 images into float32, on the device: (factor · image − mean) / std, channel by channel."""
    scaled = images.astype(jnp.float32)
    scaled = scaled / 255 if factor == 1 / 255 else scaled * factor  # the division is more exact than the product
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def training_batches(
    split: Split,
    batch_size: int,
    rule: Rule | int,
    *,
    seed: int,
    augment: str = "none",
    balanced: bool = False,
    threads: int = 2,
    share: Share = WHOLE,
) -> grain.DatasetIterator:
    """An endless, resumable iterator over shuffled batches; every pass has a new order.

    Args:
      split: the examples.
      batch_size: the number of examples in a batch; the last batch of each pass is padded to it.
      rule: the preparation of every image; a number stands for a square of that side, in pixels, with three channels.
      seed: decides order and augmentation.
      augment: one of `AUGMENTATIONS`.
      balanced: whether every class is equally frequent (`surm.data.balanced`); batches are always full then.
      threads: the number of threads that read and transform ahead.
      share: the rows of every batch that this process reads.

    Returns:
      An iterator with `get_state` and `set_state`.

    Raises:
      InputError: if the augmentation is unknown.
    """
    if augment not in AUGMENTATIONS:
        raise InputError(f"data.augment={augment!r}, expected one of {', '.join(AUGMENTATIONS)}")
    if balanced:
        examples = grain.MapDataset.source(BalancedSplit(split, seed)).seed(seed)
    else:
        examples = grain.MapDataset.source(split).seed(seed).shuffle()
    examples = examples.map(Resize(rule))
    if augment == "crop_flip":
        examples = examples.random_map(CropFlip())
    return iter(_batched(examples, batch_size, share).repeat().to_iter_dataset(read_ahead(threads)))


def evaluation_batches(
    split: Split, batch_size: int, rule: Rule | int, *, threads: int = 2, share: Share = WHOLE
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over a split in order, without augmentation.

    Args:
      split: the examples.
      batch_size: the number of examples in a batch; the last batch is padded to it.
      rule: the preparation of every image; a number stands for a square of that side, in pixels, with three channels.
      threads: the number of threads that read and transform ahead.
      share: the rows of every batch that this process reads.

    Returns:
      An iterator over ⌈len(split) / batch_size⌉ batches.
    """
    examples = grain.MapDataset.source(split).map(Resize(rule))
    return iter(_batched(examples, batch_size, share).to_iter_dataset(read_ahead(threads)))


def _batched(examples: grain.MapDataset, batch_size: int, share: Share) -> grain.MapDataset:
    if share != WHOLE:
        return Shared(examples, batch_size, share).batch(batch_size // share.count)
    pad = functools.partial(grain.experimental.batch_and_pad, batch_size=batch_size)
    return examples.batch(batch_size, batch_fn=pad)


def read_ahead(threads: int) -> grain.ReadOptions:
    """Options to read ahead a few whole batches, because grain's default, 500, would fill the memory."""
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
