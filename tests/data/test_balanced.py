"""Orders in which every class comes equally often."""

import itertools

import numpy as np
import pytest

from surm.data import balanced, pipeline, tokens
from surm.data.share import Share
from surm.data.splits import ArraySplit

LABELS = np.repeat([0, 1, 3], [50, 9, 3]).astype(np.int32)


def split() -> ArraySplit:
    images = np.broadcast_to(np.arange(len(LABELS), dtype=np.uint8)[:, None, None, None], (len(LABELS), 8, 8, 3))
    return ArraySplit(np.ascontiguousarray(images), LABELS)


def encoded() -> tokens.TokenSplit:
    lengths = 1 + np.arange(len(LABELS)) % 7
    starts = np.concatenate([[0], np.cumsum(lengths)])
    numbers = np.repeat(np.arange(len(LABELS)), lengths)
    return tokens.TokenSplit(numbers.astype(np.int32), np.zeros(len(numbers), np.uint8), starts, LABELS)


def test_every_class_comes_equally_often_and_all_of_a_rare_one_before_one_again():
    order = balanced.drawn(LABELS, np.random.default_rng(0))
    counts = np.bincount(LABELS[order], minlength=4)
    assert len(order) == len(LABELS) and counts[2] == 0 and sorted(counts[[0, 1, 3]]) == [20, 21, 21]
    of_rare = np.bincount(order[LABELS[order] == 3], minlength=len(LABELS))[LABELS == 3]
    assert of_rare.max() - of_rare.min() <= 1
    assert np.bincount(order[LABELS[order] == 0]).max() == 1


def test_an_order_follows_from_its_seed_and_passes_differ():
    one, other = (balanced.BalancedSplit(split(), seed) for seed in (0, 1))
    drawn = [[int(source[place]["image"][0, 0, 0]) for place in range(2 * len(LABELS))] for source in (one, one, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][: len(LABELS)] != drawn[0][len(LABELS) :]


def images(seed: int = 0, **more):
    return pipeline.training_batches(split(), 8, 8, seed=seed, balanced=True, **more)


def texts(seed: int = 0, **more):
    return tokens.training_batches(encoded(), 8, (4, 8), seed=seed, balanced=True, **more)


@pytest.mark.parametrize("opened", [images, texts])
def test_batches_are_balanced_over_a_pass_and_go_on_from_a_position(opened):
    batches = opened()
    passed = [next(batches) for _ in range(31)]  # four passes of 62
    label = np.concatenate([batch["label"][batch["mask"]] for batch in passed])
    assert np.ptp(np.bincount(label)[[0, 1, 3]]) <= 8
    position = batches.get_state()
    following = [next(batches) for _ in range(3)]
    again = opened()
    again.set_state(position)
    for one in following:
        found = next(again)
        for name in one:
            np.testing.assert_array_equal(one[name], found[name])


@pytest.mark.parametrize("opened", [images, texts])
def test_shares_are_the_rows_of_the_whole_batches(opened):
    whole, parts = opened(), [opened(share=Share(index, 2)) for index in range(2)]
    for batch in itertools.islice(whole, 10):
        halves = [next(part) for part in parts]
        for name, rows in batch.items():
            np.testing.assert_array_equal(rows, np.concatenate([half[name] for half in halves]))


def test_an_augmented_example_differs_when_it_comes_again():
    rng = np.random.default_rng(0)
    noisy = ArraySplit(rng.integers(0, 255, (4, 8, 8, 3), np.uint8), np.array([0, 0, 0, 1], np.int32))
    batches = pipeline.training_batches(noisy, 8, 8, seed=0, augment="crop_flip", balanced=True)
    batch = next(batches)
    assert batch["mask"].all()
    alone = batch["image"][batch["label"] == 1]
    assert len(alone) == 4 and len(np.unique(alone, axis=0)) > 1
