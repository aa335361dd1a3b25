"""Several adapters in one model: each has a name and a weight, and a layer adds their updates.

    both = surm.combine({"german": first, "medical": second}, head="medical")
    both(x)                                     base(x) + ΔW_german x + ΔW_medical x in every layer
    surm.activate(both, "german")(x)            the update of `first`, with the head of `second`
    surm.activate(both, {"german": 0.5, "medical": 1.0})

The weights are variables, one number for each adapter, so changing them compiles nothing again, and they can be
learned.
"""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from surm.errors import InputError, nearest
from surm.peft import select, surgery
from surm.peft.layers import MergeableLinear, UpdatedLinear, WrappedLinear
from surm.peft.linear_maps import linear_map
from surm.peft.multiply import paths
from surm.peft.spec import PeftSpec
from surm.peft.together import bases
from surm.peft.wrapped import like_answer

Model = TypeVar("Model", bound=nnx.Module)


class AdapterWeight(nnx.Variable):
    """The weight of one adapter among several, a scalar that all layers share; stacked layers have one number each."""


@dataclasses.dataclass(frozen=True)
class Combination(PeftSpec):
    """Stands in for the spec in a model with several adapters; reading it as the spec of one adapter raises InputError.

    Attributes:
      specs: the specs of the adapters, by name.
    """

    specs: FrozenDict[str, PeftSpec] = FrozenDict()

    def __post_init__(self):
        """Skips the checks of a spec, because the other fields have no meaning."""

    @property
    def position(self) -> NoReturn:
        """Raises InputError, because each adapter has its own position."""
        self._refuse()

    def at(self, path: str) -> NoReturn:
        """Raises InputError, because each adapter has its own spec."""
        self._refuse()

    def to_json(self) -> NoReturn:
        """Raises InputError, because several adapters cannot be saved in one file."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(f"the model has several adapters, {_listed(self.specs)}; expected one adapter")


class Member(nnx.Module):
    """One adapter's update of one layer: x ↦ weight·scale·ΔW·dropout(x)."""

    def __init__(self, name: str, layer: UpdatedLinear, weight: AdapterWeight):
        """Takes matrix, dropout and scale from the layer; a fused path, which allows one update, becomes `auto`."""
        self.name, self.weight = name, weight
        self.matrix, self.dropout, self.scale = layer.delta, layer.dropout, layer.scale
        self.path = "auto" if layer.path in paths.FUSED else layer.path

    def factor(self) -> Float[Array, "*split_off"]:
        """The factor of ΔW, with one number for each layer of a stack."""
        return self.weight[...] * self.scale

    def __call__(self, x: Float[Array, "..."], dtype: DTypeLike, base: nnx.Module) -> Float[Array, "..."]:
        """The update's output as vectors, in float32 at least; x is first converted to the given dtype."""
        x, path = linear_map(base).vectors(x if self.dropout is None else self.dropout(x)).astype(dtype), self.path
        if path == "auto":
            path = self.matrix.quickest_path(x, base.dtype or base.kernel.dtype, fusible=False)
        return self.factor() * self.matrix(x, path, base.precision)


class Sum(nnx.Module):
    """The updates that several adapters make to one layer."""

    def __init__(self, members: Sequence[Member]):
        """Stores the updates."""
        self.members = nnx.List(members)

    @property
    def family(self) -> str:
        """The names of the families, for tables."""
        return "+".join(member.matrix.family for member in self.members)

    def to_dense(self) -> Float[Array, "*stack n_out n_in"]:
        """The dense matrix: Σ weight·scale·ΔW."""
        return sum(_scaled(member.factor(), member.matrix.to_dense()) for member in self.members)


def _scaled(factor: Float[Array, "..."], dense: Float[Array, "..."]) -> Float[Array, "..."]:
    return factor.reshape(*factor.shape, *(1,) * (dense.ndim - factor.ndim)) * dense


