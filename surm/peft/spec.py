"""What to train: a `PeftSpec` names the method, the family and the places."""

import ast
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flax.core import FrozenDict, unfreeze

from surm import matrices
from surm.activations import BRANCH_ACTIVATIONS
from surm.errors import InputError, nearest
from surm.peft.paths import FUSED, available

_LINEAR_IN_ATTENTION = r"(.*\.)?(query|key|value)"
_END_OF_HALF_BLOCK = r"(.*\.)?(attention\.output|mlp\.down)"

_NORM_AFTER_ATTENTION = r"(.*\.)?norm1"


class Method(NamedTuple):
    """What a method is, beside its formula.

    Attributes:
      targets: what it adapts where a spec names no targets.
      position: how: `update`, `adapter`, `bottleneck` or `hadamard` of linear layers, `variables` themselves, or
        `nothing`.
      options: its own, with their defaults; of an update or adapter they are the family's.
      optimizer: what it trains with, whatever a config says; empty for what that says.
      head_first_fraction: the share of a run's steps in which the head trains alone, and after which it rests.
    """

    targets: tuple[str, ...]
    position: str
    options: Mapping[str, Any] = FrozenDict()
    optimizer: str = ""
    head_first_fraction: float = 0.0


METHODS: dict[str, Method] = {
    "update": Method((_LINEAR_IN_ATTENTION,), "update"),
    "adapter": Method((_END_OF_HALF_BLOCK,), "adapter"),
    "bottleneck": Method((_END_OF_HALF_BLOCK,), "bottleneck", FrozenDict(size=64)),
    "hadamard_adapter": Method(
        (r"(.*\.)?attention\.output",), "hadamard", FrozenDict(norm=_NORM_AFTER_ATTENTION), head_first_fraction=0.5
    ),
    "loko": Method((_LINEAR_IN_ATTENTION,), "update", optimizer="loko"),
    "full": Method((".*",), "variables"),
    "bitfit": Method((r".*\.bias",), "variables"),
    "head": Method((), "nothing"),
}
"""Every method by its name."""


