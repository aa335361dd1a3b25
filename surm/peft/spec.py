"""What to train: a `PeftSpec` names the method, the family and the places."""

import ast
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flax.core import FrozenDict

from surm import matrices
from surm.activations import BRANCH_ACTIVATIONS
from surm.errors import InputError, nearest
from surm.peft.paths import FUSED, available

_LINEAR_IN_ATTENTION = r"(.*\.)?(query|key|value)"
_END_OF_HALF_BLOCK = r"(.*\.)?(attention\.output|mlp\.down)"

METHODS: dict[str, tuple[str, ...]] = {
    "update": (_LINEAR_IN_ATTENTION,),
    "adapter": (_END_OF_HALF_BLOCK,),
    "bottleneck": (_END_OF_HALF_BLOCK,),
    "full": (".*",),
    "bitfit": (r".*\.bias",),
    "head": (),
}
"""Every method with the paths that it targets where a spec names none."""

BOTTLENECK: dict[str, Any] = {"size": 64}
"""The options of the method `bottleneck`, with their defaults."""


@dataclasses.dataclass(frozen=True)
class PeftSpec:
    """What is trained in a model, and how it enters.

    Methods:
      update: y = base(x) + scale·ΔW·dropout(x) at every target, a linear layer; merges into its kernel.
      adapter: h = base(x), y = h + act(S·dropout(h)) + bias at every target, with S square and structured.
      bottleneck: h = base(x), y = h + up(act(down(dropout(h)))), maps with a bias to `size` (an option) and back; the
        ordinary adapter, a baseline.
      full: the targets themselves, which are variables, train.
      bitfit: likewise; the targets are the biases unless others are named.
      head: nothing but what `train` names (a linear probe).

    Attributes:
      method: a key of `METHODS`.
      family: a key of `surm.matrices.FAMILIES`; read by `update` and `adapter`.
      options: of the family (of `bottleneck`: its own), as a mapping or as a string such as `"rank=8"` or
        `"factors=1,symmetric=False"`.
      targets: regular expressions; a path such as `blocks.0.attention.query` is a target if one of them matches it
        whole. Empty for the method's own.
      scale: multiplies ΔW; read by `update`. (For the authors' α/r convention, give α/r.)
      dropout: rate at which entries of the update's (or adapter's) input are dropped in training.
      activation: of `adapter` and `bottleneck`: gelu, relu, tanh or identity.
      train: regular expressions of what trains besides: every variable whose path, or a leading part of it, one of
        them matches whole. `("head",)` trains the head.
      path: how an `update` or `adapter` multiplies, one of those in `surm.peft.paths`, or `auto`, the quickest by what
        was measured on such a platform (experiments/paths). The same up to rounding, so no part of a saved adapter.

    Raises:
      InputError: if a name is unknown (the nearest are named), or a value of the wrong type or out of range.

    Examples:
      >>> PeftSpec(family="low_rank", options="rank=8").options["rank"]
      8

    Source: arXiv 2406.17740, section 4 (update and adapter); bottleneck: Houlsby et al., arXiv 1902.00751, figure 2;
    BitFit: arXiv 2106.10199.
    """

    method: str = "update"
    family: str = "circulant"
    options: Mapping[str, Any] | str = FrozenDict()
    targets: Sequence[str] | str = ()
    scale: float = 1.0
    dropout: float = 0.0
    activation: str = "gelu"
    train: Sequence[str] | str = ()
    path: str = dataclasses.field(default="auto", compare=False)  # not a part of what is trained

    def __post_init__(self):
        for field, kinds in _FIELD_TYPES.items():
            value = getattr(self, field)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise InputError(f"{field}={value!r}, expected {_FIELD_TYPES_IN_WORDS[kinds]}")
        if not math.isfinite(self.scale):
            raise InputError(f"scale={self.scale}, expected a finite number")
        if self.method not in METHODS:
            raise InputError(f"no method is called {self.method!r}; {nearest(self.method, METHODS)}")
        if self.family not in matrices.FAMILIES:
            raise InputError(f"no family is called {self.family!r}; {nearest(self.family, matrices.FAMILIES)}")
        if self.activation not in BRANCH_ACTIVATIONS:
            raise InputError(
                f"no activation is called {self.activation!r}; {nearest(self.activation, BRANCH_ACTIVATIONS)}"
            )
        there_are = available(self.method, self.family)
        if self.path not in ("auto", *there_are):
            has = f"{self.family} has {', '.join(there_are)} and auto" if there_are else "has none but auto"
            raise InputError(f"path={self.path!r}; {self.method} {has}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout}, expected 0 <= dropout < 1")
        if self.path in FUSED and self.dropout:
            beside = [path for path in there_are if path not in FUSED]
            raise InputError(
                f"path={self.path!r} with dropout={self.dropout}; expected {', '.join(beside)} or auto, or dropout=0"
            )
        options = parse_options(self.options) if isinstance(self.options, str) else dict(self.options)
        whose = "bottleneck" if self.method == "bottleneck" else self.family
        known = BOTTLENECK if self.method == "bottleneck" else matrices.options(self.family)
        for name in options:
            if name not in known:
                raise InputError(f"{whose} has no option {name!r}; it has {', '.join(known) or 'none'}")
            _check_type(whose, name, options[name], known[name])
        if self.scale != 1 and self.method != "update":
            raise InputError(f"scale={self.scale}, but only the method 'update' has a scale, {self.method!r} has none")
        if self.targets and self.method == "head":
            raise InputError(f"targets={self.targets!r}, but the method 'head' trains what `train` names alone")
        object.__setattr__(self, "options", FrozenDict(options))
        object.__setattr__(self, "targets", _patterns("targets", self.targets) or METHODS[self.method])
        object.__setattr__(self, "train", _patterns("train", self.train))

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values; `PeftSpec(**spec.to_json())` is the spec again."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.compare}
        return fields | {
            "options": dict(self.options), "targets": list(self.targets), "train": list(self.train)
        }  # fmt: skip


