"""Attaches an adapter from the files of Hugging Face PEFT to a model; see `surm.exchange.peft_files`."""

import os
import re
from collections.abc import Container, Iterable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from surm import files
from surm.errors import InputError, few
from surm.exchange import peft_folder
from surm.exchange.names import kind_of, namings_of, obstacle, read_name
from surm.exchange.peft_files import CONFIG, CONVOLUTION, ROOT, TYPES, UNREAD, WEIGHTS, module_of
from surm.exchange.trained import BASE_LAYER, NONE
from surm.exchange.updates import Tensors, Update, check_fields, parameter_place
from surm.machine.notes import say
from surm.models.lazy import Named
from surm.models.naming import NEW, Naming
from surm.models.weights import open_weights
from surm.peft import PeftSpec, select, store, surgery

Model = TypeVar("Model", bound=nnx.Module)


def import_peft(path: str | os.PathLike, model: Model, rngs: nnx.Rngs | None = None) -> Model:
    """Returns the model with an adapter attached that Hugging Face PEFT has saved.

    The adapted layers are those with tensors in the file, named as in transformers 4 or 5. PEFT's files do not identify
    the weights of the base model, so the caller has to give the right base. LoRA becomes the family low_rank (DoRA with
    magnitude=True), AdaLoRA adalora, C3A c3a and LoKr kronecker. Ranks, block sizes and scales that differ between
    layers become `rules`. Modules under modules_to_save and biases (`bias="all"` or `"lora_only"`) become other trained
    variables. Of the options that act only in training, only LoRA's dropout is taken over.

    Args:
      path: a folder with adapter_config.json and adapter_model.safetensors, or with one folder that holds them; or
        `hf:OWNER/NAME`, `hf:OWNER/NAME/FOLDER` or `hf:OWNER/NAME@REVISION` on the hub or in its local cache.
      model: the base, of an architecture in `surm.models.catalogue`; left untouched. An adapter that it has already is
        replaced in the returned model.
      rngs: the source of dropout masks for further training; None for a fixed source.

    Returns:
      A new model with the outputs of PEFT's model, in evaluation mode. Its `spec.train` names the modules under
      modules_to_save and the biases, which have their values from the file.

    Raises:
      InputError: if files are missing or damaged; if the type or an option is not supported (the message names it and
        the supported ones); if the config names a module that has no tensor; or if the adapter belongs to another
        architecture, size or kind of pooling.
    """
    found = peft_folder.find(path)
    where, config = found.name, _read_config(found.folder)
    kind, arrays = TYPES[config["peft_type"]], open_weights(str(files.local(peft_folder.weights(found)))).arrays
    tensors, saved = _sorted_out(where, config["peft_type"], arrays)
    base = surgery.detach(surgery.unmerge(model))
    layers = {module: _layer(where, base, module) for module in tensors}
    updates = _by_layer(where, base, kind.read(config, tensors), layers)
    variables = _by_variable(where, base, saved)
    whole = _whole_modules(variables, {*layers.values()})
    names = _names(base, [*(f"{module}.weight" for module in tensors), *saved])
    _check_complete(where, config, names, {*layers.values(), *whole}, select.linear_layers(base))
    _say_missing_biases(where, config, base, layers.values(), variables)
    spec = _spec(updates, _train(base, variables, whole), list(select.linear_layers(base)))
    adapted = surgery.attach(base, spec, rngs or nnx.Rngs(0))
    adapted.eval()
    graphdef, expected, frozen = surgery.split(adapted)
    given = {parameter_place(expected, layer, name): value
             for layer, update in updates.items() for name, value in update.params.items()}  # fmt: skip
    given |= {f"{layer}.magnitude": update.magnitude for layer, update in updates.items() if spec.magnitude}
    given |= {_place(path, updates): value for path, value in variables.items()}
    store.check_arrays(where, given, expected)
    arrays = {place: jnp.asarray(value, expected[place].dtype) for place, value in given.items()}
    return surgery.join(graphdef, arrays, frozen)


