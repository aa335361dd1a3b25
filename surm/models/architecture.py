"""What the rest of surm has to know of a kind of model, as one record; `surm.models.catalogue` lists them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flax import nnx

from surm.models.naming import Naming
from surm.models.tables import Table
from surm.models.weights import Weights

LABELS = "labels"
"""The task of `surm.tasks` whose models have a class in transformers: classification and regression."""


@runtime_checkable
class ImageShape(Protocol):
    """What the configuration of a model that reads images must have, beside `pooling`.

    Attributes:
      image_size: height and width of the images, in pixels.
      channels: colour channels of the images.
    """

    image_size: int
    channels: int


@runtime_checkable
class TextShape(Protocol):
    """What the configuration of a model that reads texts must have, beside `pooling`.

    Attributes:
      vocabulary: number of tokens.
      segments: how many segments the model tells apart.
      max_length: tokens of the longest text.
    """

    vocabulary: int
    segments: int
    max_length: int


def _as_it_is(shape: Any, weights: Weights) -> Any:
    return shape


def _nothing(shape: Any) -> str:
    return "$."


def _as_they_are(arrays: dict[str, np.ndarray], shape: Any) -> dict[str, np.ndarray]:
    return arrays


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Architecture:
    """A kind of model: its classes, its presets and what it is in the files of Hugging Face.

    Attributes:
      name: what messages call it.
      reads: the kind of example that it reads, `image` or `text`.
      model: its class. It is called as `model(shape, num_outputs, dtype=..., remat=..., rngs=...)` and keeps the shape
        as `config`; a model of images is then called with `images`, one of texts with `tokens`, `segments` and `mask`.
      shape: the class of its configuration, an `ImageShape` or a `TextShape`, with a field `pooling` that says what the
        head reads.
      presets: configurations by name; no two architectures share a name.
      kinds: the values of `model_type` in a config.json that are this architecture; for each the fields that decide on
        the shape, with what a config.json means that leaves them out.
      passed_over: other fields of its config.json that do not change the function.
      from_hf: from a `model_type` and the fields of a config.json to the configuration.
      to_hf: from a configuration to the fields of the config.json that `from_hf` reads it from.
      kind_of: the `model_type` of a configuration.
      read_only: the values of `kind_of` whose files are read and never written, with what messages call such a model.
      tables: the names in published files. A table in a later entry of the catalogue is looked at first.
      namings: the names by `model_type` and version of transformers.
      absent: pattern of the keys of those names that a model of a configuration does not have.
      classes: the classes of transformers by `model_type` and task.
      obstacle: why the head of a configuration cannot be the classifier of a class of transformers, or None.
      encoder_alone: whether the encoder is transformers' own whatever the head reads.
      fresh: how the paths of variables begin that a file of weights may lack. They start at random then.
      in_training: the fields of the configuration that act in training alone.
      beside: the configuration that files beside config.json ask for, from that of config.json alone.
      restored: the arrays of a file, under our paths, as a model of a configuration takes them.
    """

    name: str
    reads: str
    model: type[nnx.Module]
    shape: type
    presets: Mapping[str, Any]
    kinds: Mapping[str, Mapping[str, Any]]
    from_hf: Callable[[str, dict[str, Any]], Any]
    to_hf: Callable[[Any], dict[str, Any]]
    kind_of: Callable[[Any], str]
    tables: tuple[Table, ...]
    namings: Mapping[str, Mapping[str, Naming]]
    classes: Mapping[str, Mapping[str, str]]
    obstacle: Callable[[Any, str], str | None]
    absent: Callable[[Any], str] = _nothing
    passed_over: tuple[str, ...] = ()
    read_only: Mapping[str, str] = dataclasses.field(default_factory=dict)
    encoder_alone: bool = True
    fresh: tuple[str, ...] = ()
    in_training: tuple[str, ...] = ()
    beside: Callable[[Any, Weights], Any] = _as_it_is
    restored: Callable[[dict[str, np.ndarray], Any], dict[str, np.ndarray]] = _as_they_are


def reads_another_pooling(shape: Any, theirs: str, own: str, their_own: str) -> str | None:
    """The usual obstacle: a head that reads another pooling than the classifier of transformers.

    Args:
      shape: a configuration.
      theirs: the class of transformers.
      own: the one pooling that the class has.
      their_own: what that pooling is called in messages.

    Returns:
      The reason, or None where the pooling is that one.
    """
    pooling = shape.pooling
    if pooling == own:
        return None
    return f"the model's head sees the {pooling} of the tokens (pooling={pooling!r}), {theirs}'s {their_own}"
