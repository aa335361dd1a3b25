"""Other trained variables beside the updates, in the forms in which PEFT saves them: whole modules, and biases.

    modules_to_save     every module of which a variable other than a bias trains, with all of its variables
    bias="lora_only"    the bias of every adapted layer, as MODULE.base_layer.bias (before PEFT 0.8 as MODULE.bias)
    bias="all"          every bias of the model

If the classifier trains, it is always one of modules_to_save. If the words of a decoder with a tied output train, both
`embed_tokens` and `lm_head` are, with the same values: PEFT trains and loads them apart, even for a tied model.
"""

from collections.abc import Container
from typing import NamedTuple

import numpy as np
from flax import nnx

from surm.errors import InputError
from surm.exchange.names import parameters, their_array, twins_of
from surm.exchange.peft_files import module_of
from surm.models.naming import Naming
from surm.peft import AdapterParam, Trainable, surgery

NONE, ALL = "none", "all"
BASE_LAYER = "base_layer"


class Trained(NamedTuple):
    """The other trained variables of a model, for PEFT.

    Attributes:
      modules: the names for modules_to_save.
      bias: the value of PEFT's option `bias`: `none`, `all`, or `..._only` with the name of the type.
      arrays: the arrays of the modules and biases, by key.
    """

    modules: list[str]
    bias: str
    arrays: dict[str, np.ndarray]


def beside(
    model: nnx.Module, naming: Naming, adapted: Container[str], options: tuple[str, ...], *, encoder_only: bool
) -> Trained:
    """Finds the other trained variables of a model with updates.

    Args:
      model: a model with an adapter.
      naming: the names of its variables in transformers.
      adapted: the names of the modules with an update.
      options: the values of `bias` that PEFT's adapter type has.
      encoder_only: whether to leave out the classifier.

    Returns:
      Modules, biases and their arrays.

    Raises:
      InputError: if PEFT cannot save them: if the weight of an adapted layer trains; if biases train in only some of
        the adapted layers; or if the adapter type has no biases.
    """
    plain = parameters(surgery.detach(model))
    keys = {path: key for path in plain if not (naming.of_head(key := naming.theirs(path)) and encoder_only)}
    of_model = dict(surgery.plain_variables(model, Trainable))
    trained = [path for path, one in of_model.items() if path in keys and not isinstance(one, AdapterParam)]
    own = {path for path in trained if module_of(keys[path]) in adapted}
    if whole := [path for path in own if not _is_bias(keys[path])]:
        raise InputError(
            f"{min(whole)} trains and its layer has an update; PEFT can save only one of them: expected other "
            "targets, or another train"
        )
    bias = _bias(keys, trained, own, adapted, options)
    of_head = {path for path in trained if naming.of_head(keys[path])}
    by_themselves = {path for path in trained if bias == ALL and _is_bias(keys[path])} - of_head | own
    modules = {keys[path].split(".")[0] if path in of_head else module_of(keys[path])
               for path in trained if path not in by_themselves}  # fmt: skip
    modules = {name for name in modules if not any(name.startswith(f"{other}.") for other in modules)}
    # PEFT saves every module whose name ends in one of these: DistilBERT's pre_classifier for classifier, too.
    held = {path for path, key in keys.items() if any(f"{module}." in key for module in modules)}
    held |= own | ({path for path, key in keys.items() if _is_bias(key)} if bias == ALL else set())
    arrays = _arrays(model, naming, plain, {keys[path] for path in held}, keys)
    twins = {twin: keys[path] for path, twin in twins_of(model).items() if path in held}
    arrays |= {twin: arrays[key] for twin, key in twins.items()}
    arrays = {_their_key(key, adapted): array for key, array in arrays.items()}
    return Trained(sorted(modules | {module_of(twin) for twin in twins}), bias, arrays)


def _arrays(
    model: nnx.Module, naming: Naming, plain: dict[str, np.ndarray], wanted: Container[str], keys: dict[str, str]
) -> dict[str, np.ndarray]:
    """The arrays of keys, each from the variables that it holds."""
    paths = dict.fromkeys(naming.joined(path) for path, key in keys.items() if key in wanted)
    found = {}
    for path in paths:
        parts = naming.apart(path)
        if parts == (path,):
            found[keys[path]] = their_array(model, path, plain[path])
        else:
            whole = np.concatenate([plain[part] for part in parts], axis=-1)
            found[keys[parts[0]]] = naming.their_array(path, whole, model.config)
    return found


def _bias(
    keys: dict[str, str], trained: list[str], own: set[str], adapted: Container[str], options: tuple[str, ...]
) -> str:
    """The value of PEFT's option `bias`; `none` if no bias of an adapted layer trains."""
    if not own:
        return NONE
    every = {path for path, key in keys.items() if _is_bias(key)}
    wanted = ALL if every <= set(trained) else next((option for option in options if option.endswith("_only")), None)
    if wanted not in options:
        raise InputError(
            f"{min(own)} trains, but PEFT's adapter type for the update of its layer cannot save biases; expected "
            "train without it. surm.to_low_rank makes a LoRA, which can; surm.export_merged writes the whole model"
        )
    resting = {path for path in every if module_of(keys[path]) in adapted} - own
    if resting:
        raise InputError(
            f"{min(own)} trains and {min(resting)} does not; PEFT saves the biases of all adapted layers or of none: "
            "expected train to match all of them or none. surm.export_merged writes the whole model"
        )
    return wanted


def _is_bias(key: str) -> bool:
    return key.endswith(".bias")


def _their_key(key: str, adapted: Container[str]) -> str:
    module, _, name = key.rpartition(".")
    return f"{module}.{BASE_LAYER}.{name}" if module in adapted else key
