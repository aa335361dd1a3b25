"""Writes a model's adapter in the files of Hugging Face PEFT; see `surm.exchange.peft_files`."""

import os
import re
from collections.abc import Iterable

import numpy as np
from flax import nnx

from surm.errors import InputError, pasted
from surm.exchange import folder, joint, trained
from surm.exchange.names import CLASSIFIER, OURS, naming_of, obstacle
from surm.exchange.peft_files import CONFIG, CONVOLUTION, ROOT, TYPES, WEIGHTS, module_of
from surm.exchange.updates import Update
from surm.models import catalogue
from surm.models.architecture import LANGUAGE
from surm.models.naming import NEW, Naming
from surm.peft import PeftSpec, select, surgery

_WHOLE = "surm.export_merged writes the whole model"


def export_peft(
    path: str | os.PathLike,
    model: nnx.Module,
    *,
    names: str = NEW,
    base_model_name: str = "",
    encoder_only: bool = False,
) -> None:
    """Writes a model's adapter in PEFT's files, for the same base model in transformers.

    If PEFT's adapter type has no dropout (C3A, LoKr), dropout is left out, because it acts only in training.

    Args:
      path: the folder, which is created if needed. Files in it are replaced, each in one step.
      model: a model of an architecture in `surm.models.catalogue`, with an `update` of a family that PEFT has; left
        untouched.
      names: the version of transformers that will load the adapter, `transformers5` or `transformers4`. The two differ
        in the names of a ViT's layers; those of BERT and of decoders are the same.
      base_model_name: the name of the base model on the hub.
      encoder_only: whether to write the adapter for the bare `ViTModel`, `BertModel` or `RobertaModel`, without the
        variables of the head.

    Raises:
      InputError: if the model has no such adapter, if transformers has no such classifier (mean pooling, CLIP), or if
        the path is a file.

    Examples:
      >>> export_peft("runs/lora", adapted)  # doctest: +SKIP
      >>> peft.PeftModel.from_pretrained(theirs, "runs/lora")  # doctest: +SKIP
    """
    _check_method(surgery.spec_of(model))
    naming = _naming(model, names, encoder_only)
    by_path = _by_path(model, naming, encoder_only)
    peft_type = _type_for({update.family for update in by_path.values()})
    updates = _by_module(model, naming, by_path)
    _check_convolutions(peft_type, naming, updates)
    fields, tensors = TYPES[peft_type].write(updates)
    biases = TYPES[peft_type].ACCEPTS.get("bias", ())
    modules, bias, saved = trained.beside(model, naming, tensors, biases, encoder_only=encoder_only)
    arrays = {f"{ROOT}{module}.{rest}": array for module, named in tensors.items() for rest, array in named.items()}
    fields |= {"bias": bias} if biases else {}
    if "fan_in_fan_out" in fields:  # otherwise PEFT switches it, with a warning
        fields["fan_in_fan_out"] = any(_is_transposed(naming, module) for module in tensors)
    config = fields | {
        "peft_type": peft_type,
        "task_type": _task_type(model, modules),
        "base_model_name_or_path": base_model_name or None,
        "inference_mode": True,
        "target_modules": _target_modules(set(tensors), model, naming),
        "modules_to_save": modules or None,
    }
    folder.write(path, {WEIGHTS: arrays | {ROOT + key: array for key, array in saved.items()}}, {CONFIG: config})


def exact_type(model: nnx.Module, *, encoder_only: bool = False) -> str:
    """The adapter type of PEFT that `export_peft` writes for a model; empty if PEFT cannot hold the model's adapter."""
    try:
        _check_method(surgery.spec_of(model))
        naming = _naming(model, NEW, encoder_only)
        updates = _by_module(model, naming, _by_path(model, naming, encoder_only))
        peft_type = _type_for({update.family for update in updates.values()})
        TYPES[peft_type].write(updates)
    except InputError:
        return ""
    return peft_type


def _check_method(spec: PeftSpec | None) -> None:
    if spec is None:
        raise InputError("the model has no adapter to export; attach one first")
    if spec.position != "update":
        merges = spec.position not in ("adapter", "bottleneck")
        way_on = f". {_WHOLE}" if merges else ". surm.save_adapter writes it, and RUN/adapter holds it"
        raise InputError(f"method={spec.method!r} cannot be written in PEFT's files, expected 'update'{way_on}")


