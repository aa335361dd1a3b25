"""The record of a family: what every module of one has, what it may have besides, and what holds where it has not."""

import dataclasses
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from jaxtyping import Array, Float

from surm.matrices.algebra.params import Params

PRODUCTS = ("matmuls", "thin", "thin_in_large", "transforms")
"""What a family's own product is made of; see `Family.product`."""

_FUNCTIONS = {
    "init": ("key", "n_out", "n_in"),
    "matvec": ("params", "x", "n_out"),
    "to_dense": ("params", "n_out", "n_in"),
    "num_params": ("n_out", "n_in"),
    "project": ("dense",),
}
"""What a module must have, with the parameters in front of the options."""

_MORE_FUNCTIONS = {
    "quick_dense": ("params", "n_out", "n_in"),
    "dense_matvec": ("params", "x", "n_out"),
    "fixed": ("base",),
    "penalty": ("params",),
}
_FUNCTIONS_OF_A_GATE = {
    "first_scores": ("params",),
    "next_scores": ("before", "params", "gradients"),
    "scores": ("averages",),
    "surplus": ("progress",),
}
_TRAINING_OF = {"GATE": ("begin", "end", "every_steps"), "penalty": ("penalty", "penalty_until")}
"""The options of the training that come with a part of a family."""


def _is_rate(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < math.inf


def _is_shared(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and among in ("model", "layer", "kind") for name, among in value.items()
    )


_CONSTANTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "LEARNING_RATE": (_is_rate, "a float above 0"),
    "ADAPTER_LEARNING_RATE": (_is_rate, "a float above 0"),
    "LEARNING_RATE_BY_ROOT": (lambda value: isinstance(value, str), "the name of an option"),
    "LINEAR": (
        lambda value: isinstance(value, tuple) and all(isinstance(name, str) for name in value),
        "a tuple of names of parameters",
    ),
    "SHARED": (_is_shared, "a dict of names of parameters to 'model', 'layer' or 'kind'"),
    "GATE": (lambda value: isinstance(value, str), "the name of a parameter"),
    "TRAINING": (
        lambda value: isinstance(value, dict) and all(type(number) in (int, float) for number in value.values()),
        "a dict of numbers by name",
    ),
    "PRODUCT": (lambda value: value in PRODUCTS, " or ".join(map(repr, PRODUCTS))),
    "MEASURED_AS": (lambda value: isinstance(value, str), "the name of a family"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Gate:
    """How a family counts its components: see `surm.peft.schedules.rank_budget`.

    Attributes:
      parameter: GATE, the name of the parameter with one number a component, which switches that off by being 0.
      first_scores: (params) -> what is remembered of importance before the first step.
      next_scores: (before, params, gradients) -> the same after a step, from the parameters after it.
      scores: (averages) -> the importance of every component, of what `next_scores` gives.
      surplus: (progress) -> the share of the superfluous components that are still on: from 1 at 0 down to 0 at 1.
    """

    parameter: str
    first_scores: Callable[[Params], Any]
    next_scores: Callable[[Any, Params, Params], Any]
    scores: Callable[[Any], Float[Array, " r"]]
    surplus: Callable[[Float[Array, ""]], Float[Array, ""]]


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A family of structured matrices ΔW, n_out×n_in for any n_out, n_in >= 1, as functions of a dict of arrays.

    A module with functions and constants of these names, constants in capitals, makes a family by `Family.of`. The
    first five functions and LEARNING_RATE it must have; of the others the default is said here. The arguments that are
    the same in all families are explained here alone; the functions' own documentation explains their options.

    Attributes:
      name: the module's, without its package.
      init: (key, n_out, n_in, *, OPTIONS, dtype=float32) -> params, the parameters with which training starts: ΔW is
        exactly 0, and the gradient of a loss is not, so that one factor of a product is random and the other 0. `key`
        is a key of `jax.random`, unread where nothing is random; `dtype` is the type of all parameters.
      matvec: (params, x, n_out) -> y, the product ΔW x of each vector that lies along the last axis of x, of length
        n_in, with any axes in front; in x's type. It takes the parameters of `init` and the arrays of `fixed` in one
        dict, and reads the options off their names and shapes. Where the product is made of convolutions it takes
        another kind of them by `convolve=`, such as `dft.convolve`, which is made of matmuls alone.
      to_dense: (params, n_out, n_in) -> ΔW in full, entry by entry as the formula defines it; in the parameters' type.
      num_params: (n_out, n_in, *, OPTIONS) -> how many trained numbers `init` stores.
      project: (dense, *, OPTIONS) -> params of the member of the family that is nearest to a matrix in the Frobenius
        norm, or near it. A family with `fixed` takes those arrays as `fixed=`.
        All five raise ValueError, which names what was given and what was expected: if n_out, n_in or an option is
        below 1 or does not fit the shape, or the names or shapes of the parameters do not fit.
      learning_rate: LEARNING_RATE, the peak rate of AdamW for an update where nobody gives one.
      adapter_learning_rate: ADAPTER_LEARNING_RATE, the same for an adapter, which stands behind a layer; by default
        learning_rate.
      learning_rate_by_root: LEARNING_RATE_BY_ROOT, the option by whose square root an update's rate is divided; by
        default None, for a rate that depends on no option.
      fixed: (base, *, OPTIONS) -> arrays that never train and that no file holds, made anew from the weight that is
        updated; by default None, for a family that has none.
      quick_dense: (params, n_out, n_in, *, precision="highest") -> ΔW up to rounding, more quickly than by `to_dense`,
        with the precision that its matmuls have; by default None, where there is no quicker way.
      dense_matvec: (params, x, n_out, *, matmul=jnp.matmul) -> y by a product with the dense matrix, which costs less
        than `x @ ΔW.T` since it knows what the matrix is like; by default None, where it would cost the same.
      linear: LINEAR, the parameters in which ΔW is linear where they are the only one: sums of matrices are sums of
        arrays then. By default ().
      shared: SHARED, the parameters that are one array for several matrices of a model, with whose they are: all that
        are in the "model", those in a "layer", or those of a "kind", such as all queries. By default {}.
      gate: GATE, with first_scores, next_scores, scores and surplus beside it; by default None, for a family whose
        components all stay on.
      penalty: (params) -> a number that is added to the loss; by default None.
      training: TRAINING, the options of the training with their defaults. With GATE they are begin and end, the shares
        of the steps between which components are switched off, and every_steps, how often. With a penalty they are
        penalty, its weight, and penalty_until, the share of the steps after which it ends. By default {}.
      product: PRODUCT, what `matvec` is made of, by which a path is chosen on hardware where nothing was measured:
        "matmuls" that cost about what the layer does, the default; "thin" ones, a few numbers for each vector;
        "thin_in_large", which cost more than the dense matrix where that is small; or "transforms", FFTs.
      measured_as: MEASURED_AS, the family by whose measured speed the quickest path is chosen; by default its own.

    Examples:
      >>> from surm.matrices import FAMILIES
      >>> FAMILIES["kronecker"].num_params(768, 768), FAMILIES["kronecker"].options
      (1536, {'rank': None, 'terms': 1})
      >>> FAMILIES["lora_xs"].linear, FAMILIES["lora_xs"].measured_as, FAMILIES["lora_xs"].gate
      (('r',), 'low_rank', None)
    """

    name: str
    init: Callable[..., Params]
    matvec: Callable[..., Float[Array, "..."]]
    to_dense: Callable[..., Float[Array, "n_out n_in"]]
    num_params: Callable[..., int]
    project: Callable[..., Params]
    learning_rate: float
    adapter_learning_rate: float
    learning_rate_by_root: str | None = None
    fixed: Callable[..., Params] | None = None
    quick_dense: Callable[..., Float[Array, "n_out n_in"]] | None = None
    dense_matvec: Callable[..., Float[Array, "..."]] | None = None
    linear: tuple[str, ...] = ()
    shared: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gate: Gate | None = None
    penalty: Callable[[Params], Float[Array, ""]] | None = None
    training: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
    product: str = "matmuls"
    measured_as: str = ""

    def __post_init__(self):
        object.__setattr__(self, "measured_as", self.measured_as or self.name)
        object.__setattr__(self, "shared", MappingProxyType(dict(self.shared)))
        object.__setattr__(self, "training", MappingProxyType(dict(self.training)))

    @functools.cached_property
    def options(self) -> Mapping[str, bool | int | None]:
        """The structural options, with their defaults: what `num_params` takes by keyword."""
        return {p.name: p.default for p in _parameters(self.num_params) if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @functools.cached_property
    def convolutional(self) -> bool:
        """Whether `matvec` takes `convolve`."""
        return any(p.name == "convolve" for p in _parameters(self.matvec))

    @property
    def trained_shared(self) -> bool:
        """Whether trained arrays belong to several matrices; what is both shared and fixed is stored nowhere."""
        return bool(self.shared) and self.fixed is None

    @classmethod
    def of(cls, module: ModuleType) -> "Family":
        """The family that a module defines.

        Args:
          module: with the parts that the class names. All else that it defines has a name that starts with `_`.

        Returns:
          Its record.

        Raises:
          TypeError: naming the module and the part, if one is missing, unknown (the nearest is named), of another type
            or with other parameters than it should have, or without those that belong to it.
        """
        parts = _parts(module)
        constants = {name.lower(): parts.pop(name) for name in _CONSTANTS if name in parts}
        constants.setdefault("adapter_learning_rate", constants["learning_rate"])
        gate = constants.pop("gate", None)
        of_gate = {name: parts.pop(name) for name in _FUNCTIONS_OF_A_GATE if name in parts}
        constants["gate"] = Gate(gate, **of_gate) if gate else None
        family = cls(module.__name__.rpartition(".")[2], **constants, **parts)
        if family.convolutional and family.product != "transforms":
            raise TypeError(f"{module.__name__}: matvec takes convolve; expected PRODUCT = 'transforms'")
        if family.learning_rate_by_root not in (None, *family.options):
            raise TypeError(f"{module.__name__}: LEARNING_RATE_BY_ROOT must be an option of num_params, "
                            f"{' or '.join(family.options)}; got {family.learning_rate_by_root!r}")  # fmt: skip
        return family


def check_together(families: Mapping[str, Family]) -> None:
    """Refuses families that do not fit each other.

    Args:
      families: by name.

    Raises:
      TypeError: if a family has another name than its module, or is measured as one that is not measured itself.
    """
    measured = [name for name, family in families.items() if family.measured_as == name]
    for name, family in families.items():
        if family.name != name:
            raise TypeError(f"FAMILIES has the module {family.name!r} under the name {name!r}; expected its own")
        if family.measured_as not in measured:
            raise TypeError(f"{name}: MEASURED_AS must be one of {', '.join(measured)}, got {family.measured_as!r}")


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [*inspect.signature(function).parameters.values()]


def _parts(module: ModuleType) -> dict[str, Any]:
    """The parts of a family that a module has, checked one by one and together."""
    where, known = module.__name__, {**_FUNCTIONS, **_MORE_FUNCTIONS, **_FUNCTIONS_OF_A_GATE, **_CONSTANTS}
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    for name, value in own.items():
        if name not in known and getattr(value, "__module__", where) == where and not isinstance(value, ModuleType):
            near = {name.upper()} & {*known} or difflib.get_close_matches(name, known, 1)
            meant = f"; the nearest is {', '.join(near)}" if near else ""
            raise TypeError(f"{where}: no part of a family is called {name}{meant}; the names of others start with _")
    parts = {name: own[name] for name in known if name in own}
    if missing := [name for name in (*_FUNCTIONS, "LEARNING_RATE") if name not in parts]:
        raise TypeError(f"{where} lacks {', '.join(missing)}; expected the parts that surm.matrices.family lists")
    for name, value in parts.items():
        _check_part(where, name, value)
    _check_groups(where, parts)
    return parts


def _check_part(where: str, name: str, value: Any) -> None:
    if name in _CONSTANTS:
        fits, in_words = _CONSTANTS[name]
        if not fits(value):
            raise TypeError(f"{where}: {name} must be {in_words}, got {value!r}")
        return
    expected = {**_FUNCTIONS, **_MORE_FUNCTIONS, **_FUNCTIONS_OF_A_GATE}[name]
    if not callable(value):
        raise TypeError(f"{where}: {name} must be a function of {', '.join(expected)}, got {value!r}")
    given = tuple(p.name for p in _parameters(value) if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if given != expected:
        raise TypeError(f"{where}: {name} must be a function of {', '.join(expected)}, got one of {', '.join(given)}")


def _check_groups(where: str, parts: Mapping[str, Any]) -> None:
    """Refuses a gate without its scores, or training options that nothing reads."""
    of_gate = ("GATE", *_FUNCTIONS_OF_A_GATE)
    found, missing = ([name for name in of_gate if (name in parts) == has] for has in (True, False))
    if found and missing:
        raise TypeError(f"{where} has {', '.join(found)}, but lacks {', '.join(missing)}; expected all or none")
    needed = [option for part, options in _TRAINING_OF.items() if part in parts for option in options]
    given = [*parts.get("TRAINING", {})]
    if {*given} != {*needed}:
        raise TypeError(f"{where}: TRAINING must have {', '.join(needed) or 'no options'}, "
                        f"as its GATE and penalty want, got {', '.join(given) or 'none'}")  # fmt: skip
