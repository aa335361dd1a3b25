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


def _classes(folder: pathlib.Path, labels) -> list[str]:
    return list(sources.load(_npz(folder, labels)).class_names)


ROWS = [
    Odd("a negative label", lambda folder: sources.load(_npz(folder, [0, 1, -1])), Line("labels -1 to 1")),
    Odd("a label far above the others", lambda folder: _classes(folder, [0, 1, 200000]), ["0", "1", "200000"]),
    Odd("labels from 1", lambda folder: _classes(folder, [3, 1, 2, 1]), ["1", "2", "3"]),
    Odd("a column of labels, as keras has it", lambda folder: _classes(folder, np.uint8([[4], [0], [4]])), ["0", "4"]),
    Odd("labels as whole floats", lambda folder: _classes(folder, [0.0, 2.0, 1.0]), ["0", "1", "2"]),
    Odd("a label that is no number", lambda folder: _classes(folder, [0, 1, np.nan]), Line("holds nan for example 2")),
    Odd("labels as objects", lambda folder: _classes(folder, np.array(["a", 1], object)), Line("astype(str)")),
    Odd("one-hot labels", lambda folder: _classes(folder, np.eye(3)), Line("labels.argmax(axis=1) converts")),
    Odd(
        "one class alone",
        lambda folder: _classes(folder, [7, 7]),
        Line("holds 1 labels in 2 rows"),
    ),
]