@dataclasses.dataclass(frozen=True)
class PeftSpec:
    """What is trained in a model, and how it enters.

    Methods:
      update: y = base(x) + scale·ΔW·dropout(x) at every target, a linear layer; merges into its kernel.
      adapter: h = base(x), y = h + act(S·dropout(h)) + bias at every target, with S square and structured.
      bottleneck: h = base(x), y = h + up(act(down(dropout(h)))), maps with a bias to `size` (an option) and back; the
        ordinary adapter, a baseline.
      hadamard_adapter: h = base(x), y = weight ⊙ h + shift at every target, where attention ends, and the norms train
        that the option `norm` matches (a pattern; empty for none): of a BERT the one that follows, for a ViT say
        `norm='(.*\\.)?norm2'`. It merges. First the head trains alone, then what the method trains alone.
      loko: an update, trained by a Kalman filter (`surm.loko`).
      full: the targets themselves, which are variables, train.
      bitfit: likewise; the targets are the biases unless others are named.
      head: nothing but what `train` names (a linear probe).

    Attributes:
      method: a key of `METHODS`.
      family: a key of `surm.matrices.FAMILIES`; read by updates and `adapter`.
      options: of the family and of its training (of `bottleneck` and `hadamard_adapter`: their own), as a mapping or
        as a string such as `"rank=8"` or `"factors=1,symmetric=False"`.
      targets: regular expressions; a path such as `blocks.0.attention.query` is a target if one of them matches it
        whole. Empty for what the rules name, or else for the method's own.
      scale: multiplies ΔW; read by updates. (For the authors' α/r convention, give α/r.)
      dropout: rate at which entries of the update's (or adapter's) input are dropped in training.
      activation: of `adapter` and `bottleneck`: gelu, relu, tanh or identity.
      train: regular expressions of what trains besides: every variable whose path, or a leading part of it, one of
        them matches whole. `("head",)` trains the head.
      path: how an `update` or `adapter` multiplies, one of those in `surm.peft.paths`, or `auto`, the quickest by what
        was measured on such a platform (experiments/paths). The same up to rounding, so no part of a saved adapter.
      rules: other families, options, scales, dropouts or magnitudes for what a pattern matches, and more targets: a
        mapping from patterns to mappings of those fields, or a string such as
        `".*value => family=low_rank, rank=2; .*up => scale=0.5; blocks\\.0\\..* => off"`, where what is no field is
        an option. `off` (in a mapping None) is no target at all. What two rules claim is an error.
      exclude: regular expressions of what is no target, whatever else matches it.
      magnitude: whether the rows of an updated weight keep the direction that the update gives them, but have a norm
        that trains by itself, n_out more parameters (DoRA, the weight-decomposed one); any family; of updates.

    Raises:
      InputError: if a name is unknown (the nearest are named), or a value of the wrong type or out of range.

    Examples:
      >>> PeftSpec(family="low_rank", options="rank=8").options["rank"]
      8

    Source: arXiv 2406.17740, section 4 (update and adapter); bottleneck: Houlsby et al., arXiv 1902.00751, figure 2;
    BitFit: arXiv 2106.10199; magnitude: arXiv 2402.09353; Hadamard adapter: arXiv 2407.11033; LoKO: arXiv 2410.11551.
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
    rules: Mapping[str, Mapping[str, Any] | None] | str = FrozenDict()
    exclude: Sequence[str] | str = ()
    magnitude: bool = False

    def __post_init__(self):
        self._check_types()
        self._check_names()
        self._check_position()
        for name in ("targets", "exclude", "train"):
            object.__setattr__(self, name, _patterns(name, getattr(self, name)))
        options = parse_options(self.options) if isinstance(self.options, str) else dict(self.options)
        object.__setattr__(self, "options", FrozenDict(self._checked_options(options)))
        object.__setattr__(self, "rules", self._checked_rules())
        if not self.targets and all(change is None for change in self.rules.values()):
            object.__setattr__(self, "targets", METHODS[self.method].targets)

    @property
    def position(self) -> str:
        """How the targets are adapted; see `Method`."""
        return METHODS[self.method].position

    @property
    def structure(self) -> FrozenDict:
        """The given options that the family's functions take."""
        known = matrices.options(self.family)
        return FrozenDict({name: value for name, value in self.options.items() if name in known})

    @property
    def training(self) -> FrozenDict:
        """The options of the family's training, all of them."""
        defaults = matrices.training_options(self.family)
        return FrozenDict({name: self.options.get(name, default) for name, default in defaults.items()})

    def at(self, path: str) -> "PeftSpec | None":
        """What holds for one layer.

        Args:
          path: the layer's, dotted.

        Returns:
          The spec with the rule that claims the layer applied, and without rules; None if the layer is no target.

        Raises:
          InputError: if two rules claim the layer.
        """

        def claims(pattern: str) -> bool:
            return bool(re.fullmatch(pattern, path))

        off = [pattern for pattern, change in self.rules.items() if change is None]
        if any(map(claims, (*off, *self.exclude))):
            return None
        claiming = [pattern for pattern, change in self.rules.items() if change is not None and claims(pattern)]
        if len(claiming) > 1:
            raise InputError(
                f"{path} is claimed by two rules, {claiming[0]!r} and {claiming[1]!r}; expected one at most"
            )
        if not claiming and not any(map(claims, self.targets)):
            return None
        change = self.rules[claiming[0]] if claiming else {}
        return dataclasses.replace(self, **_changed(change, self), rules={}, exclude=())

    def _check_types(self) -> None:
        for field, kinds in _FIELD_TYPES.items():
            value = getattr(self, field)
            if not isinstance(value, kinds) or isinstance(value, bool) != (kinds is bool):
                raise InputError(f"{field}={value!r}, expected {_FIELD_TYPES_IN_WORDS[kinds]}")
        if not math.isfinite(self.scale):
            raise InputError(f"scale={self.scale}, expected a finite number")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout}, expected 0 <= dropout < 1")

    def _check_names(self) -> None:
        for field, names in (
            ("method", METHODS),
            ("family", matrices.FAMILIES),
            ("activation", BRANCH_ACTIVATIONS),
        ):
            if (given := getattr(self, field)) not in names:
                raise InputError(
                    f"no {field} is called {given!r}; {nearest(given, names)}{self._elsewhere(field, given)}"
                )
        there_are = available(self.position, self.family)
        if self.path not in ("auto", *there_are):
            has = f"{self.family} has {', '.join(there_are)} and auto" if there_are else "has none but auto"
            raise InputError(f"path={self.path!r}; {self.method} {has}")
        if self.path in FUSED and self.dropout:
            beside = [path for path in there_are if path not in FUSED]
            raise InputError(
                f"path={self.path!r} with dropout={self.dropout}; expected {', '.join(beside)} or auto, or dropout=0"
            )

    def _elsewhere(self, field: str, given: str) -> str:
        """Where a name that is wrong here belongs; empty if nowhere."""
        other, names = {"method": ("family", matrices.FAMILIES), "family": ("method", METHODS)}.get(field, ("", ()))
        return f" ({given} is a {other}: {other}={given!r})" if given in names else ""

    def _check_position(self) -> None:
        updates = [name for name, method in METHODS.items() if method.position == "update"]
        for field in ("scale", "magnitude", "rules"):
            given, default = getattr(self, field), type(self).__dataclass_fields__[field].default
            if given not in (default, "") and self.position != "update":
                raise InputError(
                    f"{field}={given!r}, but only {' and '.join(map(repr, updates))} have it, "
                    f"the method {self.method!r} has not"
                )
        if self.targets and self.method == "head":
            raise InputError(f"targets={self.targets!r}, but the method 'head' trains what `train` names alone")
        if self.position == "adapter" and hasattr(matrices.FAMILIES[self.family], "fixed"):
            raise InputError(
                f"family={self.family!r} is made from the weight that it updates; an adapter stands behind it. "
                f"Expected method={' or '.join(map(repr, updates))}"
            )

    def _checked_options(self, options: dict[str, Any]) -> dict[str, Any]:
        if self.position in ("update", "adapter"):
            whose = self.family
            known = {**matrices.options(self.family), **matrices.training_options(self.family)}
        else:
            whose, known = self.method, METHODS[self.method].options
        for name in options:
            if name not in known:
                raise InputError(f"{whose} has no option {name!r}; it has {', '.join(known) or 'none'}")
            _check_type(whose, name, options[name], known[name])
        _check_schedule(whose, {**known, **options})
        return options

    def _checked_rules(self) -> FrozenDict:
        rules = parse_rules(self.rules) if isinstance(self.rules, str) else self.rules
        checked: dict[str, FrozenDict | None] = {}
        for pattern, change in rules.items():
            if not isinstance(pattern, str) or not isinstance(change, Mapping | None):
                raise InputError(f"rules: {pattern!r}: {change!r}, expected a pattern and a mapping of fields, or None")
            checked[pattern] = change if change is None else FrozenDict(change)
            if change is not None:
                try:
                    re.compile(pattern)
                    dataclasses.replace(self, **_changed(change, self), rules={}, exclude=())
                except re.error as error:
                    raise InputError(f"pattern {pattern!r} is not a regular expression: {error}") from error
                except InputError as error:
                    raise InputError(f"rules: {pattern!r}: {error}") from error
        return FrozenDict(checked)

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values; `PeftSpec(**spec.to_json())` is the spec again."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.compare}
        lists = {name: list(fields[name]) for name in ("targets", "exclude", "train")}
        rules = {pattern: change if change is None else unfreeze(change) for pattern, change in self.rules.items()}
        return fields | lists | {"options": dict(self.options), "rules": rules}


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


