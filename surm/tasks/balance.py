"""Class weights of the loss, for data sets whose classes differ in size."""

import math

import ml_collections
import numpy as np
from jaxtyping import Float

from surm.data.splits import Dataset
from surm.errors import InputError, nearest


def class_weights(config: ml_collections.ConfigDict, data: Dataset) -> Float[np.ndarray, " classes"] | None:
    """The factors by which the loss of each class is multiplied, as `config.optim.class_weights` sets them.

    The key may be `none`; `balanced`, which gives class c the weight n / (classes · n_c), as in scikit-learn; numbers
    in the order of the classes, such as `1,2.5,1`; or numbers by name, such as `cat=2.5,dog=1`, where classes that are
    not named have the weight 1.

    Args:
      config: a run's configuration.
      data: its training split gives n and n_c for `balanced`; classes without examples then have the weight 1 and do
        not count.

    Returns:
      One float32 per class; None if the key is `none`.

    Raises:
      InputError: if the key is none of these.
    """
    text = config.optim.class_weights.strip()
    if text == "none":
        return None
    if text == "balanced":
        return _balanced(data)
    found = _named(text, data) if "=" in text else _ordered(text, data)
    return np.array(found, np.float32)


def told(weights: Float[np.ndarray, " classes"], data: Dataset) -> str:
    """One line with the weight and the number of training examples of each class, or of the extremes if many."""
    counts = np.bincount(data.train.labels, minlength=data.num_classes)
    each = [
        f"{name}: {weight:.3g} ({count:,})" for name, weight, count in zip(data.names, weights, counts, strict=True)
    ]
    if len(each) > 12:
        lightest, heaviest = np.argmin(weights), np.argmax(weights)
        return f"class weights from {each[lightest]} to {each[heaviest]} examples"
    return f"class weights (and training examples): {', '.join(each)}"


def _balanced(data: Dataset) -> Float[np.ndarray, " classes"]:
    counts = np.bincount(data.train.labels, minlength=data.num_classes)
    there = np.count_nonzero(counts)
    return np.where(counts > 0, len(data.train) / (there * np.maximum(counts, 1)), 1).astype(np.float32)


def _ordered(text: str, data: Dataset) -> list[float]:
    parts = text.split(",")
    if len(parts) != data.num_classes:
        raise InputError(
            f"config.optim.class_weights={text!r} lists {len(parts)} numbers, expected {data.num_classes}, one per "
            f"class: {_some(data.names)}; or 'balanced', or 'none'"
        )
    return [_number(text, part) for part in parts]


def _named(text: str, data: Dataset) -> list[float]:
    names, given = data.names, {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        if name.strip() not in names:
            raise InputError(
                f"config.optim.class_weights={text!r} names the class {name.strip()!r}; {nearest(name.strip(), names)}"
            )
        if name.strip() in given:
            raise InputError(f"config.optim.class_weights={text!r} names the class {name.strip()!r} twice")
        given[name.strip()] = _number(text, number)
    return [given.get(name, 1.0) for name in names]


def _number(text: str, part: str) -> float:
    try:
        number = float(part)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(
            f"config.optim.class_weights={text!r}: {part.strip()!r}, expected a number above 0, as in '1,2.5' or "
            "'cat=2.5'; or 'balanced', or 'none'"
        )
    return number


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
