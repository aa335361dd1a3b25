"""Compiles products of layers for hardware that is not there, in this process; `run.py` starts it.

    python experiments/compiled/product.py '[{"hardware": "h200", "family": "circulant", ...}]'

It imports nothing of the other experiments: the surm that it compiles may be another version than theirs.
"""

import dataclasses
import json
import pathlib
import re
import resource
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import surm
from surm.ops.matmul import dot_general
from surm.peft import surgery

CARD = pathlib.Path(__file__).parents[2] / "surm" / "machine" / "cards" / "h200.textproto"
COUNTED = ("fft", "gather", "scatter", "while")


@dataclasses.dataclass(frozen=True)
class Product:
    """What is compiled: a family's product by a path, and its size."""

    hardware: str
    family: str
    path: str
    n_out: int
    n_in: int
    rows: int


def devices_of(hardware: str) -> Sequence[Any]:
    """The devices of the described hardware."""
    if hardware == "v5e":
        return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    return topologies.get_topology_desc(platform="cuda", target_config=CARD.read_text(), topology="1x1x1").devices


def lowered(product: Product) -> Any:
    """The program: forward, and backward to x and to the update's parameters."""
    half = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    base = nnx.Linear(product.n_in, product.n_out, dot_general=dot_general, rngs=nnx.Rngs(0), **half)
    spec = surm.PeftSpec(family=product.family, targets="query", train="", path=product.path)
    adapted = surm.attach(nnx.Dict(query=base), spec, nnx.Rngs(1))
    graphdef, trainable, frozen = surgery.split(adapted)

    def gradients(trainable: Any, frozen: Any, x: jax.Array, dy: jax.Array) -> Any:
        y, pull = jax.vjp(lambda trainable, x: surgery.join(graphdef, trainable, frozen).query(x), trainable, x)
        return y, pull(dy)

    everywhere = NamedSharding(Mesh(np.array(devices_of(product.hardware)[:1]), ("data",)), PartitionSpec())
    described = lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=everywhere)  # noqa: E731
    vectors = [jax.ShapeDtypeStruct((product.rows, n), jnp.bfloat16) for n in (product.n_in, product.n_out)]
    return jax.jit(gradients).lower(*jax.tree.map(described, (trainable, frozen, *vectors)))


def busy_seconds() -> float:
    """Seconds that processors were at work for this process and its children."""
    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def compiled(product: Product) -> tuple[float, Any]:
    """How long compiling took, and what came of it."""
    program = lowered(product)
    began = busy_seconds()
    executable = program.compile()
    return busy_seconds() - began, executable


def said_of(executable: Any) -> dict[str, Any]:
    """What the compiler says of a program."""
    text, estimate = executable.as_text(), executable.cost_analysis() or {}
    seconds = estimate.get("optimal_seconds")
    return {
        "operations": {name: len(re.findall(rf"[\s)]{name}\(", text)) for name in COUNTED},
        "bytes": estimate.get("bytes accessed"),
        "flops": estimate.get("flops"),
        "optimal_seconds": None if seconds is None else seconds % 1,
        "temporary_bytes": executable.memory_analysis().temp_size_in_bytes,
    }


def main(products: Sequence[Product]) -> None:
    """Prints a line for each product: the seconds that it took to compile, and what is said of it."""
    sharding = jax.sharding.SingleDeviceSharding(devices_of(products[0].hardware)[0])
    jax.jit(jnp.sin).lower(jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)).compile()  # what is done once
    for product in products:
        taken, executable = compiled(product)
        print(json.dumps([dataclasses.asdict(product), taken, said_of(executable)]), flush=True)


if __name__ == "__main__":
    main([Product(**product) for product in json.loads(sys.argv[1])])