def parse_rules(text: str) -> dict[str, dict[str, Any] | None]:
    """Parses `".*value => family=low_rank, rank=2; blocks\\.0\\..* => off"`.

    Args:
      text: rules `PATTERN => NAME=VALUE, ...` or `PATTERN => off`, separated by semicolons; may be empty.

    Returns:
      For every pattern the fields that differ there, those that are none in `options`; None for `off`.

    Raises:
      InputError: if a rule is not of that form, or a pattern comes twice.

    Examples:
      >>> parse_rules(".*value => family=low_rank, rank=2; .*key => off")
      {'.*value': {'family': 'low_rank', 'options': {'rank': 2}}, '.*key': None}
    """
    rules: dict[str, dict[str, Any] | None] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        pattern, arrow, change = (piece.strip() for piece in part.partition("=>"))
        if not arrow or not pattern or not change:
            raise InputError(f"peft.rules={text!r}: {part!r} is not PATTERN => NAME=VALUE, ... or PATTERN => off")
        if pattern in rules:
            raise InputError(f"peft.rules={text!r} gives {pattern!r} twice")
        rules[pattern] = None if change == "off" else _parsed_change(change)
    return rules


def _parsed_change(text: str) -> dict[str, Any]:
    named = [part.strip() for part in text.split(",")]
    families = [part.partition("=")[2].strip() for part in named if part.partition("=")[0].strip() == "family"]
    given = parse_options(",".join(part for part in named if part.partition("=")[0].strip() != "family"))
    change: dict[str, Any] = {"family": families[-1]} if families else {}
    change |= {name: value for name, value in given.items() if name in _RULED}
    options = {name: value for name, value in given.items() if name not in _RULED}
    return change | ({"options": options} if options else {})


