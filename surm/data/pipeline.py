"""From a split to batches: shuffling, resizing, augmentation, padding, all in grain.

A batch is `{"image": uint8 B×S×S×3, "label": int32 B, "mask": bool B}`. Every pass covers each example exactly once;
the last batch of a pass is padded with masked examples, so metrics are exact and shapes never change. The position
in the stream is a small dict (`iterator.get_state()`), and a restored iterator goes on as if never stopped.
"""

import dataclasses
import functools
from collections.abc import Iterator

import grain
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from surm.data.balanced import BalancedSplit
from surm.data.share import WHOLE, Share, Shared
from surm.data.splits import Split
from surm.errors import InputError

AUGMENTATIONS = ("none", "crop_flip")


@dataclasses.dataclass(frozen=True)
class Resize:
    """Makes every image `size`×`size`×3: bilinear where the size differs, grey repeated."""

    size: int

    def __call__(self, example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Resizes one example and marks it as real (not padding)."""
        image = example["image"]
        if image.shape[:2] != (self.size, self.size):
            pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            image = np.asarray(pixels.resize((self.size, self.size), Image.Resampling.BILINEAR))
        if image.ndim == 2:
            image = image[..., None]
        if image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        return {"image": image, "label": example["label"], "mask": np.bool_(True)}


@dataclasses.dataclass(frozen=True)
class CropFlip(grain.transforms.RandomMap):
    """Shifts an image by up to an eighth of its side (edges reflected) and mirrors every second one."""

    def random_map(self, example: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Augments one example; `rng` is grain's, so the result depends on seed and position alone."""
        image = example["image"]
        size = image.shape[0]
        pad = size // 8
        row, column = rng.integers(0, 2 * pad + 1, size=2)
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        image = padded[row : row + size, column : column + size]
        return {**example, "image": image[:, ::-1] if rng.random() < 0.5 else image}


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Turns uint8 images into float32, on the device: (image/255 − mean) / std, channel by channel."""
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)


def training_batches(
    split: Split,
    batch_size: int,
    image_size: int,
    *,
    seed: int,
    augment: str = "none",
    balanced: bool = False,
    threads: int = 2,
    share: Share = WHOLE,
) -> grain.DatasetIterator:
    """An endless, resumable iterator over shuffled batches; every pass is shuffled anew.

    Args:
      split: the examples.
      batch_size: examples a batch; the last batch of each pass is padded to it.
      image_size: side of the images, in pixels.
      seed: decides order and augmentation.
      augment: one of `AUGMENTATIONS`.
      balanced: whether every class comes equally often (`surm.data.balanced`); batches then are always full.
      threads: threads that read and transform ahead.
      share: which rows of every batch are read here.

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
    examples = examples.map(Resize(image_size))
    if augment == "crop_flip":
        examples = examples.random_map(CropFlip())
    return iter(_batched(examples, batch_size, share).repeat().to_iter_dataset(read_ahead(threads)))


def evaluation_batches(
    split: Split, batch_size: int, image_size: int, *, threads: int = 2, share: Share = WHOLE
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over a split in order, without augmentation.

    Args:
      split: the examples.
      batch_size: examples a batch; the last batch is padded to it.
      image_size: side of the images, in pixels.
      threads: threads that read and transform ahead.
      share: which rows of every batch are read here.

    Returns:
      An iterator over ⌈len(split) / batch_size⌉ batches.
    """
    examples = grain.MapDataset.source(split).map(Resize(image_size))
    return iter(_batched(examples, batch_size, share).to_iter_dataset(read_ahead(threads)))


def _batched(examples: grain.MapDataset, batch_size: int, share: Share) -> grain.MapDataset:
    if share != WHOLE:
        return Shared(examples, batch_size, share).batch(batch_size // share.count)
    pad = functools.partial(grain.experimental.batch_and_pad, batch_size=batch_size)
    return examples.batch(batch_size, batch_fn=pad)


def read_ahead(threads: int) -> grain.ReadOptions:
    """Whole batches are read ahead, so few of them: grain's own default, 500, fills the memory."""
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
