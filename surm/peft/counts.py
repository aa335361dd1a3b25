"""Counts the parameters that a model has and trains, in total and layer by layer."""

import dataclasses
import math
import re
from collections.abc import Sequence

from flax import nnx

from surm.peft import select, surgery
from surm.peft.layers import WrappedLinear
from surm.peft.variables import AdapterParam, Trainable

_MANY = 80  # layers; more lines than that say little
_Row = tuple[str, str, str, int]


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters.

    Attributes:
      adapter: the parameters that the method itself trains.
      trainable: all trained parameters, with the head.
      total: all parameters of the model, frozen and trained.
    """

    adapter: int
    trainable: int
    total: int


def count_parameters(model: nnx.Module) -> ParameterCount:
    """Counts a model's parameters; a model without an adapter has no trainable ones.

    Args:
      model: any NNX module.

    Returns:
      The numbers of stored values.
    """
    sizes = [
        (type(variable), math.prod(variable.shape)) for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    ]
    return ParameterCount(
        adapter=sum(size for kind, size in sizes if issubclass(kind, AdapterParam)),
        trainable=sum(size for kind, size in sizes if issubclass(kind, Trainable)),
        total=sum(size for _, size in sizes),
    )


def table(model: nnx.Module) -> str:
    """Lists the adapted layers of a model, one a line: path, shape, family, parameters. The totals follow.

    If there are many layers, those whose paths differ in a number only stand in one line.
    """
    seen: set[int] = set()  # a variable that several layers share is counted in the first of them
    rows = [(path, _shape(layer), layer.delta.family, _own(layer, seen))
            for path, layer in surgery.layers_by_path(model).items()]  # fmt: skip
    rows = _together(rows) if len(rows) > _MANY else rows
    width = max((len(row[0]) for row in rows), default=0)
    lines = [f"{path:<{width}}  {shape:>11}  {family:<22}{size:>8,}" for path, shape, family, size in rows]
    count = count_parameters(model)
    share = 100 * count.adapter / max(count.total, 1)
    lines.append(f"adapter {count.adapter:,} parameters ({share:.2f} % of all), "
                 f"trainable {count.trainable:,}, total {count.total:,}")  # fmt: skip
    return "\n".join(lines)


def _together(rows: Sequence[_Row]) -> list[_Row]:
    """One row for all rows that differ only in the first number of their path."""
    groups: dict[tuple[str, ...], list[_Row]] = {}
    for row in rows:
        groups.setdefault((re.sub(r"\d+", "*", row[0], count=1), *map(str, row[1:])), []).append(row)
    return [
        (alike[0], f"{len(group)} of {shape}", family, sum(row[3] for row in group)) if len(group) > 1 else group[0]
        for alike, group in groups.items()
        for _, shape, family, _ in group[:1]
    ]


def _shape(layer: WrappedLinear) -> str:
    """The shape of a layer as n_out×n_in, or `12 of 768×768` for a stack."""
    layout, shape = layer.map.layout, layer.kernel.shape
    stack = "×".join(map(str, layout.stack(shape)))
    return (f"{stack} of " if stack else "") + "{}×{}".format(*layout.sizes(shape))


def _own(layer: WrappedLinear, seen: set[int]) -> int:
    """The number of trained parameters of a layer that were not counted before."""
    trained = [node for _, node in select.walk(layer) if isinstance(node, AdapterParam) and id(node) not in seen]
    seen.update(map(id, trained))
    return sum(math.prod(variable.shape) for variable in trained)
