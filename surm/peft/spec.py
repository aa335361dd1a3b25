"""`PeftSpec` specifies what to train: the method, the matrix family and the targeted layers."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flax.core import FrozenDict, unfreeze

from surm import matrices
from surm.errors import InputError, nearest, pasted, quoted
from surm.ops.activations import BRANCH_ACTIVATIONS
from surm.peft import other_names, spec_fields
from surm.peft import rules as ruling
from surm.peft.multiply.paths import FUSED, available
from surm.peft.options import check_schedule, check_type, parse_options

_LINEAR_IN_ATTENTION = r"(.*\.)?(query|key|value)"
_END_OF_HALF_BLOCK = r"(.*\.)?(attention\.output|mlp\.down)"


class Method(NamedTuple):
    """The properties of a method.

    Attributes:
      targets: the default targets, for a spec that names none.
      position: how the method enters the model: `update`, `adapter`, `bottleneck` or `hadamard` of linear layers,
        `variables` themselves, or `nothing`.
      options: the method's own options, with their defaults; an update or adapter takes those of its family.
      optimizer: the optimiser that the method requires; empty if the config decides.
      head_first_fraction: the fraction of a run's steps in which the head trains alone; afterwards it is frozen.
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
        (r"(.*\.)?attention\.output",), "hadamard", FrozenDict(norm=""), head_first_fraction=0.5
    ),
    "loko": Method((_LINEAR_IN_ATTENTION,), "update", optimizer="loko"),
    "full": Method((".*",), "variables"),
    "bitfit": Method((r".*\.bias",), "variables"),
    "head": Method((), "nothing"),
}
"""Every method by its name."""


