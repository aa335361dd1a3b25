"""What trains beside the updates, as PEFT keeps it: whole modules, and biases.

    modules_to_save     a module of which something else than a bias trains, with all that it holds
    bias="lora_only"    the bias of every adapted layer, as MODULE.base_layer.bias (before PEFT 0.8 as MODULE.bias)
    bias="all"          every bias of the model

The classifier, where it trains, is always one of modules_to_save.
"""

from collections.abc import Container
from typing import NamedTuple

import numpy as np
from flax import nnx

from surm.errors import InputError
from surm.exchange.names import parameters, their_array
from surm.exchange.peft_files import module_of
from surm.models.naming import Naming
from surm.peft import AdapterParam, Trainable, surgery

NONE, ALL = "none", "all"
BASE_LAYER = "base_layer"


class Trained(NamedTuple):
    """What trains beside the updates.

    Attributes:
      modules: for modules_to_save.
      bias: `none`, `all` or, as the type calls it, `..._only`.
      arrays: of the modules and the biases, by key.
    """

    modules: list[str]
    bias: str
    arrays: dict[str, np.ndarray]


def beside(
    model: nnx.Module, naming: Naming, adapted: Container[str], options: tuple[str, ...], *, encoder_only: bool
) -> Trained:
    """What trains beside the updates of a model.

    Args:
      model: with an adapter.
      naming: of its variables.
      adapted: the modules with an update.
      options: the values of `bias` that the type of PEFT has.
      encoder_only: leave out the classifier.

    Returns:
      Modules, biases and their arrays.

    Raises:
      InputError: if PEFT has no way to say it: the weight of an adapted layer trains, or its bias while that of another
        one rests, or the type has no biases.
    """
    plain = parameters(surgery.detach(model))
    keys = {path: key for path in plain if not (naming.of_head(key := naming.theirs(path)) and encoder_only)}
    of_model = dict(surgery.plain_variables(model, Trainable))
    trained = [path for path, one in of_model.items() if path in keys and not isinstance(one, AdapterParam)]
    own = {path for path in trained if module_of(keys[path]) in adapted}
    if whole := [path for path in own if not _is_bias(keys[path])]:
        raise InputError(
            f"{min(whole)} trains and its layer has an update; PEFT holds one or the other: expected other targets, or "
            "other train"
        )
    bias = _bias(keys, trained, own, adapted, options)
    of_head = {path for path in trained if naming.of_head(keys[path])}
    by_themselves = {path for path in trained if bias == ALL and _is_bias(keys[path])} - of_head | own
    modules = {keys[path].split(".")[0] if path in of_head else module_of(keys[path])
               for path in trained if path not in by_themselves}  # fmt: skip
    modules = {name for name in modules if not any(name.startswith(f"{other}.") for other in modules)}
    # PEFT takes every module whose name ends in one of these, and so does DistilBERT's pre_classifier in classifier.
    held = {path for path, key in keys.items() if any(f"{module}." in key for module in modules)}
    held |= own | ({path for path, key in keys.items() if _is_bias(key)} if bias == ALL else set())
    arrays = {_their_key(keys[path], adapted): their_array(model, path, plain[path]) for path in held}
    return Trained(sorted(modules), bias, arrays)


def _bias(
    keys: dict[str, str], trained: list[str], own: set[str], adapted: Container[str], options: tuple[str, ...]
) -> str:
    """The value of PEFT's option; what trains of other modules alone needs none."""
    if not own:
        return NONE
    every = {path for path, key in keys.items() if _is_bias(key)}
    wanted = ALL if every <= set(trained) else next((option for option in options if option.endswith("_only")), None)
    if wanted not in options:
        raise InputError(
            f"{min(own)} trains, but its layer's update is of a type of PEFT's that holds no biases; expected train "
            "without it. surm.to_low_rank makes a LoRA, whose files hold them; surm.export_merged writes whole models"
        )
    resting = {path for path in every if module_of(keys[path]) in adapted} - own
    if resting:
        raise InputError(
            f"{min(own)} trains and {min(resting)} does not; PEFT holds the biases of all adapted layers or of none: "
            "expected train to match all of them or none. surm.export_merged writes the whole model"
        )
    return wanted


def _is_bias(key: str) -> bool:
    return key.endswith(".bias")


def _their_key(key: str, adapted: Container[str]) -> str:
    module, _, name = key.rpartition(".")
    return f"{module}.{BASE_LAYER}.{name}" if module in adapted else key