def _read_config(folder: epath.Path) -> dict[str, Any]:
    """Reads the config of an adapter; InputError if its type or one of its options is not supported."""
    file = folder / CONFIG
    config = files.read_object(file)
    if config.get("format") == store.FORMAT:
        raise InputError(f"{str(folder)!r} is an adapter in surm's own format; surm.load_adapter reads it")
    peft_type = config.get("peft_type")
    if "peft_type" not in config:
        whose = "; AdapterHub's library writes such files, but of other adapters" if "model_class" in config else ""
        raise InputError(f"{str(file)!r} has no peft_type, so it is not a file of Hugging Face PEFT{whose}")
    if not isinstance(peft_type, str) or peft_type not in TYPES:
        raise InputError(f"{str(file)!r} says peft_type={peft_type!r}; supported: {', '.join(TYPES)}")
    kind = TYPES[peft_type]
    reasons = getattr(kind, "REASONS", {})
    check_fields(f"{str(file)!r}", config, kind.READS, kind.TRAINING, kind.ACCEPTS, reasons)
    return config


def _sorted_out(where: str, peft_type: str, arrays: Named) -> tuple[Tensors, dict[str, np.ndarray]]:
    """The tensors of updates by module, and all others by key, without PEFT's prefix."""
    prefix, tensors, others = TYPES[peft_type].PREFIX, {}, {}
    for key, array in arrays.items():
        if any(part in f"{key}." for part in UNREAD):
            continue
        if not np.isfinite(array).all():
            raise InputError(f"{f'{where}/{WEIGHTS}'!r} holds {key} with numbers that are not finite")
        short = key.removeprefix(ROOT).replace(f".{BASE_LAYER}.", ".")
        module, found, rest = short.partition(f".{prefix}")
        if found:
            tensors.setdefault(module, {})[prefix + rest] = array
        else:
            others[short] = array
    if not tensors:
        raise InputError(f"{f'{where}/{WEIGHTS}'!r} holds no tensor of {peft_type}, with {prefix!r} in its name")
    return tensors, others


def _layer(where: str, base: Model, module: str) -> str:
    """The path of an adapted layer in surm's model."""
    path = module_of(_path(where, base, f"{module}.weight"))
    if path not in select.linear_layers(base) or path == CONVOLUTION:
        what = ", a convolution in transformers" if path == CONVOLUTION else ""
        raise InputError(f"{where!r} adapts {module}, which is {path} here{what}; expected a linear layer")
    return path


def _by_layer(where: str, base: Model, read: dict[str, Update], layers: Mapping[str, str]) -> dict[str, Update]:
    """The updates by path, after a check that each fits its layer."""
    linear, updates = select.linear_layers(base), {}
    for module, update in read.items():
        path = layers[module]
        if path in updates:
            raise InputError(f"{where!r} adapts {path} twice, once as {module}; expected every layer once")
        n_in, n_out = select.get(base, linear[path]).kernel.shape
        if (update.n_out, update.n_in) != (n_out, n_in):
            given = f"{module} of {update.n_out}×{update.n_in}"
            raise InputError(f"{where!r} adapts {given}, but {path} of this model is {n_out}×{n_in}")
        updates[path] = update
    return updates


