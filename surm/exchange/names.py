"""Translates paths of surm's models to names of modules in transformers and back, by the tables of `surm.models`.

    surm                       transformers 5                        transformers 4, and all files of weights
    blocks.0.attention.query   vit.layers.0.attention.q_proj         vit.encoder.layer.0.attention.attention.query
    blocks.0.mlp.up            vit.layers.0.mlp.fc1                  vit.encoder.layer.0.intermediate.dense
    head                       classifier                            classifier
    blocks.0.attention.query   model.layers.0.self_attn.q_proj       the same, in a Llama
    blocks.0.attention.query   transformer.h.0.attn.c_attn           the same, in a GPT-2; key and value too

BERT, RoBERTa and decoders have the same names in both versions. Models that are built like them have these names too,
except for the first word.
"""

from collections.abc import Mapping

import numpy as np
from flax import nnx

from surm.errors import InputError, nearest
from surm.models import catalogue
from surm.models.architecture import LABELS, LANGUAGE
from surm.models.naming import FILES, NEW, OLD, Naming
from surm.models.tables import Rule

CLASSIFIER = "classifier"

OURS = (
    "transformers has no such classifier: surm.save_model, or surm merge RUN --out NAME.safetensors, writes the whole "
    "model if it has a preset's shape; surm.save_adapter writes the adapter, which RUN/adapter holds as well"
)
"""The remedies if `obstacle` finds a reason."""


def kind_of(model: nnx.Module) -> str:
    """The `model_type` of a model in transformers.

    Args:
      model: a model of an architecture in `surm.models.catalogue`.

    Returns:
      The `model_type` in a config.json.

    Raises:
      InputError: if the model has another architecture, or is CLIP's vision tower.
    """
    architecture = catalogue.find(model)
    kind = architecture.kind_of(model.config) if architecture else ""
    if architecture and kind not in architecture.read_only:
        return kind
    given = architecture.read_only[kind] if architecture else f"a {type(model).__name__}"
    raise InputError(
        f"given {given}; Hugging Face's files are read and written for "
        f"{', '.join(one.name for one in catalogue.ARCHITECTURES)}; surm.save_adapter writes the adapter of any model"
    )


def class_of(model: nnx.Module) -> str:
    """The class of transformers that a model, with its head if it has one, corresponds to."""
    architecture = catalogue.of(model)
    return architecture.classes[kind_of(model)][LANGUAGE if architecture.reads == LANGUAGE else LABELS]


def namings_of(model: nnx.Module) -> Mapping[str, Naming]:
    """The names that versions of transformers have for a model, by version; InputError for an unknown model."""
    kind, architecture = kind_of(model), catalogue.of(model)
    absent = architecture.absent(model.config)
    return {
        version: naming._replace(foreign=f"{naming.foreign}|{absent}")
        for version, naming in architecture.namings[kind].items()
    }


def naming_of(model: nnx.Module, names: str) -> Naming:
    """The names that a version of transformers has for a model; InputError for an unknown version or model."""
    if names not in (NEW, OLD):
        raise InputError(f"names={names!r}; {nearest(names, (NEW, OLD))}")
    return namings_of(model)[names]


def naming_of_files(model: nnx.Module) -> Naming:
    """The names of a model's variables in files of weights, which every version of transformers reads."""
    return namings_of(model)[FILES]


def read_name(kind: str, key: str) -> tuple[str, Rule] | None:
    """The path and the rule of a key in any version's names; None for a key that this kind of model does not have."""
    namings = catalogue.BY_KIND[kind].namings[kind]
    return namings[NEW].ours(key) or namings[OLD].ours(key)


def obstacle(model: nnx.Module) -> str | None:
    """The reason why a model's head does not fit the classifier of transformers; None if it fits."""
    theirs = class_of(model)
    return catalogue.of(model).obstacle(model.config, theirs)


def twins_of(model: nnx.Module) -> Mapping[str, str]:
    """The keys that transformers has beside those of variables which a model uses twice, by the variables' paths."""
    return catalogue.of(model).twins(model.config)


def their_array(model: nnx.Module, path: str, array: np.ndarray) -> np.ndarray:
    """Converts a variable's value to its shape in transformers, by inverting the table's transforms.

    Args:
      model: a model of an architecture in `surm.models.catalogue`.
      path: the path of the variable.
      array: its value.

    Returns:
      The array that a file of transformers holds.
    """
    return naming_of_files(model).their_array(path, array, model.config)


def parameters(model: nnx.Module) -> dict[str, np.ndarray]:
    """Every parameter of a model by dotted path."""
    return {".".join(map(str, path)): np.asarray(variable[...])
            for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))}  # fmt: skip
