"""A small data set of real images in TFDS's own format, written by TFDS itself without TensorFlow."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

CIFAR = pathlib.Path(__file__).parents[3] / "shared" / "data" / "cifar10.npz"
KEYS = {"train": "train", "validation": "val", "test": "test"}


class SmallCifar(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images from an .npz; handed to TFDS as Pillow's, which it encodes without TensorFlow (arrays it would not)."""

    name = "small_cifar"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, arrays: dict[str, tuple[np.ndarray, np.ndarray]], data_dir: pathlib.Path):
        self._arrays = arrays
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(32, 32, 3), encoding_format="png")
        features = {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(*arrays) for split, arrays in self._arrays.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": Image.fromarray(image), "label": int(label)}


def prepare(
    npz_path: pathlib.Path,
    data_dir: pathlib.Path,
    *,
    examples: int,
    splits: tuple[str, ...] = ("train", "test"),
    unlabelled: tuple[str, ...] = (),
) -> str:
    """Prepares the first `examples` images of each split, in order; returns the name to put after `tfds:`."""
    with np.load(npz_path) as npz:
        arrays = {split: (npz[f"x_{KEYS[split]}"][:examples], npz[f"y_{KEYS[split]}"][:examples]) for split in splits}
    for split in unlabelled:
        arrays[split] = (arrays[split][0], np.full(examples, -1))
    SmallCifar(arrays, data_dir).download_and_prepare(file_format="array_record")
    return SmallCifar.name
