"""Loads published weights into surm's models: a table converts names and shapes, which are checked against the model.

    weights = open_weights("hf:google/vit-base-patch16-224")
    model = ViT(config_from_hf(weights.config), num_classes=10, rngs=nnx.Rngs(0))  # from surm.models.hf_config
    model = restore(model, weights)

The pooling of a sentence encoder is not in its config.json; set it by `dataclasses.replace(config,
pooling=weights.pooling)`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from surm.errors import InputError, few
from surm.machine.notes import say
from surm.models import catalogue, keys, lazy
from surm.models.lazy import Arrays, Named, Stored
from surm.models.tables import Table, keep
from surm.models.weights import Weights

Model = TypeVar("Model", bound=nnx.Module)
Put = Callable[[str, np.ndarray, np.dtype], Any]


def _in_dtype(path: str, array: np.ndarray, dtype: np.dtype) -> jax.Array:
    return jnp.asarray(array, dtype)


def convert(arrays: Named) -> dict[str, np.ndarray]:
    """Renames and reshapes published arrays to surm's variables; the publisher's table is recognised by the keys.

    Names of wrappers that training put around the model ("module.", "_orig_mod.", "model.") are removed first.

    Args:
      arrays: the arrays of a file by key.

    Returns:
      The arrays by the path of surm's variable. Arrays whose keys the table does not know keep their keys.

    Raises:
      InputError: if no table fits, two keys mean the same variable, or the file holds several wrapped models.

    Examples:
      >>> arrays = {"embeddings.class_embedding": np.ones(8), "pre_layrnorm.weight": np.ones(8)}
      >>> {path: array.shape for path, array in convert(arrays).items()}
      {'embed.class_token': (1, 8), 'embed.norm.scale': (8,)}
    """
    return dict(_converted(arrays).arrays)


class _Converted(NamedTuple):
    """The converted contents of a file.

    Attributes:
      arrays: the arrays by the path of surm's variable, or by their key if the table does not know it. None is read
        before it is asked for.
      origin: the key of each of these arrays, without the names of wrappers.
      table: the table that the keys belong to.
      unused: keys that the table ignores.
      taken: the names of wrappers that were removed.
    """

    arrays: Arrays
    origin: dict[str, str]
    table: Table
    unused: set[str]
    taken: list[str]


def _converted(arrays: Named) -> _Converted:
    arrays, taken = keys.unwrapped(arrays)
    table = keys.table_of(arrays)
    arrays = _apart(table, arrays)
    converted, origin = {}, {}
    shorts = {key: re.sub(f"^{table.prefix}", "", key) for key in arrays}
    ignored = table.ignored
    if table.instead and any(re.fullmatch(table.instead[0], short) for short in shorts.values()):
        ignored = f"{ignored}|{table.instead[1]}"
    unused = {key for key, short in shorts.items() if re.fullmatch(ignored, short)}
    for key, stored in arrays.stored.items():
        if key in unused:
            continue
        path, transform = _apply(table, shorts[key])
        if path in converted:
            raise InputError(f"keys {origin[path]!r} and {key!r} both mean the variable {path!r}")
        converted[path], origin[path] = stored.then(transform), key
    return _Converted(Arrays(converted), origin, table, unused, taken)


def _apart(table: Table, arrays: Arrays) -> Arrays:
    """The arrays after `table.apart`; nothing is read.

    `table.apart` is shown arrays that take no memory, filled with the place of their key: so each part tells the array
    that it comes from, which is read again for each of its parts.
    """
    keys_in_order = [*arrays]
    shown = {key: np.broadcast_to(np.int64(place), arrays.stored[key].shape) for place, key in enumerate(arrays)}
    found = {}
    for name, part in table.apart(shown).items():
        key = name if name in shown else keys_in_order[int(part.flat[0])]
        split = lambda array, key=key, name=name: table.apart({**shown, key: array})[name]  # noqa: E731
        found[name] = arrays.stored[key] if name == key else arrays.stored[key].then(split)
    return Arrays(found)


def _apply(table: Table, key: str) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    for rule in table.rules:
        if match := re.fullmatch(rule.pattern, key):
            return match.expand(rule.path), rule.transform
    return key, keep


def restore(model: Model, weights: Weights, *, head: bool = False, put: Put = _in_dtype) -> Model:
    """Loads weights into a copy of a model, one array at a time; the given model is not changed.

    The model may be the result of `outline`, which has shapes and no arrays: then no more memory is taken than by the
    result and the largest array of the file.

    The learned positions of a ViT are resized if the model's patch grid differs from the file's. A pooler that only the
    file has is ignored; one that only the model has keeps its values, and `lacking` names it. Keys that the model does
    not use (a loss, a decoder, another head) are ignored and reported.

    Args:
      model: gives the structure, the dtypes and, without `head`, the head.
      weights: from `open_weights`.
      head: whether the classifier is also read from the file, which must hold it with the model's shape.
      put: makes what a variable holds from its path, the file's array and the variable's dtype, on the devices and in
        the form that the model wants. By default it is the array in that dtype.

    Returns:
      A new model of the same structure with the arrays of the file. Only a decoder whose output is tied becomes untied
      if the file holds another `lm_head`, as in transformers.

    Raises:
      InputError: if variables are missing or have another shape, or the file's encoder has variables that the model
        lacks (the message lists all three); or if `head` is set and the file's head is for multi-label classification
        (`problem_type` in config.json).
    """
    model = nnx.clone(model)
    found = _converted(weights.arrays)
    arrays, architecture = found.arrays.stored, catalogue.find(model)
    if architecture:
        architecture.fitted(model, found.arrays)
    variables = {".".join(map(str, path)): v for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    if head and weights.config.get("problem_type") == "multi_label_classification":
        given = f"{weights.name!r} says problem_type='multi_label_classification'"
        raise InputError(f"{given}, but surm's heads choose a single class; load it without the head")
    if not head:
        variables, arrays = _without("head.", variables), _without("head.", arrays)
    adapted: set[str] = set()
    if architecture:
        arrays = lazy.of(architecture.restored(Arrays(arrays), model.config)).stored
        adapted = found.arrays.keys() - arrays.keys()  # by now other arrays
        for start in architecture.fresh:
            if not (_any_under(start, variables) and _any_under(start, arrays)):
                variables, arrays = _without(start, variables), _without(start, arrays)
    _check(weights.name, arrays, variables, found)
    _say_unused(weights.name, found, {*variables, *adapted, "head.kernel", "head.bias"})
    # The largest come first, so that their copies are there while little else is in memory.
    for path, variable in sorted(variables.items(), key=lambda item: -arrays[item[0]].nbytes):
        variable.set_value(put(path, arrays[path].read(), variable.dtype))
    return model


def outline(build: Callable[[], Model], dtype: jax.typing.DTypeLike | None = None) -> Model:
    """A model with shapes and dtypes in the place of arrays, for `restore` to fill.

    Args:
      build: makes the model; its arrays are never made.
      dtype: the dtype of all floating-point variables; None for those of the model.

    Returns:
      The model. Whatever `restore` does not fill has no values.
    """
    model = nnx.eval_shape(build)
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)) if dtype is not None else ():
        if jnp.issubdtype(variable.dtype, jnp.floating):
            variable.set_value(jax.ShapeDtypeStruct(variable.shape, dtype))
    return model


def lacking(weights: Weights, model: nnx.Module) -> list[str]:
    """Prefixes of optional variables that a model has and a file of weights lacks, such as `pooler.` of a BERT."""
    wanted = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    held = _converted(weights.arrays).arrays
    return [start for start in catalogue.of(model).fresh if _any_under(start, wanted) and not _any_under(start, held)]


def _any_under(prefix: str, named: Iterable[str]) -> bool:
    return any(path.startswith(prefix) for path in named)


def _without(prefix: str, named: dict) -> dict:
    return {path: value for path, value in named.items() if not path.startswith(prefix)}


def _check(name: str, arrays: Mapping[str, Stored], variables: dict[str, nnx.Variable], found: _Converted) -> None:
    different = [
        f"{path}: file {_shape(arrays[path])}, model {tuple(variables[path].shape)}"
        for path in sorted(arrays.keys() & variables.keys())
        if _shape(arrays[path]) != str(tuple(variables[path].shape))
    ]
    missing, more = sorted(variables.keys() - arrays.keys()), sorted(arrays.keys() - variables.keys())
    parts = {
        "missing in the file": missing,
        "not in the model": [path for path in more if re.fullmatch(found.table.body, path)],
        "different": different,
        "the file has": keys.meant(found.table, missing, {path: found.origin.get(path, path) for path in more}),
    }
    wrong = [f"{title}: {few(paths)}" for title, paths in parts.items() if paths]
    if wrong:
        raise InputError(f"{name!r} does not fit the model; " + "; ".join(wrong))


def _say_unused(name: str, found: _Converted, used: set[str]) -> None:
    for wrapper in found.taken:
        say(f"{name!r}: {wrapper!r} is removed from its keys")
    if unused := found.unused | {key for path, key in found.origin.items() if path not in used}:
        say(f"{name!r} holds arrays that the model does not use, which are ignored: {keys.grouped(unused)}")


def _shape(array: Stored) -> str:
    # Integers are quantised weights, or no weights at all, and must not be cast to a kernel.
    whole = "" if jnp.issubdtype(array.dtype, jnp.floating) else f" of {array.dtype}"
    return f"{array.shape}{whole}"