class CombinedLinear(MergeableLinear):
    """A frozen linear layer with several updates: y = base(x) + Σ_k weight_k·scale_k·ΔW_k·dropout_k(x)."""

    def __init__(self, base: nnx.Module, members: Sequence[Member]):
        """Wraps a layer."""
        super().__init__(base, Sum(members), PeftSpec(), rngs=nnx.Rngs(0))

    def __call__(self, x: Float[Array, "..."], **options: Any) -> Float[Array, "..."]:
        """Applies the layer with its updates."""
        y = self.answer(x, options)
        if self.merged or not self.enabled:
            return y
        change = sum(member(x, y.dtype, self.base) for member in self.delta.members).astype(y.dtype)
        return y + like_answer(self.map.output(change, y), options)

    def folded(self) -> Iterable[tuple[str, Array]]:
        """The kernel plus the sum of the updates."""
        kernel = self.kernel[...]
        yield "kernel", kernel + self.map.layout.kernel(self.delta.to_dense(), kernel.shape)


def combine(
    models: Mapping[str, nnx.Module], weights: Mapping[str, ArrayLike] | None = None, *, head: str | None = None
) -> nnx.Module:
    """Puts the adapters of several models into one model, which applies their weighted sum.

    The adapters may have different families, options, scales and targets. Trained variables can still be trained;
    penalties and rank budgets of families do not act on a combination.

    Args:
      models: models from `attach` or `load_adapter` with one base, by the adapters' names; they are left untouched.
      weights: weights by name; missing ones are 0. Without weights every adapter has weight 1.
      head: the adapter whose model gives the other trained variables, such as the head.

    Returns:
      A new model that is not merged. `merge`, `unmerge`, `disabled`, `detach` and `count_parameters` work as usual.

    Raises:
      InputError: if a model has an adapter other than an update, a magnitude, or several adapters; if the bases differ;
        if the heads differ and `head` is not given; or if a name is empty or a weight is not a finite number.

    Examples:
      >>> from surm.peft import attach, PeftSpec
      >>> from surm.models import vit
      >>> model = vit.ViT(vit.preset("vit_micro"), 10, rngs=nnx.Rngs(0))
      >>> one = attach(model, PeftSpec(family="circulant"), nnx.Rngs(1))
      >>> other = attach(model, PeftSpec(family="low_rank", targets=".*query"), nnx.Rngs(2))
      >>> adapters(combine({"one": one, "other": other}, {"one": 0.5}))
      {'one': 0.5, 'other': 0.0}
    """
    if not models or not all(models):
        raise InputError(f"adapters named {_listed(models) or 'by nothing'}, expected names, such as 'german'")
    if not isinstance(models, Mapping):
        raise InputError(f"models: given a {type(models).__name__}, expected a mapping from names to models")
    chosen = dict.fromkeys(models, 1.0) if weights is None else _checked(weights, models)
    models = {f"adapter {name!r}": model for name, model in models.items()}
    models = {name: bases.updated(name, model) for name, model in models.items()}
    result = models[f"adapter {_whose_head(models, head, chosen)!r}"]
    by_name = dict(zip(chosen, models.values(), strict=True))
    _wrap(result, by_name, {name: _scalar(weight) for name, weight in chosen.items()})
    specs = {name: surgery.spec_of(model) for name, model in by_name.items()}
    result.peft_spec = Combination(specs=FrozenDict(specs))
    return result


def activate(model: Model, weights: str | Mapping[str, ArrayLike]) -> Model:
    """Returns the model with other weights for its adapters, to switch, blend or turn them off.

    A compiled function of the model is not compiled again. An adapter of weight 0 still costs its product.

    Args:
      model: a model from `combine`; left untouched.
      weights: one name, whose adapter then answers alone; or weights by name, where those left out are 0. Scalar
        arrays may be traced.

    Returns:
      A new model.

    Raises:
      InputError: if there is no such adapter, a weight is not a finite number, or the model is merged or does not come
        from `combine`.
    """
    specs = _combination(model).specs
    if not isinstance(weights, str | Mapping):
        raise InputError(f"weights={weights!r}, expected a name or a mapping from names to numbers")
    given = _checked({weights: 1.0} if isinstance(weights, str) else weights, specs)
    if any(layer.merged for _, layer in surgery.wrapped_layers(model)):
        raise InputError(f"weights={weights!r}, but the model is merged; unmerge it first")
    model = nnx.clone(model)
    for name, variable in _weights(model):
        variable[...] = jnp.broadcast_to(_scalar(given[name]), variable.shape)
    return model