def _by_variable(where: str, base: Model, saved: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of modules_to_save by path, in the shapes of surm's model."""
    variables, naming = {}, namings_of(base)[NEW]
    for key, array in saved.items():
        if naming.of_head(key) and (reason := obstacle(base)):
            raise InputError(f"{where!r} holds a classifier, but {reason}")
        path = _path(where, base, key)
        _, rule = read_name(kind_of(base), key)
        variables[path] = rule.transform(array)
    return variables


def _whole_modules(variables: Iterable[str], adapted: Container[str]) -> set[str]:
    """The modules without an update for which the file has more than a bias."""
    return {module for path in variables if not path.endswith(".bias") and (module := module_of(path)) not in adapted}


def _train(base: Model, variables: Mapping[str, Any], whole: Container[str]) -> list[str]:
    """Patterns for the other trained variables: whole modules, and single variables such as biases."""
    every = list(select.variables(base))
    loose = [path for path in variables if module_of(path) not in whole]
    biases = [path for path in every if path.endswith(".bias") and module_of(path) not in whole]
    patterns = [r".*\.bias"] if loose and set(loose) == set(biases) else _patterns(loose, every)
    return sorted({re.escape(module_of(path)) for path in variables if module_of(path) in whole}) + patterns


def _place(path: str, adapted: Container[str]) -> str:
    """The path of a variable in the adapted model, where an adapted layer is the `base` of its wrapper."""
    module, _, name = path.rpartition(".")
    return f"{module}.base.{name}" if module in adapted else path


def _say_missing_biases(
    where: str, config: dict[str, Any], base: Model, adapted: Iterable[str], given: Container[str]
) -> None:
    """Gives a notice if the config says that biases of adapted layers were trained, but the file does not hold them."""
    bias, every = config.get("bias", NONE), select.variables(base)
    lost = [path for layer in adapted if (path := f"{layer}.bias") in every and path not in given]
    if bias != NONE and lost:
        say(
            f"{where}: says bias={bias!r}, but does not hold {few(lost, 2)}: those of the base are used (PEFT before "
            "0.21 did not write the biases of 'lora_only')"
        )


def _names(base: Model, keys: list[str]) -> dict[str, str]:
    """The paths of the model's modules, by their names in the transformers version from which the keys come."""
    known = namings_of(base)
    naming: Naming = next((naming for naming in known.values() if all(map(naming.ours, keys))), known[NEW])
    bare = not any(key.startswith(naming.prefix) or naming.of_head(key) for key in keys)
    naming = naming._replace(prefix="") if bare else naming
    names = {module_of(naming.theirs(path)): module_of(path) for path in select.variables(base)}
    return {name: path for name, path in names.items() if not (bare and naming.of_head(name))}


def _check_complete(
    where: str, config: dict[str, Any], names: dict[str, str], held: Container[str], layers: Container[str]
) -> None:
    """Raises InputError if the config names modules of the model for which the file has no tensor."""
    absent = [name for name, path in names.items() if path not in held]
    for entry in _entries(config, "modules_to_save"):
        # PEFT saves a module if its name, or the name of a module around it, ends in the entry
        _refuse_lost(where, "modules_to_save", entry, [name for name in absent if f"{entry}." in f"{name}."])
    if any(config.get(field) not in (None, []) for field in ("layers_to_transform", "exclude_modules")):
        return
    linear = [name for name, path in names.items() if path in layers]
    for entry in _entries(config, "target_modules"):
        named = [name for name in linear if f".{name}".endswith(f".{entry}")]
        _refuse_lost(where, "target_modules", entry, named if set(named) <= set(absent) else [])


def _entries(config: dict[str, Any], field: str) -> list[str]:
    """The names of modules that a field lists; none if the field is a pattern or a word such as all-linear."""
    listed = config.get(field)
    return [entry for entry in listed if entry and isinstance(entry, str)] if isinstance(listed, list) else []


def _refuse_lost(where: str, field: str, entry: str, lost: list[str]) -> None:
    if lost:
        raise InputError(
            f"{f'{where}/{WEIGHTS}'!r} holds no tensor of {lost[0]}, which {field} in {CONFIG} names as {entry!r}; "
            "expected tensors of every named module"
        )


def _path(where: str, base: Model, key: str) -> str:
    """The path of a key in surm's model; InputError if the base is of another architecture."""
    kind = kind_of(base)
    if named := read_name(kind, key):
        return named[0]
    usual = {naming.theirs("blocks.0.attention.query.kernel") for naming in namings_of(base).values()}
    raise InputError(f"{where!r} holds {key}, which this {kind} lacks; expected keys such as {' or '.join(usual)}")


def _spec(updates: dict[str, Update], train: list[str], layers: list[str]) -> PeftSpec:
    """The spec for updates of one family: the options of most layers, and rules for the other layers."""
    groups: dict[tuple[int, float], list[str]] = {}
    for path, update in updates.items():
        groups.setdefault((*update.options.values(), update.scale), []).append(path)
    first, *others = sorted(groups.values(), key=len, reverse=True)
    usual = updates[first[0]]
    rules = {pattern: {"options": updates[paths[0]].options, "scale": updates[paths[0]].scale}
             for paths in others for pattern in _patterns(paths, layers)}  # fmt: skip
    return PeftSpec(
        family=usual.family,
        options=usual.options,
        targets=_patterns(first, layers),
        scale=usual.scale,
        dropout=usual.dropout,
        train=train,
        rules=rules,
        magnitude=usual.magnitude is not None,
    )


def _patterns(chosen: list[str], every: list[str]) -> list[str]:
    """Patterns that match exactly the chosen layers: for all blocks at once if possible, else one for each layer."""
    exact = {re.escape(path) for path in chosen}
    of_blocks = {re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", pattern) for pattern in exact}
    found = {path for path in every if any(re.fullmatch(pattern, path) for pattern in of_blocks)}
    return sorted(of_blocks if found == set(chosen) else exact)
