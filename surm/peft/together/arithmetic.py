"""Arithmetic on adapters of one base: averages, and sums of task vectors.

    both, errors = surm.average([first, second])
    less, errors = surm.add([skilled, rude], [1.0, -0.5], head=0)

The sum is over scale·ΔW, layer by layer. If all models have a layer's ΔW in the same form, and this form is linear in
its parameters (`LINEAR` of its family), the parameters are added, which is exact. Otherwise the dense matrices are
added, and the family's `project` finds a member close to the sum: a sum of two matrices of rank 8 has rank 16.
"""

import math
import numbers
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from flax import nnx

from surm.errors import InputError
from surm.matrices import FAMILIES
from surm.peft import surgery
from surm.peft.layers import UpdatedLinear
from surm.peft.spec import PeftSpec
from surm.peft.together import bases, warm_start
from surm.peft.variables import Trainable


def average(
    models: Sequence[nnx.Module], weights: Sequence[int | float] | None = None, *, spec: PeftSpec | None = None
) -> tuple[nnx.Module, dict[str, float]]:
    """The weighted mean of several adapters of one base, and of their heads.

    Args:
      models: models with updates, from `attach` or `load_adapter`; they are left untouched.
      weights: one number for each model, at least 0; they are divided by their sum. Without weights all count equally.
      spec: the spec of the result; the first model's if there is none.

    Returns:
      A new model, not merged, and the relative error of each layer in Frobenius norm (0 where parameters were added).

    Raises:
      InputError: as `add` does, or if a weight is negative or all are 0.
    """
    _check_models(models)
    weights = [1.0] * len(models) if weights is None else _checked(weights, models)
    if min(weights) < 0 or not any(weights):
        raise InputError(f"weights={weights}, expected numbers of at least 0 that are not all 0, one for each model")
    shares = [weight / sum(weights) for weight in weights]
    return _sum(models, shares, shares, spec)


def add(
    models: Sequence[nnx.Module],
    weights: Sequence[int | float],
    *,
    head: int | None = None,
    spec: PeftSpec | None = None,
) -> tuple[nnx.Module, dict[str, float]]:
    """Adds task vectors into an adapter with Σ_k weight_k·scale_k·ΔW_k; a negative weight subtracts.

    Args:
      models: models with updates, from `attach` or `load_adapter`; they are left untouched.
      weights: one number for each model.
      head: the index of the model whose other trained variables, such as the head, are used; None for the mean of all.
      spec: the spec of the result; the first model's if there is none.

    Returns:
      A new model, not merged, and the relative error of each layer in Frobenius norm (0 where parameters were added).

    Raises:
      InputError: if there is no model or a model has an adapter other than an update; if the bases differ; if weights
        are not one finite number for each model; if an updated layer is not a target of the result, or the result does
        not train a variable that a model has trained; if heads have different shapes; or if layers share arrays in the
        result's family.
    """
    _check_models(models)
    weights = _checked(weights, models)
    if head is not None and head not in range(len(models)):
        raise InputError(f"head={head}, expected None or the index of a model, 0 to {len(models) - 1}")
    even = [1 / len(models)] * len(models)
    return _sum(models, weights, even if head is None else [float(i == head) for i in range(len(models))], spec)


def _check_models(models: Sequence[nnx.Module]) -> None:
    if isinstance(models, nnx.Module) or not isinstance(models, Sequence) or not models:
        given = "an empty one" if isinstance(models, Sequence) else f"a {type(models).__name__}"
        raise InputError(f"models: given {given}, expected a list of models with adapters")


def _checked(weights: Sequence[int | float], models: Sequence[nnx.Module]) -> list[float]:
    fine = [isinstance(w, numbers.Real) and not isinstance(w, bool) and math.isfinite(w) for w in weights]
    if len(weights) != len(models) or not all(fine):
        raise InputError(f"weights={list(weights)} for {len(models)} models, expected one finite number for each")
    return [float(weight) for weight in weights]


def _sum(
    models: Sequence[nnx.Module], weights: Sequence[float], shares: Sequence[float], spec: PeftSpec | None
) -> tuple[nnx.Module, dict[str, float]]:
    """Computes the sum; weights apply to the updates, shares to the other trained variables."""
    named = {f"models[{i}]": bases.updated(f"models[{i}]", model) for i, model in enumerate(models)}
    differing = bases.differing(named)
    first = named["models[0]"]
    spec = spec or surgery.spec_of(first)
    result = bases.updated("the result", first if spec == surgery.spec_of(first) else _anew(first, spec))
    _add_beside(result, named, shares, differing)
    layers = {name: surgery.layers_by_path(model) for name, model in named.items()}
    targets, own, errors = surgery.layers_by_path(result), surgery.specs(result, spec), {}
    for name, of_model in layers.items():
        if lost := [path for path in of_model if path not in targets]:
            raise InputError(f"{lost[0]} is updated in {name}, but is not a target of the result's spec")
    for path, target in targets.items():
        terms = [(w, of_model[path]) for w, of_model in zip(weights, layers.values(), strict=True) if path in of_model]
        errors[path] = _set(path, target, terms, own[path])
    return result, errors


def _anew(model: nnx.Module, spec: PeftSpec) -> nnx.Module:
    """Returns the model with another adapter."""
    return surgery.attach(surgery.detach(model), spec, nnx.Rngs(0))


def _add_beside(
    result: nnx.Module, models: Mapping[str, nnx.Module], shares: Sequence[float], differing: Sequence[str]
) -> None:
    """Gives the result the mean of the models' other trained variables, in place."""
    mine, theirs = bases.beside(result), [bases.beside(model) for model in models.values()]
    for name, of_model in zip(models, theirs, strict=True):
        for path, variable in of_model.items():
            if isinstance(variable, Trainable) and not isinstance(mine[path], Trainable):
                raise InputError(f"{path} is trained in {name}, but not by the result's spec; its train must name it")
    for path in differing:
        arrays = [of_model[path][...] for of_model in theirs]
        shapes = dict.fromkeys(str(array.shape) for array in arrays)
        if len(shapes) > 1:
            raise InputError(f"{path} has the shapes {', '.join(shapes)}, expected the same in all models")
        mean = sum(share * array for share, array in zip(shares, arrays, strict=True))
        mine[path][...] = mean.astype(arrays[0].dtype)


def _set(path: str, target: UpdatedLinear, terms: Sequence[tuple[float, UpdatedLinear]], spec: PeftSpec) -> float:
    """Sets one layer's update to the weighted sum of others, in place; returns the relative error."""
    form = _form(target)
    if form and terms and target.scale and all(_form(layer) == form for _, layer in terms):
        (name,) = target.delta.parameters
        scaled = [w * (layer.scale / target.scale) * layer.delta.parameters[name][...] for w, layer in terms]
        if not jnp.isfinite(total := sum(scaled)).all():
            raise InputError(f"{path}: the sum of the updates has entries that are not finite")
        warm_start.put(target, {name: total})
        return 0.0
    dense = [weight * layer.scale * layer.delta.to_dense() for weight, layer in terms]
    return warm_start.fit(path, target, sum(dense, jnp.zeros((target.delta.n_out, target.delta.n_in))), spec)


def _form(layer: UpdatedLinear) -> tuple | None:
    """The form of an update: of updates with equal forms the parameters can be added; None if they never can."""
    (name, variable), *others = layer.delta.parameters.items()
    if others or name not in FAMILIES[layer.delta.family].linear:
        return None
    return layer.delta.family, name, variable.shape
