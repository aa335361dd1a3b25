"""How many parameters a model has and trains: in numbers, and layer by layer in a table."""

import dataclasses

from flax import nnx

from surm.peft import select, surgery
from surm.peft.layers import WrappedLinear
from surm.peft.variables import AdapterParam, Trainable


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters.

    Attributes:
      adapter: trained by the method itself.
      trainable: all that trains, the head included.
      total: all parameters of the model, frozen and trained.
    """

    adapter: int
    trainable: int
    total: int


def count_parameters(model: nnx.Module) -> ParameterCount:
    """Counts a model's parameters; of a model without an adapter, none trains.

    Args:
      model: any NNX module.

    Returns:
      The counts, as stored.
    """
    sizes = [(type(variable), variable[...].size) for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    return ParameterCount(
        adapter=sum(size for kind, size in sizes if issubclass(kind, AdapterParam)),
        trainable=sum(size for kind, size in sizes if issubclass(kind, Trainable)),
        total=sum(size for _, size in sizes),
    )


def table(model: nnx.Module) -> str:
    """The adapted places of a model, one a line: path, shape, family, parameters; the counts at the end."""
    seen: set[int] = set()  # what several places share counts where it comes first
    rows = [(path, _shape(layer), layer.delta.family, _own(layer, seen))
            for path, layer in surgery.layers_by_path(model).items()]  # fmt: skip
    width = max((len(row[0]) for row in rows), default=0)
    lines = [f"{path:<{width}}  {shape:>11}  {family:<22}{size:>8,}" for path, shape, family, size in rows]
    count = count_parameters(model)
    share = 100 * count.adapter / max(count.total, 1)
    lines.append(f"adapter {count.adapter:,} parameters ({share:.2f} % of all), "
                 f"trainable {count.trainable:,}, total {count.total:,}")  # fmt: skip
    return "\n".join(lines)


def _shape(layer: WrappedLinear) -> str:
    """n_out×n_in of a layer; `12 of 768×768` of a stack."""
    layout, shape = layer.map.layout, layer.kernel.shape
    stack = "×".join(map(str, layout.stack(shape)))
    return (f"{stack} of " if stack else "") + "{}×{}".format(*layout.sizes(shape))


def _own(layer: WrappedLinear, seen: set[int]) -> int:
    """Trained numbers of a layer that were not seen before."""
    trained = [node for _, node in select.walk(layer) if isinstance(node, AdapterParam) and id(node) not in seen]
    seen.update(map(id, trained))
    return sum(variable[...].size for variable in trained)
