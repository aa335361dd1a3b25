"""The `Family` record: the required and the optional parts of a family's module, checked when the record is made."""

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

PRODUCTS = ("matmuls", "thin", "thin_in_large", "convolution", "two_convolutions", "transforms")
"""The kinds of computation that a `matvec` can consist of; see `Family.product`."""
_FFTS = PRODUCTS[-3:]

_FUNCTIONS = {
    "init": ("key", "n_out", "n_in"),
    "matvec": ("params", "x", "n_out"),
    "to_dense": ("params", "n_out", "n_in"),
    "num_params": ("n_out", "n_in"),
    "project": ("dense",),
}
"""The functions that a module must have, with the parameters that precede the options."""

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
"""The training options that a family must define if it has GATE or a penalty."""


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
    """How a family's components are scored, and when they are switched off; see `surm.peft.schedules.rank_budget`.

    Attributes:
      parameter: GATE, the name of the parameter that holds one number per component; a 0 switches it off.
      first_scores: (params) -> the statistics of importance before the first step.
      next_scores: (before, params, gradients) -> the statistics after a step; `params` are the parameters after it.
      scores: (averages) -> the importance of every component, computed from these statistics.
      surplus: (progress) -> the fraction of the components to be removed that are still on. It falls from 1 at
        progress 0 to 0 at progress 1.
    """

    parameter: str
    first_scores: Callable[[Params], Any]
    next_scores: Callable[[Any, Params, Params], Any]
    scores: Callable[[Any], Float[Array, " r"]]
    surplus: Callable[[Float[Array, ""]], Float[Array, ""]]


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A family of structured n_out×n_in matrices ΔW, for any n_out, n_in >= 1, as pure functions of a dict of arrays.

    `Family.of` makes the record from a module that defines functions and constants (in capitals) with the names below.
    The first five functions and LEARNING_RATE are required; the other parts have the defaults given here. The arguments
    that all families share are explained only here; the docstrings of a family's functions explain its own options.

    Attributes:
      name: the name of the module, without its package.
      init: (key, n_out, n_in, *, OPTIONS, dtype=float32) -> params, the parameters at the start of training. ΔW is
        exactly 0 but its gradient is not: where ΔW is a product, one factor is random and another is 0. `key` is a
        key of `jax.random`, unused if nothing is random; `dtype` is the dtype of all parameters.
      matvec: (params, x, n_out) -> y, the product ΔW x for each vector along the last axis of x. That axis has length
        n_in and may have any axes before it; y has x's dtype. `params` is one dict with the parameters of `init` and
        the arrays of `fixed`; the options are read from their names and shapes. If the product consists of
        convolutions, `convolve=` replaces their implementation, which is an `algebra.fourier.Convolution`, for example
        by `dft.convolve`, which uses only matmuls.
      to_dense: (params, n_out, n_in) -> the dense ΔW, entry by entry as the formula defines it, in the dtype of params.
      num_params: (n_out, n_in, *, OPTIONS) -> the number of trained values that `init` makes.
      project: (dense, *, OPTIONS) -> params of the member of the family that is nearest to a matrix in the Frobenius
        norm, or of one that is close to it. A family with `fixed` takes those arrays as `fixed=`.
        All five raise ValueError, which names what was given and what was expected, if n_out, n_in or an option is
        below 1 or does not fit the shape, or if the names or shapes of the parameters do not fit.
      learning_rate: LEARNING_RATE, the default peak learning rate of AdamW for an update.
      adapter_learning_rate: ADAPTER_LEARNING_RATE, the same for an adapter behind a layer; by default learning_rate.
      learning_rate_by_root: LEARNING_RATE_BY_ROOT, the name of an option by whose square root the default rate of an
        update is divided; by default None, for a rate that depends on no option.
      fixed: (base, *, OPTIONS) -> frozen arrays, which are not saved but recomputed from the weight that is updated;
        by default None, for a family without frozen arrays.
      quick_dense: (params, n_out, n_in, *, precision="highest") -> ΔW up to rounding, faster than by `to_dense`;
        `precision` is the precision of its matmuls. By default None, if there is no faster way.
      dense_matvec: (params, x, n_out, *, matmul=jnp.matmul) -> y, computed with the dense matrix, but at a lower cost
        than `x @ ΔW.T` because it uses the structure of ΔW; by default None, if nothing can be saved.
      linear: LINEAR, the names of parameters in which ΔW is linear if a matrix has no other parameter: the sum of two
        matrices then has the sum of their arrays. By default ().
      shared: SHARED, the parameters of which several matrices of a model share one array, and which matrices share it:
        all in the "model", all in a "layer", or all of a "kind", such as all queries. By default {}.
      gate: GATE, with first_scores, next_scores, scores and surplus beside it; by default None, for a family whose
        components all stay on.
      penalty: (params) -> a number that is added to the loss; by default None.
      training: TRAINING, the options of the training with their defaults. A family with GATE has begin and end, the
        fractions of the training between which components are switched off, and every_steps, the steps from one time to
        the next. A family with a penalty has penalty, its weight, and penalty_until, the fraction of the training after
        which it ends. By default {}.
      product: PRODUCT, the kind of computation in `matvec`, from which a multiplication path is chosen on hardware
        without measurements: "matmuls" that cost about as much as the layer's own (the default); "thin" ones with a
        small inner size; "thin_in_large", which are cheaper than a dense product only for large matrices;
        "convolution", which is one of the matrix's own length, or "two_convolutions", which are two for each term of a
        sum; or other "transforms". The last three are FFTs.
      measured_as: MEASURED_AS, the family whose measured speed decides on the path; by default the family itself.

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
        """The structural options with their defaults, which `num_params` takes by keyword."""
        return {p.name: p.default for p in _parameters(self.num_params) if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @functools.cached_property
    def convolutional(self) -> bool:
        """Whether `matvec` takes `convolve`."""
        return any(p.name == "convolve" for p in _parameters(self.matvec))

    @property
    def transforms(self) -> bool:
        """Whether `matvec` consists of FFTs."""
        return self.product in _FFTS

    @property
    def trained_shared(self) -> bool:
        """Whether trained arrays belong to several matrices; arrays that are both shared and fixed are not saved."""
        return bool(self.shared) and self.fixed is None

    @classmethod
    def of(cls, module: ModuleType) -> "Family":
        """The family that a module defines.

        Args:
          module: a module with the parts that this class lists. The names of its other definitions start with `_`.

        Returns:
          The record of the family.

        Raises:
          TypeError: if a part is missing, has an unknown name, has the wrong type or the wrong parameters, or lacks the
            parts that belong to it. The message names the module and the part, and for an unknown name the nearest one.
        """
        parts = _parts(module)
        constants = {name.lower(): parts.pop(name) for name in _CONSTANTS if name in parts}
        constants.setdefault("adapter_learning_rate", constants["learning_rate"])
        gate = constants.pop("gate", None)
        of_gate = {name: parts.pop(name) for name in _FUNCTIONS_OF_A_GATE if name in parts}
        constants["gate"] = Gate(gate, **of_gate) if gate else None
        family = cls(module.__name__.rpartition(".")[2], **constants, **parts)
        if family.convolutional and not family.transforms:
            kinds = " or ".join(map(repr, _FFTS))
            raise TypeError(f"{module.__name__}: matvec takes convolve; expected PRODUCT = {kinds}")
        if family.learning_rate_by_root not in (None, *family.options):
            raise TypeError(f"{module.__name__}: LEARNING_RATE_BY_ROOT must be an option of num_params, "
                            f"{' or '.join(family.options)}; got {family.learning_rate_by_root!r}")  # fmt: skip
        return family


def check_together(families: Mapping[str, Family]) -> None:
    """Checks that the families' names are those of their modules and that MEASURED_AS names a measured family.

    Args:
      families: the families by name.

    Raises:
      TypeError: if a family's name is not that of its module, or its `measured_as` is a family that is not measured.
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
    """The parts of a family that a module defines, after a check of each one and of those that belong together."""
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
    """Checks that a gate comes with its scores, and that TRAINING has exactly the options that are used."""
    of_gate = ("GATE", *_FUNCTIONS_OF_A_GATE)
    found, missing = ([name for name in of_gate if (name in parts) == has] for has in (True, False))
    if found and missing:
        raise TypeError(f"{where} has {', '.join(found)}, but lacks {', '.join(missing)}; expected all or none")
    needed = [option for part, options in _TRAINING_OF.items() if part in parts for option in options]
    given = [*parts.get("TRAINING", {})]
    if {*given} != {*needed}:
        raise TypeError(f"{where}: TRAINING must have {', '.join(needed) or 'no options'}, "
                        f"according to its GATE and penalty, got {', '.join(given) or 'none'}")  # fmt: skip
