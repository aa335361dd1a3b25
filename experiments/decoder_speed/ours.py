"""A training step of a run on SmolLM2, and a text that SmolLM2 writes, both as a user's run has them."""

import pathlib
import tempfile
from collections.abc import Callable

import jax

from experiments.shared import decoders, methods, recipes
from surm.machine import mesh as meshes
from surm.models.generation import generate
from surm.models.weights import open_weights
from surm.training import placing, program

BATCH, LENGTH = 4, 128
METHODS = ("low_rank r=8", "low_rank r=1", "circulant", "kronecker", "toeplitz", "low_displacement_rank r=1")
FLOOR = "floor"
_FLOOR = {"peft.method": "full", "peft.targets": r"blocks\.0\.norm1\.scale"}  # all activations have a gradient


def changes(method: str, dtype: str) -> dict[str, object]:
    """The keys of configs/lm_text.py that a method sets, all seven maps of every block adapted, or those of the floor.

    The floor trains one vector of the first block, so that the gradient of every activation is taken.
    """
    of_method = _FLOOR if method == FLOOR else methods.keys_of(method) | {"peft.targets": decoders.MAPS}
    batches = {"model.dtype": dtype, "data.packing": True, "data.lengths": LENGTH, "optim.batch_size": BATCH}
    return {"peft.train": "", "optim.epochs": 0, "optim.steps": 1000, "mesh.data": 1} | batches | of_method


def step(method: str, dtype: str) -> tuple[Callable[[], None], int]:
    """A step that goes on from where it came to, always with the same batch; and how many numbers it trains."""
    with tempfile.TemporaryDirectory() as scratch:
        data = decoders.texts(pathlib.Path(scratch))
        run = recipes.prepared(recipes.config(decoders.flags(data, changes(method, dtype))))
    mesh = meshes.mesh_of(run.config)
    with jax.set_mesh(mesh):
        compiled, frozen = program.of_run(run, mesh), placing.placed(run, mesh)
        state, batch = compiled.initial(), next(compiled.batches)

    def again() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            state, values = compiled.step(state, frozen, batch)
        jax.block_until_ready((state, values))

    return again, sum(array.size for array in state["trainable"].values())


def writing(prompt: list[int], new: int) -> Callable[[], int]:
    """A call that continues one prompt greedily by `new` tokens in float32, and returns how many were written."""
    model = decoders.restored(open_weights(decoders.NAME))
    return lambda: len(generate(model, [prompt], max_new_tokens=new)[0])
