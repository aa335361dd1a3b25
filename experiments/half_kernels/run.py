"""What is lost if an update is added to a kernel in bfloat16, with a dither, with plain rounding, and not at all?

    python experiments/half_kernels/run.py

Two parts. `share` multiplies 512 random vectors by a kernel of 768×768 in bfloat16 with an update whose entries are, in
the median, some fraction of the unit in the last place of the kernel's. It compares the change of the answer with that
of exact arithmetic: their scalar product over that of the exact change with itself (1 is right, 0 means that nothing
of the update acts), and the norm of the answer's whole error over the norm of the answer. The update acts beside the
layer (`branch`), or is added to the kernel (`fused_dense`), which rounds with a dither or, for comparison, to the
nearest number.
`loss` trains the demo in bfloat16 without dropout, 300 steps, in each of the three ways. Two CPU cores: six minutes.
"""

import functools
import itertools
import statistics
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import surm
from experiments.shared import command, recipes, results, tables
from surm.peft.multiply import fused

RESULTS = results.of(__file__)
WAYS = {"beside the layer": "branch", "added with a dither": "fused_dense", "added, rounded to nearest": "fused_dense"}
NEAREST = [*WAYS][2]
FRACTIONS = (1 / 64, 1 / 16, 1 / 4, 1, 4)
FAMILIES = ("circulant", "kronecker")
N, ROWS, STEPS = 768, 512, 300


def rounding(way: str) -> Any:
    """A context in which kernels are rounded as a way says."""
    nearest = functools.partial(jax.lax.convert_element_type, new_dtype=jnp.bfloat16)
    return mock.patch.object(fused, "dithered", nearest if way == NEAREST else fused.dithered)


def share(way: str, fraction: float) -> dict[str, float]:
    """How much of an update acts, and the error of the answer."""
    base = nnx.Linear(N, N, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    spec = surm.PeftSpec(family="circulant", options="hadamard=False", targets="query", train="", path=WAYS[way])
    layer = surm.attach(nnx.Dict(query=base), spec, nnx.Rngs(1)).query
    kernel = np.asarray(base.kernel[...], np.float64)
    unit = 2.0 ** (np.floor(np.log2(np.abs(kernel) + 1e-12)) - 7)
    drawn = np.random.default_rng(0).standard_normal((ROWS + 1, N))
    x = np.asarray(jnp.asarray(drawn[1:], jnp.bfloat16), np.float64)
    layer.delta.parameters["c"][...] = jnp.asarray(drawn[0] * fraction * np.median(unit) / 0.6745, jnp.float32)
    dense = np.asarray(layer.delta.to_dense(), np.float64).T
    with rounding(way):
        found = np.asarray(jax.jit(layer)(jnp.asarray(x, jnp.bfloat16)), np.float64)
    exact, change = x @ (kernel + dense), x @ dense
    acts = np.sum(change * (found - x @ kernel)) / np.sum(change**2)
    return {"acts": float(acts), "error": float(np.linalg.norm(found - exact) / np.linalg.norm(exact))}


def losses(way: str, family: str, seeds: int) -> list[float]:
    """The held-out losses of the demo."""
    given = {
        "peft.family": family, "peft.path": WAYS[way], "peft.dropout": 0.0, "model.dtype": "bfloat16",
        "optim.steps": STEPS, "optim.learning_rate": None,
    }  # fmt: skip
    found = []
    for seed in range(seeds):
        with rounding(way):
            found.append(recipes.trained(recipes.flags("digits", {**given, "seed": seed}))["eval"]["loss"])
    return found


def table() -> str:
    """The committed result as Markdown."""
    found = results.read(RESULTS / "bfloat16.json")
    heads = ["", *(f"{fraction:g} units" for fraction in FRACTIONS), *(f"loss, {family}" for family in FAMILIES)]
    rows = [
        (
            way,
            *(f"{one['acts']:.2f} ({100 * one['error']:.2f} %)" for one in found["share"][way].values()),
            *(f"{statistics.mean(values):.3f}" for values in found["loss"][way].values()),
        )
        for way in WAYS
    ]
    return tables.markdown(heads, rows)


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--seeds", type=command.count, default=3)
    given = parser.parse_args()
    shares = {way: {f"{fraction:g}": share(way, fraction) for fraction in FRACTIONS} for way in WAYS}
    loss: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
    for way, family in itertools.product(WAYS, FAMILIES):
        loss[way][family] = losses(way, family, given.seeds)
        print(way, family, statistics.mean(loss[way][family]), flush=True)
    results.write(RESULTS / "bfloat16.json", {"share": shares, "loss": loss})
    print(table())


if __name__ == "__main__":
    command.run(main)
