"""The fingerprint of data tells every change of its content, and the one of 0.1.0 is still known."""

import dataclasses
import time

import numpy as np
import pytest

from surm.data import sources
from surm.data.splits import CONTENT, ArraySplit, Dataset, Subset
from surm.data.texts import TextSplit

# What 0.1.0 wrote for `images()` and for digits.
IMAGES = "588dc9e5aa5b87afb21a811f9d34e8299c21b2201b6f6ce8d2493e0dc1ab52bc"
DIGITS = "432e6e9612eba1acdef85b6b8fe4c05c1a7e01f5ce3ec7600efa452882f2a6f9"


def images(number: int = 400, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    parts = [ArraySplit(rng.integers(0, 256, (n, 6, 6, 3), np.uint8), np.arange(n) % 3) for n in (number, 9)]
    return Dataset(parts[0], None, parts[1], 3, class_names=("0", "1", "2"))


def changed(data: Dataset, **arrays: np.ndarray) -> Dataset:
    return dataclasses.replace(data, train=dataclasses.replace(data.train, **arrays))


def test_every_label_and_every_pixel_counts():
    data = images()
    assert data.fingerprint() == images().fingerprint() and data.fingerprint().startswith(CONTENT)
    for place in (0, 1, 101, 399):  # 0.1.0 looked at every seventh
        labels, pixels = data.train.labels.copy(), data.train.images.copy()
        labels[place] = (labels[place] + 1) % 3
        pixels[place, 5, 5, 2] ^= 1
        assert changed(data, labels=labels).fingerprint() != data.fingerprint()
        assert changed(data, images=pixels).fingerprint() != data.fingerprint()
    shorter = dataclasses.replace(data, train=Subset(data.train, np.arange(399)))
    assert shorter.fingerprint() != data.fingerprint()
    assert dataclasses.replace(data, class_names=("0", "1", "3")).fingerprint() != data.fingerprint()
    swapped = dataclasses.replace(data, train=data.test, test=data.train)
    assert swapped.fingerprint() != data.fingerprint()


def test_the_same_content_in_another_order_of_memory_is_the_same():
    data = images()
    order = np.random.default_rng(1).permutation(400)
    back = np.argsort(order)
    turned = ArraySplit(np.asfortranarray(data.train.images[order]), data.train.labels[order])
    again = dataclasses.replace(data, train=Subset(Subset(turned, back), np.arange(400)))
    assert again.fingerprint() == data.fingerprint()


def test_every_text_counts():
    texts = [(f"a {i}", "b") for i in range(5000)]
    split = TextSplit(texts, np.zeros(5000, np.int32))
    data = Dataset(split, None, split, 2, kind="text", class_names=("a", "b"))
    other = texts[:4998] + [("a 4998", "c"), texts[-1]]
    assert dataclasses.replace(data, train=TextSplit(other, split.labels)).fingerprint() != data.fingerprint()
    joined = texts[:1] + [("a 1b", "")] + texts[2:]
    assert dataclasses.replace(data, train=TextSplit(joined, split.labels)).fingerprint() != data.fingerprint()


@pytest.mark.parametrize(
    ("change", "same"), [("nothing", True), ("a label that 0.1.0 saw", False), ("a pixel that it saw", False)]
)
def test_a_checkpoint_of_0_1_0_is_compared_as_it_was(change, same):
    data = images()
    if change == "a label that 0.1.0 saw":
        data = changed(data, labels=(data.train.labels + 1) % 3)
    elif change == "a pixel that it saw":
        data = changed(data, images=data.train.images ^ 1)
    assert data.is_of(IMAGES) == same and data.is_of(data.fingerprint())


def test_hashing_is_fast():
    pixels = np.random.default_rng(0).integers(0, 256, (10_000, 32, 32, 3), np.uint8)
    split = ArraySplit(pixels, np.zeros(len(pixels), np.int32))
    data = Dataset(split, None, split, 2, class_names=("a", "b"))
    began = time.perf_counter()
    data.fingerprint()
    assert time.perf_counter() - began < 3  # 20,000 images; a quarter of a second on a free core


def test_digits_keep_the_fingerprint_of_0_1_0():
    assert sources.digits().fingerprint_of_0_1() == DIGITS