def _type_for(families: set[str]) -> str:
    """The type of PEFT that has all of the families."""
    for peft_type, module in TYPES.items():
        if families <= set(module.FAMILIES):
            return peft_type
    known = "; ".join(f"{peft_type}: {', '.join(module.FAMILIES)}" for peft_type, module in TYPES.items())
    raise InputError(
        f"family {' with '.join(map(repr, sorted(families)))} cannot be written in PEFT's files; supported: "
        f"{known}; surm.to_low_rank makes a LoRA close to it, {_WHOLE}"
    )


def _naming(model: nnx.Module, names: str, encoder_only: bool) -> Naming:
    naming, reason = naming_of(model, names), obstacle(model)
    if encoder_only and catalogue.of(model).reads == LANGUAGE:
        raise InputError("encoder_only=True is for models with a classifier, which a language model does not have")
    if reason and not catalogue.of(model).encoder_alone:
        raise InputError(f"{reason}. {OURS}")
    if reason and not encoder_only:
        raise InputError(f"{reason}; encoder_only=True, or --encoder_only, writes the adapter without the head")
    return naming._replace(prefix="") if encoder_only else naming


def _task_type(model: nnx.Module, modules: list[str]) -> str | None:
    reads = catalogue.of(model).reads
    if reads == LANGUAGE:
        return "CAUSAL_LM"
    # With a task_type, PEFT requires a classifier in the file; there is none for image classification.
    return "SEQ_CLS" if reads == "text" and CLASSIFIER in modules else None


def _by_path(model: nnx.Module, naming: Naming, encoder_only: bool) -> dict[str, Update]:
    """The updates of a model, by the paths of its layers."""
    updates = {}
    for place, layer in surgery.wrapped_layers(model):
        path = select.dotted(place)
        module = module_of(naming.theirs(f"{path}.kernel"))
        if path == CONVOLUTION:
            expected = f"exclude={pasted(re.escape(path))} or other targets"
            raise InputError(f"{path} has an update, but is a convolution in transformers; expected {expected}")
        if encoder_only and naming.of_head(module):
            raise InputError(f"{path} has an update, which encoder_only=True would leave out; expected other targets")
        n_in, n_out = layer.base.kernel.shape
        delta, params = layer.delta, {name: np.asarray(value) for name, value in layer.delta.values().items()}
        magnitude = None if layer.magnitude is None else np.asarray(layer.magnitude[...])
        dropout = layer.dropout.rate if layer.dropout else 0.0
        options, scale = {"rank": delta.target_rank}, float(layer.scale)
        updates[path] = Update(delta.family, options, params, n_out, n_in, scale, dropout, magnitude)
    return updates


def _by_module(model: nnx.Module, naming: Naming, updates: dict[str, Update]) -> dict[str, Update]:
    """The updates by the names of modules in transformers, which has some layers as one."""
    plain, found = surgery.detach(model), {}
    linear = select.linear_layers(plain)
    for path in dict.fromkeys(map(naming.joined, updates)):
        module, parts = module_of(naming.theirs(f"{path}.kernel")), naming.apart(path)
        if parts == (path,):
            found[module] = updates[path]
        else:
            sizes = [select.get(plain, linear[part]).kernel.shape[1] for part in parts]
            found[module] = joint.join(module, [updates.get(part) for part in parts], sizes)
    return found


def _is_transposed(naming: Naming, module: str) -> bool:
    return bool(re.fullmatch(naming.transposed, f"{module.removeprefix(naming.prefix)}.weight"))


def _check_convolutions(peft_type: str, naming: Naming, updates: Iterable[str]) -> None:
    of_conv1d = [module for module in updates if _is_transposed(naming, module)]
    if of_conv1d and peft_type in ("C3A", "LOKR"):
        raise InputError(
            f"{of_conv1d[0]} is a Conv1D in transformers, on which PEFT has LoRA and AdaLoRA, but no {peft_type}; "
            f"surm.to_low_rank makes a LoRA close to it, {_WHOLE}"
        )


def _target_modules(chosen: set[str], model: nnx.Module, naming: Naming) -> list[str]:
    """The last parts of the chosen layers' names if they name no other layer; otherwise the full names."""
    every = {module_of(naming.theirs(f"{path}.kernel")) for path in select.linear_layers(surgery.detach(model))}
    last = {name.rpartition(".")[2] for name in chosen}
    unambiguous = {name for name in every if name.rpartition(".")[2] in last} == chosen
    # The name dense could also match a pooler that only transformers' model has.
    return sorted(last if unambiguous and "dense" not in last else chosen)
