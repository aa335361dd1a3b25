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
from surm.exchange import joint, peft_folder, peft_spec
from surm.exchange.names import kind_of, namings_of, obstacle, read_name, twins_of
from surm.exchange.peft_files import CONFIG, CONVOLUTION, ROOT, TYPES, UNREAD, WEIGHTS, module_of
from surm.exchange.trained import BASE_LAYER, NONE
from surm.exchange.updates import Tensors, Update, check_fields, parameter_place
from surm.machine.notes import say
from surm.models import catalogue
from surm.models.lazy import Named
from surm.models.naming import NEW, OLD, Naming
from surm.models.weights import open_weights
from surm.peft import select, store, surgery

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
    base, saved = _with_twins(where, surgery.detach(surgery.unmerge(model)), tensors, saved)
    layers = {module: _layers(where, base, module) for module in tensors}
    updates = _by_layer(where, base, kind.read(config, tensors), layers)
    variables = _by_variable(where, base, saved, updates)
    chosen = dict.fromkeys(path for paths in layers.values() for path in paths)
    whole = peft_spec.whole_modules(variables, chosen)
    names = _names(base, [*(f"{module}.weight" for module in tensors), *saved])
    _check_complete(where, config, names, {*chosen, *whole}, select.linear_layers(base))
    _say_missing_biases(where, config, base, chosen, variables)
    train = peft_spec.train(base, variables, whole)
    spec = peft_spec.spec_for(updates, train, list(select.linear_layers(base)))
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


def _with_twins(
    where: str, base: Model, tensors: Container[str], saved: dict[str, np.ndarray]
) -> tuple[Model, dict[str, np.ndarray]]:
    """The base and the saved arrays, after a variable with two names in transformers, as a tied output, is looked at.

    If the file gives both the same values, one remains. If it changes only one of them, or each in another way, the
    base gets two variables, as PEFT's model has them.
    """
    naming, saved = namings_of(base)[NEW], dict(saved)
    for path, twin in twins_of(base).items():
        own = naming.theirs(path)
        both = own in saved and twin in saved and module_of(twin) not in tensors
        if both and np.array_equal(saved[own], saved[twin]):
            del saved[twin]
        elif own in saved or twin in saved or module_of(twin) in tensors:
            say(f"{where}: changes {module_of(twin)} or {module_of(own)}, which are one in this model, by itself: they "
                "are two from now on")  # fmt: skip
            base = catalogue.of(base).untied(base)
    return base, saved


def _layers(where: str, base: Model, module: str) -> tuple[str, ...]:
    """The path of an adapted layer in surm's model, or the paths of its parts if surm has several layers instead."""
    path = module_of(_path(where, base, f"{module}.weight"))
    paths, linear = namings_of(base)[NEW].apart(path), select.linear_layers(base)
    if any(one not in linear or one == CONVOLUTION for one in paths):
        if _block(path) >= (depth := 1 + max(map(_block, linear))):
            raise InputError(f"{where!r} adapts {module}, but the last of the {depth} blocks here is {depth - 1}")
        what = ", a convolution in transformers" if path == CONVOLUTION else ""
        raise InputError(f"{where!r} adapts {module}, which is {path} here{what}; expected a linear layer")
    return paths


def _block(path: str) -> int:
    """The number of the block that a path leads to; -1 for other paths."""
    match = re.match(r"blocks\.(\d+)\.", path)
    return int(match[1]) if match else -1


def _by_layer(
    where: str, base: Model, read: dict[str, Update], layers: Mapping[str, tuple[str, ...]]
) -> dict[str, Update]:
    """The updates by path, after a check that each fits its layer."""
    linear, updates = select.linear_layers(base), {}
    for module, update in read.items():
        shapes = [select.get(base, linear[path]).kernel.shape for path in layers[module]]
        n_in, n_out = shapes[0][0], sum(shape[1] for shape in shapes)
        if (update.n_out, update.n_in) != (n_out, n_in):
            given = f"{module} of {update.n_out}×{update.n_in}"
            ours = " and ".join(layers[module])
            raise InputError(f"{where!r} adapts {given}, but {ours} of this model is {n_out}×{n_in}")
        parts = joint.split(module, update, [shape[1] for shape in shapes]) if len(shapes) > 1 else [update]
        for path, part in zip(layers[module], parts, strict=True):
            if path in updates:
                raise InputError(f"{where!r} adapts {path} twice, once as {module}; expected every layer once")
            updates[path] = part
    return updates


def _by_variable(
    where: str, base: Model, saved: dict[str, np.ndarray], adapted: Container[str]
) -> dict[str, np.ndarray]:
    """The arrays of modules_to_save by path, in the shapes of surm's model.

    Of modules called `lm_head` or `embed_tokens`, PEFT also saves the weights that do not train; those are left out.
    """
    variables, naming = {}, namings_of(base)[NEW]
    for key, array in saved.items():
        if naming.of_head(key) and (reason := obstacle(base)):
            raise InputError(f"{where!r} holds a classifier, but {reason}")
        path = _path(where, base, key)
        _, rule = read_name(kind_of(base), key)
        for part, value in zip(
            naming.apart(path), _parts(base, naming.apart(path), rule.transform(array)), strict=True
        ):
            if not (module_of(part) in adapted and _is_unchanged(where, base, part, value)):
                variables[part] = value
    return variables


def _parts(base: Model, paths: tuple[str, ...], array: np.ndarray) -> list[np.ndarray]:
    """The parts of an array, whose last axis is that of the outputs; a last one that does not fit is named later."""
    every = select.variables(base)
    sizes = [select.get(base, every[path]).shape[-1] for path in paths[:-1]]
    return np.split(array, np.cumsum(sizes), axis=-1) if sizes else [array]


def _is_unchanged(where: str, base: Model, path: str, value: np.ndarray) -> bool:
    """Whether an array is the frozen kernel of an adapted layer; InputError if it is another kernel."""
    if path.endswith(".bias"):
        return False
    own = np.asarray(select.get(base, select.variables(base)[path])[...])
    if own.shape == value.shape and np.allclose(own, value.astype(own.dtype), rtol=1e-2, atol=1e-6):
        return True
    raise InputError(f"{where!r} adapts {module_of(path)} and holds another weight for it; expected that of the base")


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
    deepest = max((_block(path) for path in held), default=-1)
    for entry in _entries(config, "target_modules"):
        named = [name for name in linear if f".{name}".endswith(f".{entry}")]
        behind = [name for name in named if deepest >= 0 and _block(names[name]) > deepest]
        if config["peft_type"] == "ADALORA":  # it may take all components of a layer
            behind = []
        _refuse_lost(where, "target_modules", entry, named if set(named) <= set(absent) else behind)


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
    usual = {namings_of(base)[version].theirs("blocks.0.attention.query.kernel") for version in (NEW, OLD)}
    raise InputError(f"{where!r} holds {key}, which this {kind} lacks; expected keys such as {' or '.join(usual)}")