def parse_options(text: str) -> dict[str, Any]:
    """Parses `"rank=8"` or `"terms=2,hadamard=False"`; values are Python literals.

    Args:
      text: name=value pairs separated by commas; may be empty.

    Returns:
      The options by name.

    Raises:
      InputError: if a part is not of the form name=value with a literal value, or a name comes twice.

    Examples:
      >>> parse_options("terms=2,hadamard=False")
      {'terms': 2, 'hadamard': False}
    """
    options = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name in options:
            raise InputError(f"peft.options={text!r} gives {name!r} twice")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise InputError(
                f"peft.options={text!r}: {part!r} is not NAME=VALUE with a number, True or False, as in rank=8"
            ) from error
    return options


_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    "method": str, "family": str, "activation": str, "path": str, "options": (str, Mapping), "targets": (str, Sequence),
    "train": (str, Sequence), "scale": (int, float), "dropout": (int, float),
}  # fmt: skip
_FIELD_TYPES_IN_WORDS = {
    str: "a name", (str, Mapping): "a mapping or a string such as 'rank=8'",
    (str, Sequence): "a pattern or a sequence of patterns", (int, float): "a number",
}  # fmt: skip
_KINDS = {bool: "True or False", int: "an integer"}


def _check_type(family: str, name: str, value: Any, default: Any) -> None:
    expected = bool if isinstance(default, bool) else int
    if type(value) is not expected and not (value is None and default is None):
        raise InputError(f"{family}: {name}={value!r}, expected {_KINDS[expected]}")


def _patterns(field: str, given: Sequence | str) -> tuple[str, ...]:
    patterns = (given,) * bool(given) if isinstance(given, str) else tuple(given)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(f"{field}={given!r}, expected a pattern or a sequence of patterns")
    return patterns
