"""What a model is given of a few examples, in a few numbers: whether pixels and tokens are made as they were before."""

from collections.abc import Mapping, Sequence

import numpy as np

from surm.preparation import Run

_EXAMPLES = 4

Signature = dict[str, list[float]]
"""Of each input of the model three numbers."""


def of_inputs(prepared: Run) -> Signature:
    """Of the first held-out examples: the mean of each input, of its squares, and its product with a cosine."""
    batch = next(iter(prepared.evaluation_batches[""]()))
    inputs = prepared.inputs({name: rows[:_EXAMPLES] for name, rows in batch.items()})
    return {name: _numbers(np.asarray(rows, np.float64).ravel()) for name, rows in inputs.items() if rows is not None}


def same(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> bool:
    """Whether two are equal, up to what another machine may round otherwise."""
    return one.keys() == other.keys() and all(
        np.allclose(values, other[name], rtol=1e-3, atol=1e-4) for name, values in one.items()
    )


def _numbers(values: np.ndarray) -> list[float]:
    wave = values @ np.cos(np.arange(len(values))) / np.sqrt(len(values))
    return [float(number) for number in (values.mean(), np.square(values).mean(), wave)]
