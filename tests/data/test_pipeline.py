import hashlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from flax import nnx
from PIL import Image
from sklearn.datasets import load_sample_image

from surm.data import pipeline, sources
from surm.data.splits import ArraySplit
from surm.errors import InputError
from surm.peft import surgery
from surm.tasks.labels import Labels, Targets

Batch = dict[str, np.ndarray]


def numbered(examples: int) -> ArraySplit:
    """Real digits, each with its own number as label, so that a batch tells which examples it holds."""
    return ArraySplit(sources.digits().train.images[:examples], np.arange(examples, dtype=np.int32))


def training(split: ArraySplit, batch_size: int = 8, *, seed: int = 0, augment: str = "crop_flip", threads: int = 2):
    return pipeline.training_batches(split, batch_size, 16, seed=seed, augment=augment, threads=threads)


def take(batches, count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def assert_same(some: list[Batch], others: list[Batch]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys() == {"image", "label", "mask"}
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
            assert one[key].dtype == other[key].dtype


def order(batches: list[Batch]) -> list[int]:
    return [int(label) for batch in batches for label in batch["label"][batch["mask"]]]


def digest(batches: list[Batch]) -> str:
    return hashlib.sha256(b"".join(batch[key].tobytes() for batch in batches for key in sorted(batch))).hexdigest()


@pytest.mark.parametrize("augment", pipeline.AUGMENTATIONS)
def test_the_seed_decides(augment):
    split = numbered(50)
    one, same, other = (take(training(split, seed=seed, augment=augment), 15) for seed in (1, 1, 2))
    assert_same(one, same)
    assert order(one) != order(other)


@pytest.mark.parametrize("examples, batch_size", [(50, 8), (48, 8), (1, 1), (5, 8), (7, 1)])
def test_a_pass_covers_each_example_once(examples, batch_size):
    steps = -(-examples // batch_size)
    batches = take(training(numbered(examples), batch_size), 4 * steps)
    passes = [order(batches[start : start + steps]) for start in range(0, 4 * steps, steps)]
    for one in passes:
        assert sorted(one) == list(range(examples))
    if examples > 5:
        assert len(set(map(tuple, passes))) == 4


def test_every_pass_augments_anew():
    batches = take(training(numbered(8)), 2)
    first, second = (dict(zip(batch["label"].tolist(), batch["image"], strict=True)) for batch in batches)
    assert sum(np.array_equal(first[label], second[label]) for label in range(8)) < 4


@pytest.mark.parametrize("examples, batch_size", [(50, 8), (5, 64)])
def test_the_last_batch_is_padded(examples, batch_size):
    split, rest = numbered(examples), examples % batch_size
    steps = -(-examples // batch_size)
    for batches in (take(training(split, batch_size), steps), list(pipeline.evaluation_batches(split, batch_size, 16))):
        assert len(batches) == steps
        for batch in batches:
            assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
                "image": ((batch_size, 16, 16, 3), np.uint8),
                "label": ((batch_size,), np.int32),
                "mask": ((batch_size,), np.bool_),
            }
        assert all(batch["mask"].all() for batch in batches[:-1])
        assert batches[-1]["mask"].tolist() == [True] * rest + [False] * (batch_size - rest)


@pytest.mark.parametrize("position", [0, 1, 6, 7, 16])  # seven batches a pass
def test_a_restored_iterator_goes_on(position):
    split = numbered(50)
    whole = take(training(split), position + 9)
    stopped = training(split)
    take(stopped, position)
    state = json.loads(json.dumps(stopped.get_state()))
    fresh = training(split, threads=5)
    fresh.set_state(state)
    assert_same(take(fresh, 9), whole[position:])
    assert_same(take(stopped, 9), whole[position:])  # asking for the state has changed nothing


def test_an_iterator_can_be_set_back():
    batches = training(numbered(50))
    whole = take(batches, 3)
    state = batches.get_state()
    following = take(batches, 10)
    batches.set_state(state)
    assert_same(take(batches, 10), following)
    batches.set_state(training(numbered(50)).get_state())
    assert_same(take(batches, 3), whole)


def test_another_process_goes_on_bit_for_bit(tmp_path):
    batches = training(numbered(50), seed=4)
    take(batches, 10)
    state = json.dumps(batches.get_state())
    code = (
        "import json, sys; from tests.data import test_pipeline as t\n"
        "batches = t.training(t.numbered(50), seed=4); batches.set_state(json.loads(sys.argv[1]))\n"
        "print(t.digest(t.take(batches, 10)))"
    )
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, state], cwd=root, env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == digest(take(batches, 10))


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_threads_change_nothing(threads):
    split = numbered(50)
    assert_same(take(training(split, threads=threads), 20), take(training(split, threads=2), 20))
    ours, theirs = (list(pipeline.evaluation_batches(split, 8, 16, threads=count)) for count in (threads, 2))
    assert_same(ours, theirs)


class Counted(ArraySplit):
    """Counts what is read of it."""

    reads = 0
    lock = threading.Lock()

    def __getitem__(self, index: int) -> Batch:
        with self.lock:
            Counted.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("make", [pipeline.training_batches, pipeline.evaluation_batches])
def test_few_batches_are_read_ahead(make):
    split, Counted.reads = Counted(np.zeros((4000, 8, 8, 1), np.uint8), np.zeros(4000, np.int32)), 0
    batches = make(split, 4, 16, **({"seed": 0} if make is pipeline.training_batches else {}))
    next(batches)
    time.sleep(0.5)
    assert 4 <= Counted.reads <= 4 * 12


def test_evaluation_keeps_the_order():
    split = numbered(50)
    batches = list(pipeline.evaluation_batches(split, 8, 8))
    assert order(batches) == list(range(50))
    images = np.concatenate([batch["image"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(images, np.repeat(split.images, 3, axis=-1))


@pytest.mark.parametrize("batch_size", [7, 60, 360, 500])
def test_metrics_over_padded_batches_are_exact(batch_size):
    split = sources.digits().test
    model = nnx.Linear(8 * 8 * 3, 10, rngs=nnx.Rngs(0))
    graphdef, trainable, frozen = surgery.split(model)
    inputs = lambda batch: {"inputs": batch["image"].reshape(len(batch["image"]), -1) / 255}  # noqa: E731
    task = Labels(Targets(10, ("accuracy", "matthews")))
    answer = jax.jit(lambda batch: task.answers(surgery.join(graphdef, trainable, frozen)(**inputs(batch)), batch))
    batches = pipeline.evaluation_batches(split, batch_size, 8)
    found = task.measured(answer(batch) | task.known(batch) for batch in batches)[0]
    logits = model(np.repeat(split.images, 3, axis=-1).reshape(360, -1) / 255)
    assert found["accuracy"] == sklearn.metrics.accuracy_score(split.labels, logits.argmax(1))
    assert found["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(split.labels, logits.argmax(1)))
    expected = sklearn.metrics.log_loss(split.labels, jax.nn.softmax(logits))
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    example = pipeline.Resize(size)({"image": image, "label": np.int32(3)})
    assert example["label"] == 3 and example["mask"].dtype == np.bool_ and example["mask"]
    return example["image"]


@pytest.mark.parametrize("size", [32, 96])
def test_resize_of_a_photo(size):
    photo = load_sample_image("flower.jpg")
    expected = np.asarray(Image.fromarray(photo).resize((size, size), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized(photo, size), expected)
    small = np.asarray(Image.fromarray(photo).resize((8, 8), Image.Resampling.BOX), float)
    again = np.asarray(Image.fromarray(resized(photo, size)).resize((8, 8), Image.Resampling.BOX), float)
    assert np.abs(small - again).mean() < 4  # the same picture, not a crop of it


@pytest.mark.parametrize("size", [8, 20])
def test_grey_becomes_three_equal_channels(size):
    image = resized(sources.digits().train.images[0], size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image[..., 0], image[..., 1])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_the_right_size_is_left_alone():
    photo = load_sample_image("flower.jpg")[:40, :40]
    np.testing.assert_array_equal(resized(photo, 40), photo)


def test_crop_flip_only_shifts_and_mirrors():
    photo = resized(load_sample_image("flower.jpg"), 24)
    padded = np.pad(photo, ((3, 3), (3, 3), (0, 0)), mode="reflect")
    moved = {
        (row - 3, column - 3, mirrored): padded[row : row + 24, column : column + 24][:, :: -1 if mirrored else 1]
        for row in range(7) for column in range(7) for mirrored in (False, True)
    }  # fmt: skip
    number = {image.tobytes(): key for key, image in moved.items()}
    assert len(number) == 98
    batches = pipeline.training_batches(
        ArraySplit(photo[None], np.zeros(1, np.int32)), 1, 24, seed=0, augment="crop_flip"
    )
    seen = [number[batch["image"][0].tobytes()] for batch in take(batches, 600)]
    rows, columns, mirrored = (np.array(values) for values in zip(*seen, strict=True))
    assert set(rows) == set(columns) == set(range(-3, 4))
    assert 0.4 < mirrored.mean() < 0.6
    assert len(set(seen)) > 90  # rows, columns and mirroring are drawn apart


def test_images_too_small_to_shift_are_mirrored_alone():
    image = resized(sources.digits().train.images[1], 7)
    rng = np.random.default_rng(0)
    seen = {pipeline.CropFlip().random_map({"image": image}, rng)["image"].tobytes() for _ in range(50)}
    assert seen == {image.tobytes(), image[:, ::-1].tobytes()}


def test_unknown_augmentation():
    with pytest.raises(InputError, match="data.augment='cropflip', expected one of none, crop_flip"):
        training(numbered(5), augment="cropflip")


def test_normalize():
    images = sources.digits().train.images[:4].repeat(3, axis=-1)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    ours = pipeline.normalize(jnp.asarray(images), mean, std)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, (images / 255 - mean) / std, rtol=1e-5, atol=1e-6)
