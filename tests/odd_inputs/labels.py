"""Labels at the border of a data set."""

import pathlib

import numpy as np

from surm.data import sources
from tests.odd_inputs.row import Line, Odd


def _npz(folder: pathlib.Path, labels) -> str:
    labels = np.asarray(labels)
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    file = folder / "data.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return str(file)


ROWS = [
    Odd("a negative label", lambda folder: sources.load(_npz(folder, [0, 1, -1])), Line("labels -1 to 1")),
]
