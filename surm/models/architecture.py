"""The record `Architecture`, which tells the rest of surm all about a kind of model; see `surm.models.catalogue`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from flax import nnx

from surm.models.lazy import Named
from surm.models.naming import Naming
from surm.models.tables import Table
from surm.models.weights import Weights

LABELS = "labels"
"""The name of the task for which transformers has classes of models: classification and regression."""

LANGUAGE = "language"
"""The name of the task of models that predict the next token, and the kind of example that they read."""


@runtime_checkable
class ImageShape(Protocol):
    """The fields that the configuration of a model that reads images must have, in addition to `pooling`.

    Attributes:
      image_size: height and width of the images, in pixels.
      channels: colour channels of the images.
    """

    image_size: int
    channels: int


@runtime_checkable
class TextShape(Protocol):
    """The fields that the configuration of a model that reads texts must have, in addition to `pooling`.

    Attributes:
      vocabulary: number of tokens.
      segments: number of segments that the model distinguishes.
      max_length: number of tokens of the longest text.
    """

    vocabulary: int
    segments: int
    max_length: int


@runtime_checkable
class LanguageShape(Protocol):
    """The fields that the configuration of a model that predicts the next token must have.

    Attributes:
      vocabulary: number of tokens.
      max_length: number of tokens of the longest context.
    """

    vocabulary: int
    max_length: int


SHAPES: Mapping[str, type] = {"image": ImageShape, "text": TextShape, LANGUAGE: LanguageShape}
"""The protocol that a configuration follows, by the kind of example that its model reads."""


def _as_it_is(shape: Any, weights: Weights) -> Any:
    return shape


def _no_key(shape: Any) -> str:
    return "$."  # a pattern that matches nothing


def _no_twins(shape: Any) -> Mapping[str, str]:
    return {}


def _not_at_all(model: nnx.Module, arrays: Named) -> None:
    pass


def _as_they_are(arrays: Named, shape: Any) -> Named:
    return arrays


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Architecture:
    """A kind of model: its classes, its presets and its files on Hugging Face.

    Attributes:
      name: its name in messages.
      reads: the kind of example that it reads, `image`, `text` or `language`.
      model: the class of its models. It is constructed as `model(shape, num_outputs, dtype=..., remat=..., rngs=...)`
        and stores the shape as `config`; one that reads `language` has no head and takes no `num_outputs`. An instance
        for images is called with `images`, one for texts with `tokens`, `segments` and `mask`, one for language with
        `tokens`, `positions`, `segments` and `cache`.
      shape: the class of its configurations, an `ImageShape` or a `TextShape` with a field `pooling`, which says what
        the head reads, or a `LanguageShape`.
      presets: configurations by name; no two architectures share a name.
      kinds: the values of `model_type` in a config.json that mean this architecture, each with the fields that
        determine the shape and their default values.
      passed_over: further fields of its config.json that do not change the function of the model.
      null_is_none: fields of its config.json in which null is a value of its own, not the default.
      own_code: the values of `model_type` whose published files name code of their own (`auto_map`), which is never
        run, but known to do what the model does.
      from_hf: a function from a `model_type` and the fields of a config.json to the configuration.
      to_hf: a function from a configuration to the fields of a config.json that `from_hf` turns into it again.
      kind_of: a function from a configuration to its `model_type`.
      read_only: the values of `kind_of` whose files are read but never written, each with the name of such a model in
        messages.
      tables: the names of arrays in published files. Tables of later entries of the catalogue are tried first.
      namings: the names of arrays, by `model_type` and version of transformers.
      absent: a function from a configuration to a pattern of the keys that such a model does not have.
      twins: a function from a configuration to keys of modules in transformers that hold the same values as the
        variables of the given paths, where the model has one variable.
      untied: a function from a model to a copy that has two variables there.
      classes: the names of classes of transformers, by `model_type` and task.
      obstacle: a function from a configuration and the name of a class of transformers to the reason why the model's
        head cannot be the classifier of that class, or None if it can.
      encoder_alone: whether the encoder equals that of transformers whatever the head reads.
      fresh: prefixes of the paths of variables that a file of weights may lack; those are then initialised at random.
      in_training: the fields of the configuration that only act in training.
      beside: a function from a configuration and opened weights to the configuration changed as files other than
        config.json ask for.
      fitted: a function that changes a fresh model, before it gets the arrays of a file (under surm's paths), as these
        arrays ask for.
      restored: a function that adapts the arrays of a file, under surm's paths, to a model of a configuration.
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
    absent: Callable[[Any], str] = _no_key
    twins: Callable[[Any], Mapping[str, str]] = _no_twins
    untied: Callable[[nnx.Module], nnx.Module] = nnx.clone
    passed_over: tuple[str, ...] = ()
    null_is_none: tuple[str, ...] = ()
    own_code: tuple[str, ...] = ()
    read_only: Mapping[str, str] = dataclasses.field(default_factory=dict)
    encoder_alone: bool = True
    fresh: tuple[str, ...] = ()
    in_training: tuple[str, ...] = ()
    beside: Callable[[Any, Weights], Any] = _as_it_is
    fitted: Callable[[Any, Named], None] = _not_at_all
    restored: Callable[[Named, Any], Named] = _as_they_are


def reads_another_pooling(shape: Any, theirs: str, own: str, their_own: str) -> str | None:
    """The usual `obstacle`: the model's head reads another pooling than the classifier of transformers.

    Args:
      shape: the configuration of the model.
      theirs: the name of the class of transformers.
      own: the only value of `pooling` that matches the class.
      their_own: that pooling in words, for the message.

    Returns:
      The reason, or None if the pooling matches.
    """
    pooling = shape.pooling
    if pooling == own:
        return None
    return f"the model's head reads the {pooling} of the tokens (pooling={pooling!r}), that of {theirs} {their_own}"
