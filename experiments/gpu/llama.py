"""A training step of a decoder with one billion parameters, on random weights that are made on the device."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.decoder_speed import ours as smollm2
from experiments.shared import steps
from experiments.speed.ours import Step
from surm.machine import mesh as meshes
from surm.models import decoder_files
from surm.models.convert import outline
from surm.models.decoder import Decoder, preset
from surm.models.decoder_shape import DecoderConfig
from surm.training import estimate, optim, placing, program
from surm.training.prepared import Run

NAME = "llama3_2_1b"
DTYPE = "bfloat16"
_SMALL = {"vocabulary": 256, "width": 64, "depth": 4, "heads": 4, "key_value_heads": 2, "head_size": 16}
_FOR_FOUR_ROWS = 60e9
"""The bytes from which a device holds the activations of four rows; with less there is one."""


def shape(small: bool) -> DecoderConfig:
    """That of Llama 3.2 1B; or a small one of the same kind, to try the script."""
    return preset(NAME, **_SMALL, mlp_width=128) if small else preset(NAME)


def size(small: bool) -> tuple[int, int]:
    """The rows of a batch and the tokens of a row; on a device with little memory there is one row."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    return (2, 16) if small else (4 if limit > _FOR_FOUR_ROWS else 1, 1024)


def random(config: DecoderConfig) -> Decoder:
    """A decoder of normal numbers in bfloat16, whose norms are ones in float32; no other array is ever made."""
    dtype = jnp.dtype(DTYPE)
    model = outline(lambda: Decoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
    for number, (_, variable) in enumerate(nnx.to_flat_state(nnx.state(model, nnx.Param))):
        drawn = len(variable.shape) > 1
        key = jax.random.key(number)
        variable.set_value(0.02 * jax.random.normal(key, variable.shape, dtype) if drawn else jnp.ones(variable.shape))
    return model


def builder(small: bool) -> Callable[[str, str], Step]:
    """The function from a method, or the floor, and a path to its step; all share the frozen matrices."""
    base, rows_and_length, shared = random(shape(small)), size(small), {}

    def build(method: str, path: str) -> Step:
        given = smollm2.changes(method, DTYPE) | {"peft.path": path, "optim.batch_size": rows_and_length[0]}
        changes = {key: value for key, value in given.items() if not key.startswith("data.")}
        tokens = jax.random.randint(jax.random.key(0), rows_and_length, 0, base.config.vocabulary)
        run = steps.run_of(base, changes, {"tokens": tokens, "targets": tokens})
        return compiled(run, shared)

    return build


def compiled(run: Run, shared: dict[str, jax.Array]) -> Step:
    """The step of a run; frozen matrices that another step has put on the device, too, are taken from `shared`."""
    mesh = meshes.mesh_of(run.config)
    with jax.set_mesh(mesh):
        whole = program.of_run(run, mesh)
        frozen, held = _taken(placing.placed(run, mesh), shared), [whole.initial()]
        numbers = optim.hyperparameters(run.config.optim, run.plan.spec, run.total_steps)
        rest = meshes.put_batch(mesh, run.training), meshes.put_everywhere(mesh, numbers)
        executable = whole.trace(held[0], frozen, run.training).lower().compile()
    known = {
        "trained_parameters": sum(array.size for array in held[0]["trainable"].values()),
        "temporary_bytes": executable.memory_analysis().temp_size_in_bytes,
        "program_bytes": estimate.in_all(executable.memory_analysis()),
    }

    def again() -> None:
        held[0], values = executable(held[0], frozen, *rest)
        jax.block_until_ready((held[0], values))

    return Step(again, known)


def _taken(frozen: nnx.State, shared: dict[str, jax.Array]) -> nnx.State:
    """The same arrays, but matrices at a path that is known, of the same shape, are the known ones."""

    def one(path: tuple, leaf: jax.Array) -> jax.Array:
        known = shared.setdefault(jax.tree_util.keystr(path), leaf) if leaf.ndim > 1 else leaf
        return known if (known.shape, known.dtype) == (leaf.shape, leaf.dtype) else leaf

    return jax.tree_util.tree_map_with_path(one, frozen)


def peer_builder(small: bool) -> Callable[[str], Step]:
    """The function from a method of HF PEFT, or its floor, to the same step with PyTorch (eager)."""
    import torch
    import transformers

    from experiments.decoder_speed import peers

    config = shape(small)
    fields = decoder_files.ARCHITECTURE.to_hf(config)
    block = math.gcd(config.width, config.key_value_heads * config.head_size, config.mlp_width)

    def build(method: str) -> Step:
        torch.manual_seed(0)
        with torch.device(peers.DEVICE):
            own = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.for_model(config.kind, **fields),
                dtype=getattr(torch, DTYPE),
            )
        run, trained = peers.stepped(own.requires_grad_(False), method, block, size(small))
        return Step(run, {"trained_parameters": trained})

    return build