@dataclasses.dataclass(frozen=True)
class PeftSpec:
    """Specifies the trained part of a model and how it enters the model.

    Methods:
      update: y = base(x) + scale·ΔW·dropout(x) at every target, a layer that is a linear map (`surm.peft.linear_maps`);
        merges into its kernel.
      adapter: h = base(x), y = h + act(S·dropout(h)) + bias at every target, with S square and structured.
      bottleneck: h = base(x), y = h + up(act(down(dropout(h)))), maps with a bias to `size` (an option) and back; the
        ordinary adapter, a baseline.
      hadamard_adapter: h = base(x), y = scale ⊙ h + shift at every target, the output layers of attention. The norms
        that the option `norm` matches train too (`''` for none; by default the model's attribute
        `norm_behind_attention`). It merges into layers that have a bias, and has no dropout. First only the head
        trains, then it is frozen.
      loko: an update, trained by a Kalman filter (`surm.training.loko`).
      full: the targets are variables, which train themselves.
      bitfit: the same, with the biases as default targets.
      head: only the variables that `train` names train (a linear probe).

    Attributes:
      method: a key of `METHODS`.
      family: a key of `surm.matrices.FAMILIES`; read by updates and `adapter`.
      options: options of the family and of its training (`bottleneck` and `hadamard_adapter` have their own), as a
        mapping or a string such as `"rank=8"` or `"factors=1,symmetric=False"`.
      targets: regular expressions; a path such as `blocks.0.attention.query` is a target if one of them matches it
        whole. If empty, the rules' patterns are the targets, or else the method's own: for updates those of the model
        that they are attached to, if it names some (`default_targets`), else query, key and value. A pattern leaves
        out layers that `train` trains as a whole, as long as it matches other layers too.
      scale: multiplies ΔW; read by updates. (For the authors' α/r convention, give α/r.)
      dropout: rate at which entries of the update's (or adapter's) input are dropped in training.
      activation: the activation of `adapter` and `bottleneck`: gelu, relu, tanh or identity.
      train: regular expressions for additional variables to train: every variable whose path, or a leading part of
        it, one of them matches whole. `("head",)` trains the head.
      path: how an `update` or `adapter` multiplies: one of the ways in `surm.peft.multiply.paths`, or `auto`, the
        fastest by measurements on that platform (experiments/paths). The result is the same up to rounding, so the
        path is not saved with an adapter.
      rules: other families, options, scales, dropouts or magnitudes for the layers that a pattern matches, which
        become targets: a mapping from patterns to mappings of those fields, or a string such as
        `".*value => family=low_rank, rank=2; .*up => scale=0.5; blocks\\.0\\..* => off"`, where a name that is not a
        field is an option. A layer with `off` (None in a mapping) is not a target. Two rules for a layer are an error.
      exclude: regular expressions for layers that are not targets, even if targets or rules match them.
      magnitude: whether the norms of an updated weight's rows train separately from their directions, with n_out more
        parameters (DoRA); for updates of any family.

    Raises:
      InputError: if a name is unknown (the message names the nearest), or a value has the wrong type or is out of
        range.

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
    path: str = dataclasses.field(default="auto", compare=False)  # it does not change the trained arrays
    rules: Mapping[str, Mapping[str, Any] | None] | str = FrozenDict()
    exclude: Sequence[str] | str = ()
    magnitude: bool = False

    def __post_init__(self):
        self._check_types()
        self._check_names()
        self._check_position()
        for name in ("targets", "exclude", "train"):
            object.__setattr__(self, name, spec_fields.patterns(name, getattr(self, name)))
        options = parse_options(self.options) if isinstance(self.options, str) else dict(self.options)
        object.__setattr__(self, "options", FrozenDict(self._checked_options(options)))
        object.__setattr__(self, "rules", self._checked_rules())
        by_default = not self.targets and all(change is None for change in self.rules.values())
        object.__setattr__(self, "_by_default", by_default)  # no field, because it does not change the trained arrays
        if by_default:
            object.__setattr__(self, "targets", METHODS[self.method].targets)

    def on(self, model: object) -> "PeftSpec":
        """The spec for a model: with the model's `default_targets` if this is an update without targets of its own."""
        own = getattr(model, "default_targets", None)
        return (
            dataclasses.replace(self, targets=own) if own and self._by_default and self.position == "update" else self
        )

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
        """All options of the family's training."""
        defaults = matrices.training_options(self.family)
        return FrozenDict({name: self.options.get(name, default) for name, default in defaults.items()})

    def at(self, *names: str) -> "PeftSpec | None":
        """The spec that applies to one layer.

        Args:
          *names: the layer's dotted paths; there are several if it is used in several places. A pattern may match any.

        Returns:
          The spec with the layer's rule applied, and without rules; None if the layer is not a target.

        Raises:
          InputError: if two rules match the layer.
        """
        claiming, off = ruling.claiming(self.rules, *names)
        excluded, targeted = (
            any(re.fullmatch(pattern, name) for pattern in patterns for name in names)
            for patterns in (self.exclude, self.targets)
        )
        if off or excluded or not (claiming or targeted):
            return None
        return self._changed(self.rules[claiming[0]] if claiming else {})

    def ruled(self) -> "list[PeftSpec]":
        """The specs that result from the rules, except from `off`."""
        return [self._changed(change) for change in self.rules.values() if change is not None]

    def _changed(self, change: Mapping[str, Any]) -> "PeftSpec":
        """The spec with the fields of a rule; if the family changes, the spec's own options are dropped."""
        if unknown := [name for name in change if name not in ruling.FIELDS]:
            raise InputError(f"a rule cannot change {unknown[0]!r}; it can {', '.join(ruling.FIELDS)}")
        family, own = change.get("family", self.family), change.get("options", {})
        own = parse_options(own) if isinstance(own, str) else own
        new = {**change, "options": {**(self.options if family == self.family else {}), **own}}
        new |= {name: float(new[name]) for name in ("scale", "dropout") if type(new.get(name)) is int}
        known = family in [*matrices.FAMILIES]  # an unknown family is refused when the fields are checked
        path = self.path if known and self.path in available(self.position, family) else "auto"
        return dataclasses.replace(self, **new, path=path, rules={}, exclude=())

    def _check_types(self) -> None:
        for field, kinds in spec_fields.TYPES.items():
            value = getattr(self, field)
            if not isinstance(value, kinds) or isinstance(value, bool) != (kinds is bool):
                raise InputError(f"{field}={value!r}, expected {spec_fields.IN_WORDS[kinds]}")
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
        """A hint at the field to which a misplaced name belongs; empty if there is none."""
        other, names = {"method": ("family", matrices.FAMILIES), "family": ("method", METHODS)}.get(field, ("", ()))
        if given in names:
            return f" ({given} is a {other}: {other}={given!r})"
        return f" ({other_names.NAMES[given.lower()]})" if given.lower() in other_names.NAMES else ""

    def _check_position(self) -> None:
        updates = [name for name, method in METHODS.items() if method.position == "update"]
        for field in ("scale", "magnitude", "rules"):
            given, default = getattr(self, field), type(self).__dataclass_fields__[field].default
            if given not in (default, "") and self.position != "update":
                raise InputError(
                    f"{field}={given!r}, but only {' and '.join(map(repr, updates))} have it; "
                    f"the method {self.method!r} does not"
                )
        if self.targets and self.method == "head":
            raise InputError(f"targets={quoted(self.targets)}, but the method 'head' trains only what `train` names")
        if self.position == "adapter" and matrices.FAMILIES[self.family].fixed:
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
                has = f"it has {', '.join(known) or 'none'}"
                meant = other_names.OPTIONS.get(name, "") or other_names.field_meant(name, ruling.FIELDS)
                raise InputError(f"{whose} has no option {name!r}; {has}{meant}")
            check_type(whose, name, options[name], known[name])
        check_schedule(whose, {**known, **options})
        return options

    def _checked_rules(self) -> FrozenDict:
        given = ruling.parse_rules(self.rules) if isinstance(self.rules, str) else self.rules
        checked: dict[str, FrozenDict | None] = {}
        for pattern, change in given.items():
            if not isinstance(pattern, str) or not isinstance(change, Mapping | None):
                given = f"{quoted(pattern)}: {change!r}"
                raise InputError(f"rules: {given}, expected a pattern and a mapping of fields, or None")
            checked[pattern] = change if change is None else FrozenDict(change)
            if change is not None:
                try:
                    re.compile(pattern)
                    self._changed(change)
                except re.error as error:
                    raise InputError(f"pattern {pasted(pattern)} is not a regular expression: {error}") from error
                except InputError as error:
                    raise InputError(f"rules: {pasted(pattern)}: {error}") from error
        return FrozenDict(checked)

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values; `PeftSpec(**spec.to_json())` is the spec again."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.compare}
        lists = {name: list(fields[name]) for name in ("targets", "exclude", "train")}
        rules = {pattern: change if change is None else unfreeze(change) for pattern, change in self.rules.items()}
        return fields | lists | {"options": dict(self.options), "rules": rules}
