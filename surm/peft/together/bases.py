"""Checks that several models share one base, and finds their other trained variables."""

from collections.abc import Mapping
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from surm.errors import InputError
from surm.ops.packed import Packed
from surm.peft import surgery
from surm.peft.variables import AdapterParam, FixedParam, Trainable

Model = TypeVar("Model", bound=nnx.Module)


def updated(name: str, model: Model, *, magnitude: bool = False) -> Model:
    """An unmerged copy of a model, after a check that its only adapter is an update.

    Args:
      name: the name of the model in messages.
      model: a model from `attach` or `load_adapter`; it is left untouched.
      magnitude: whether its layers may have a trained magnitude.

    Returns:
      The copy.

    Raises:
      InputError: if the model has no adapter, an adapter in another position, several adapters, or a magnitude that is
        not allowed.
    """
    spec = surgery.spec_of(model)
    if spec is None or spec.position != "update":
        has = "no adapter" if spec is None else f"method={spec.method!r}"
        raise InputError(f"{name} has {has}; expected an update, from attach or load_adapter")
    model = surgery.unmerge(model)
    for path, layer in surgery.layers_by_path(model).items():
        if layer.magnitude is not None and not magnitude:
            raise InputError(f"{name}: {path} has a magnitude, but only updates without one can be added")
    return model


def beside(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The variables of a model that do not belong to an update, by their paths in the plain model."""
    return {path: variable for path, variable in surgery.plain_variables(model)
            if not isinstance(variable, AdapterParam | FixedParam | nnx.RngState)}  # fmt: skip


def differing(models: Mapping[str, nnx.Module]) -> list[str]:
    """Finds where models on one base differ in other trained variables, such as their heads.

    Args:
      models: models that are not merged, by their names in messages.

    Returns:
      Paths in the plain model.

    Raises:
      InputError: if they differ anywhere else, because their bases are then different.
    """
    variables, paths = {name: beside(model) for name, model in models.items()}, []
    for path in dict.fromkeys(path for of_model in variables.values() for path in of_model):
        found = {name: of_model.get(path) for name, of_model in variables.items()}
        arrays = {name: None if variable is None else variable.get_value() for name, variable in found.items()}
        frozen = [name for name, variable in found.items() if not isinstance(variable, Trainable)]
        for name in frozen[1:]:
            if not same(arrays[frozen[0]], arrays[name]):
                raise InputError(f"{frozen[0]} and {name} have different bases: {path} differs")
        first, *others = [array for name, array in arrays.items() if name not in frozen[1:]]  # those are as frozen[0]
        if not all(same(first, other) for other in others):
            paths.append(path)
    _check_structures(models, variables)
    return paths


def _check_structures(models: Mapping[str, nnx.Module], variables: Mapping[str, Mapping[str, nnx.Variable]]) -> None:
    """Raises InputError if bases of the same arrays compute differently; heads of other shapes are allowed."""
    (first, *names), shapes = models, {name: _shapes(of_model) for name, of_model in variables.items()}
    for name in names:
        if shapes[name] == shapes[first] and structure(models[name]) != structure(models[first]):
            raise InputError(f"{first} and {name} have bases of the same arrays, but compute differently with them")


def _shapes(variables: Mapping[str, nnx.Variable]) -> dict[str, tuple[int, ...]]:
    return {path: np.shape(variable.get_value()) for path, variable in variables.items()}


def same(first: ArrayLike | Packed | None, other: ArrayLike | Packed | None) -> bool:
    """Whether two arrays are the same object or have the same bits; packed matrices are compared as they are stored."""
    if first is other or first is None or other is None:
        return first is other
    leaves, structure = jax.tree.flatten(first)
    others, structure_of_other = jax.tree.flatten(other)
    return structure == structure_of_other and all(map(_alike, leaves, others))


def _alike(first: ArrayLike, other: ArrayLike) -> bool:
    if first is other:
        return True
    alike = (first.shape, first.dtype) == (other.shape, other.dtype)
    return alike and np.array_equal(_bytes(first), _bytes(other))


def _bytes(array: ArrayLike) -> np.ndarray:
    """The bits of an array, usually without a copy."""
    return np.ascontiguousarray(array).view(np.uint8)  # has at least one axis, which a view of another width needs


def structure(model: nnx.Module) -> nnx.GraphDef:
    """The structure of the plain model in evaluation mode: numbers of heads, epsilons and the like."""
    plain = surgery.detach(model)
    plain.eval()
    return nnx.graphdef(plain)
