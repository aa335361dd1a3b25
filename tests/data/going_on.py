"""An iterator over batches that is restored goes on as one that was never stopped."""

import json
from collections.abc import Callable

import grain
import numpy as np


def assert_goes_on(opened: Callable[[], grain.DatasetIterator], before: int, after: int) -> None:
    """Compares so many batches behind the first ones of an iterator with those of another that takes over its state."""
    batches = opened()
    for _ in range(before):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches) for _ in range(after)]
    again = opened()
    again.set_state(state)
    for batch in expected:
        for name, value in next(again).items():
            np.testing.assert_array_equal(value, batch[name])