def adapters(model: nnx.Module) -> dict[str, float]:
    """The adapters of a model from `combine`, and the weight of each.

    Args:
      model: a model from `combine`.

    Returns:
      Weights by name, in the order in which they were combined.

    Raises:
      InputError: if the model does not come from `combine`.
    """
    specs, weights = _combination(model).specs, dict(_weights(model))
    return {name: float(jnp.ravel(weights[name][...])[0]) for name in specs}


def _combination(model: nnx.Module) -> Combination:
    spec = surgery.spec_of(model)
    if not isinstance(spec, Combination):
        has = "no adapter" if spec is None else "one adapter"
        raise InputError(f"the model has {has}, without a name; expected a model from combine")
    return spec


def _weights(model: nnx.Module) -> list[tuple[str, AdapterWeight]]:
    """The weight variables of a model, with the adapters' names; stacked layers have variables of their own."""
    layers = [layer for _, layer in surgery.wrapped_layers(model)]
    return [(member.name, member.weight) for layer in layers for member in layer.delta.members]


def _checked(weights: Mapping[str, ArrayLike], names: Iterable[str]) -> dict[str, ArrayLike]:
    """The weight of every name; InputError for an unknown name, or a weight that is not a number."""
    for name, weight in weights.items():
        if name not in names:
            raise InputError(f"no adapter is called {name!r}; {nearest(str(name), names)}")
        if not _is_weight(weight):
            raise InputError(f"the weight of {name!r} is {weight!r}, expected a finite number")
    return {name: weights.get(name, 0.0) for name in names}


def _is_weight(weight: Any) -> bool:
    """Whether a weight is a finite real number; of a traced array only the shape can be checked."""
    if isinstance(weight, jax.core.Tracer):
        return weight.shape == ()
    if isinstance(weight, jax.Array):
        real = jnp.issubdtype(weight.dtype, jnp.floating) or jnp.issubdtype(weight.dtype, jnp.integer)
        return real and weight.shape == () and bool(jnp.isfinite(weight))
    return isinstance(weight, numbers.Real) and not isinstance(weight, bool) and math.isfinite(weight)


def _scalar(weight: ArrayLike) -> Float[Array, ""]:
    return jnp.asarray(weight, jnp.float32)


def _whose_head(models: Mapping[str, nnx.Module], head: str | None, names: Mapping[str, Any]) -> str:
    """The adapter whose other trained variables are used; InputError if they differ and `head` is not given."""
    if head is not None and head not in names:
        raise InputError(f"head={head!r}, expected one of {_listed(names)}")
    trained = bases.differing(models)
    if trained and head is None:
        more = f" (+{len(trained) - 3} more)" if len(trained) > 3 else ""
        raise InputError(
            f"the adapters {_listed(names)} were trained with different {', '.join(trained[:3])}{more}; "
            f"choose one of them, such as head={next(iter(names))!r}"
        )
    return next(iter(names)) if head is None else head


def _wrap(result: nnx.Module, models: Mapping[str, nnx.Module], weights: Mapping[str, Array]) -> None:
    """Puts the updates of all models into `result`, which is one of these models."""
    walked = select.walk(result)
    places, nodes = select.places(walked), {id(node): node for _, node in walked}
    members: dict[int, list[Member]] = {}
    shared: dict[tuple, AdapterWeight] = {}
    for name, model in models.items():
        for path, layer in surgery.wrapped_layers(model):
            stack = layer.kernel.shape[: layer.map.split_off]
            one = shared.setdefault((name, stack), AdapterWeight(jnp.broadcast_to(weights[name], stack)))
            members.setdefault(id(select.get(result, path)), []).append(Member(name, layer, one))
    for key, of_layer in members.items():
        base = nodes[key].base if isinstance(nodes[key], WrappedLinear) else nodes[key]
        combined = CombinedLinear(base, of_layer)
        for place in places[key]:
            select.put(result, place, combined)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
