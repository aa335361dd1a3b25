"""What a checkpoint belongs to: weights, examples, and the pixels or tokens that a model is given of them."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from surm.data import tokens
from surm.data.share import Share
from surm.peft import store
from surm.training.prepared import Run

_EXAMPLES = 4

Signature = dict[str, list[float]]
"""Of each input of the model three numbers."""


def of_sources(prepared: Run) -> dict[str, Any]:
    """What must be equal, as JSON values by what it is called in messages."""
    found = {
        "weights": store.base_hash(prepared.model),
        "shape of the model": _shape(prepared),
        "examples": prepared.data.fingerprint(),
    }
    if prepared.processor:
        found["preparation of images"] = prepared.processor.to_json()
    if prepared.tokens:
        found["tokens"] = prepared.tokens
    return found


def others(now: Mapping[str, Any], notes: Mapping[str, Any], prepared: Run) -> list[str]:
    """Which of `of_sources` differ from what a checkpoint's notes hold.

    0.1.0 noted no shape; nor the preparation of images, which it squashed whatever their files say; nor tokens, which
    it made with tokenizer.json alone; later versions noted `of_inputs`.
    """
    squashes = prepared.processor is not None and prepared.processor.squashes
    not_noted = {"shape of the model", "tokens", *(["preparation of images"] if squashes else [])}
    asked = {what: own for what, own in now.items() if what in notes or what not in not_noted}
    found = [what for what, own in asked.items() if notes.get(what) != own]
    if prepared.tokens and not {"tokens", "inputs"} & notes.keys() and _tokens_of_0_1(prepared) != prepared.tokens:
        file = prepared.tokenizer_of_0_1
        found.append(f"tokens (0.1.0 made them with {file!r} alone, which config.data.tokenizer may name)")
    return [what for what in found if what != "examples" or not prepared.data.is_of(notes[what])]


def _shape(prepared: Run) -> dict[str, Any]:
    """Beside the arrays: the activation, the heads, the pooling and whatever else makes another function of them."""
    shape = prepared.model.config
    return {field.name: getattr(shape, field.name) for field in dataclasses.fields(shape) if field.compare}


def _tokens_of_0_1(prepared: Run) -> str:
    alone = tokens.open_tokenizer(prepared.tokenizer_of_0_1)
    return tokens.encode(prepared.data.train, alone, tokens.lengths_of(prepared.config.data.lengths)[-1]).fingerprint()


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


def _numbers(values: Float[np.ndarray, " numbers"]) -> list[float]:
    wave = values @ np.cos(np.arange(len(values))) / np.sqrt(len(values))
    return [float(number) for number in (values.mean(), np.square(values).mean(), wave)]
