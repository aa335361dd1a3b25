"""Turns Tiny-ImageNet packed as WebP bytes into the .npz that `config.data.source` reads.

The input holds, for S in {train, val}: S_webp (all bytes), S_offset (N + 1 positions), S_label (N), every image 32×32.
Official validation images become the test split; 5,000 training images (25 a class) become the validation split.

    python scripts/prepare_tiny_imagenet.py tiny_imagenet_32.npz tiny_imagenet.npz

Two CPU cores, one minute; the output takes 340 MB.
"""

import io
import sys

import numpy as np
from PIL import Image

from surm import files
from surm.errors import InputError
from surm.machine.status import status_of


def decode(archive: np.lib.npyio.NpzFile, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Decodes every image of one split to uint8 N×32×32×3, beside its labels."""
    data, offset = archive[f"{name}_webp"].tobytes(), archive[f"{name}_offset"]
    images = np.empty((len(offset) - 1, 32, 32, 3), np.uint8)
    for index, (start, stop) in enumerate(zip(offset[:-1], offset[1:], strict=True)):
        images[index] = np.asarray(Image.open(io.BytesIO(data[start:stop])).convert("RGB"))
    return images, archive[f"{name}_label"].astype(np.int32)


def main(source: str, target: str) -> None:
    """Writes the three splits; the file appears under its name only when it is whole."""
    with np.load(source, allow_pickle=False) as archive:
        images, labels = decode(archive, "train")
        test_images, test_labels = decode(archive, "val")
    order = np.random.default_rng(0).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")].reshape(labels.max() + 1, -1)
    validation, train = by_class[:, :25].ravel(), np.sort(by_class[:, 25:].ravel())
    packed = io.BytesIO()
    np.savez(
        packed,
        x_train=images[train], y_train=labels[train],
        x_val=images[validation], y_val=labels[validation],
        x_test=test_images, y_test=test_labels,
    )  # fmt: skip
    files.replace(target, packed.getvalue())


def command() -> int:
    """The command line."""
    if len(sys.argv) != 3:
        raise InputError("expected python scripts/prepare_tiny_imagenet.py SOURCE.npz TARGET.npz")
    main(*sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(status_of(command))
