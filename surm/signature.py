"""What a model is given of a few examples, in a few numbers: whether pixels and tokens are made as they were before."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from surm.data.share import Share
from surm.preparation import Run

_EXAMPLES = 4

Signature = dict[str, list[float]]
"""Of each input of the model three numbers."""


def of_inputs(prepared: Run) -> Signature:
    """Of a few held-out examples: the mean of each input, of its squares, and its product with a cosine."""
    one_a_batch = Share(0, prepared.config.optim.batch_size)  # more would be read ahead
    found: dict[str, list[np.ndarray]] = {}
    for batch in itertools.islice(prepared.evaluation_batches[""](one_a_batch), _EXAMPLES):
        for name, rows in prepared.inputs(batch).items():
            if rows is not None:
                found.setdefault(name, []).append(np.asarray(rows, np.float64).ravel())
    return {name: _numbers(np.concatenate(rows)) for name, rows in found.items()}


def same(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> bool:
    """Whether two are equal, up to what another machine may round otherwise."""
    return one.keys() == other.keys() and all(
        np.allclose(values, other[name], rtol=1e-3, atol=1e-4) for name, values in one.items()
    )


def _numbers(values: np.ndarray) -> list[float]:
    wave = values @ np.cos(np.arange(len(values))) / np.sqrt(len(values))
    return [float(number) for number in (values.mean(), np.square(values).mean(), wave)]
