"""What several processes read of a batch is, put together, what one reads."""

import itertools

import grain
import numpy as np
import pytest

from surm.data import pipeline, tokens
from surm.data.share import WHOLE, Share
from surm.data.splits import ArraySplit


def images(number: int) -> ArraySplit:
    pixels = np.random.default_rng(0).integers(0, 256, (number, 8, 8, 3), np.uint8)
    return ArraySplit(pixels, np.arange(number, dtype=np.int32) + 1)


def texts(number: int) -> tokens.TokenSplit:
    lengths = 1 + np.arange(number) * 7 % 9
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values = np.random.default_rng(0).integers(1, 50, starts[-1]).astype(np.int32)
    return tokens.TokenSplit(values, (values % 2).astype(np.uint8), starts, np.arange(number, dtype=np.int32) + 1)


def opened(kind: str, number: int, share: Share, *, training: bool):
    if kind == "images":
        more = {"seed": 5, "augment": "crop_flip"} if training else {}
        read = pipeline.training_batches if training else pipeline.evaluation_batches
        return read(images(number), 8, 8, share=share, **more)
    read = tokens.training_batches if training else tokens.evaluation_batches
    return read(texts(number), 8, (4, 8, 10), share=share, **({"seed": 5} if training else {}))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("number", [32, 29, 3])
@pytest.mark.parametrize("kind", ["images", "texts"])
def test_shares_put_together_are_the_batch(kind, number, count, training):
    whole = opened(kind, number, WHOLE, training=training)
    shares = [opened(kind, number, Share(index, count), training=training) for index in range(count)]
    for _, batch, *parts in zip(range(9), whole, *shares, strict=False):  # more than two passes of training
        assert all(len(part["mask"]) == 8 // count for part in parts)
        real = batch["mask"]
        for name in batch:
            together = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(together[real], batch[name][real])
        np.testing.assert_array_equal(np.concatenate([part["mask"] for part in parts]), real)
    if not training:
        assert [next(each, None) for each in (whole, *shares)] == [None] * (count + 1)


def test_a_share_goes_on_from_its_position():
    batches = opened("images", 29, Share(1, 2), training=True)
    for _ in range(5):
        next(batches)
    again = opened("images", 29, Share(1, 2), training=True)
    again.set_state(batches.get_state())
    for one, other in itertools.islice(zip(batches, again, strict=False), 4):
        np.testing.assert_array_equal(one["image"], other["image"])


def test_what_others_read_is_not_read_here():
    read = []

    class Counted(ArraySplit):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    split = images(32)
    batches = pipeline.evaluation_batches(Counted(split.images, split.labels), 8, 8, share=Share(1, 4))
    assert isinstance(batches, grain.DatasetIterator)
    list(batches)
    assert sorted({index % 8 for index in read}) == [2, 3]