def _changed(change: Mapping[str, Any], spec: PeftSpec) -> dict[str, Any]:
    """The fields of a rule; of another family the spec's own options do not hold."""
    if unknown := [name for name in change if name not in _RULED]:
        raise InputError(f"a rule cannot change {unknown[0]!r}; it can {', '.join(_RULED)}")
    other_family = change.get("family", spec.family) != spec.family
    numbers = {name: float(value) for name, value in change.items() if type(value) is int}
    return {**({"options": {}, "path": "auto"} if other_family else {}), **change, **numbers}


def _check_schedule(whose: str, options: Mapping[str, Any]) -> None:
    """Refuses a schedule of the number of components that does not run forward."""
    if "begin" not in options:
        return
    begin, end, every = options["begin"], options["end"], options["every_steps"]
    if not 0 <= begin < end <= 1 or every < 1:
        raise InputError(
            f"{whose}: begin={begin}, end={end}, every_steps={every}, expected shares of the training with "
            "0 <= begin < end <= 1, and at least every step"
        )


_RULED = ("family", "options", "scale", "dropout", "magnitude")
"""What may differ from layer to layer."""
_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    "method": str, "family": str, "activation": str, "path": str, "options": (str, Mapping), "targets": (str, Sequence),
    "train": (str, Sequence), "scale": (int, float), "dropout": (int, float), "rules": (str, Mapping),
    "exclude": (str, Sequence), "magnitude": bool,
}  # fmt: skip
_FIELD_TYPES_IN_WORDS = {
    str: "a name", (str, Mapping): "a mapping or a string such as 'rank=8'",
    (str, Sequence): "a pattern or a sequence of patterns", (int, float): "a number", bool: "True or False",
}  # fmt: skip
_KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "a pattern"}


def _check_type(family: str, name: str, value: Any, default: Any) -> None:
    expected = int if default is None else type(default)
    fits = type(value) in ((int, float) if expected is float else (expected,))
    if not fits and not (value is None and default is None):
        raise InputError(f"{family}: {name}={value!r}, expected {_KINDS[expected]}")
    if expected is float and not 0 <= value < math.inf:
        raise InputError(f"{family}: {name}={value}, expected at least 0")


def _patterns(field: str, given: Sequence | str) -> tuple[str, ...]:
    patterns = (given,) * bool(given) if isinstance(given, str) else tuple(given)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(f"{field}={given!r}, expected a pattern or a sequence of patterns")
    return patterns
