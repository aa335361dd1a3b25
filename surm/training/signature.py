"""Signatures of a run's weights, examples and inputs, by which a checkpoint is recognised as belonging to them."""

import dataclasses
import itertools
import json
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
"""Three numbers for each keyword argument of the model."""


def of_sources(prepared: Run) -> dict[str, Any]:
    """The properties that a run and its checkpoint must share, as JSON values by the name used in messages."""
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
    """The names of the properties of `of_sources` in which a run differs from a checkpoint.

    Checkpoints of surm 0.1.0 lack the shape of the model, the preparation of images (0.1.0 always squashed them) and
    the tokens (0.1.0 always tokenized with tokenizer.json alone). Those of all later versions have `inputs`, from
    `of_inputs`.

    Args:
      now: from `of_sources`.
      notes: the notes of the checkpoint.
      prepared: the run.

    Returns:
      The names; empty if the checkpoint belongs to the run.
    """
    squashes = prepared.processor is not None and prepared.processor.squashes
    not_noted = {"shape of the model", "tokens", *(["preparation of images"] if squashes else [])}
    asked = {what: own for what, own in now.items() if what in notes or what not in not_noted}
    found = [what for what, own in asked.items() if notes.get(what) != own]
    if prepared.tokens and not {"tokens", "inputs"} & notes.keys() and _tokens_of_0_1(prepared) != prepared.tokens:
        file = prepared.tokenizer_of_0_1
        found.append(f"tokens (surm 0.1.0 made them with {file!r} alone; config.data.tokenizer can name that file)")
    return [what for what in found if what != "examples" or not prepared.data.is_of(notes[what])]


def _shape(prepared: Run) -> dict[str, Any]:
    """The fields of the model's configuration; the arrays alone do not tell its activation, heads or pooling."""
    shape = prepared.model.config
    values = json.loads(json.dumps(dataclasses.asdict(shape)))  # as they will be read from a checkpoint
    return {field.name: values[field.name] for field in dataclasses.fields(shape) if field.compare}


def _tokens_of_0_1(prepared: Run) -> str:
    alone = tokens.open_tokenizer(prepared.tokenizer_of_0_1)
    return tokens.encode(prepared.data.train, alone, tokens.lengths_of(prepared.config.data.lengths)[-1]).fingerprint()


def of_inputs(prepared: Run) -> Signature:
    """The signature of a few held-out examples: for each input its mean, mean square, and product with a cosine."""
    one_a_batch = Share(0, prepared.config.optim.batch_size)  # larger shares would read more examples ahead
    found: dict[str, list[np.ndarray]] = {}
    for batch in itertools.islice(prepared.evaluation_batches[""](one_a_batch), _EXAMPLES):
        for name, rows in prepared.inputs(batch).items():
            if rows is not None:
                found.setdefault(name, []).append(np.asarray(rows, np.float64).ravel())
    return {name: _numbers(np.concatenate(rows)) for name, rows in found.items()}


def same(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> bool:
    """Whether two signatures are equal up to the rounding of different machines."""
    return one.keys() == other.keys() and all(
        np.allclose(values, other[name], rtol=1e-3, atol=1e-4) for name, values in one.items()
    )


def _numbers(values: Float[np.ndarray, " numbers"]) -> list[float]:
    wave = values @ np.cos(np.arange(len(values))) / np.sqrt(len(values))
    return [float(number) for number in (values.mean(), np.square(values).mean(), wave)]
