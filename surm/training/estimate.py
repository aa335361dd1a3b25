"""Estimates before a run starts: a line on its devices and sizes, and the compiler's figures for one step."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from surm.machine import mesh as meshes
from surm.peft.multiply import calibrated, paths
from surm.training import placing
from surm.training.members import Member
from surm.training.prepared import Run
from surm.training.program import Program
from surm.training.step import TrainState, initial_state

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def headline(run: Run, mesh: jax.sharding.Mesh, every: Sequence[Member] = ()) -> str:
    """One line on the devices, mesh, dtype, sizes and number of steps of a run.

    Args:
      run: the prepared run.
      mesh: from `surm.machine.mesh.mesh_of`.
      every: the members of a population; empty for a single run.

    Returns:
      The line.
    """
    config, devices = run.config, [*mesh.devices.flat]
    averaged = any(own.optim.ema_decay for own in [config, *(member.config for member in every)])
    trained, frozen = map(_size, shapes(run, averaged=averaged))
    where = "in parts" if config.mesh.shard_base else "on each"
    kind, hosts = devices[0].device_kind, meshes.hosts_of(devices)
    among = f" in {hosts} processes" if hosts > 1 else ""
    return "; ".join(
        [
            f"{mesh.size} {kind}{among} (data {mesh.shape['data']}, model {mesh.shape['model']}), {config.model.dtype}",
            *([f"{len(every)} members"] if every else []),
            f"frozen {readable(frozen)} {where}, trained with optimiser {readable(max(len(every), 1) * trained)}",
            f"{run.total_steps:,} step{'s' * (run.total_steps != 1)} of {config.optim.batch_size} {_rows(run)}",
        ]
    )


def _rows(run: Run) -> str:
    """What a batch consists of."""
    return f"rows of {run.plan.lengths[-1]} tokens" if run.config.data.packing else "examples"


def shapes(run: Run, *, averaged: bool) -> tuple[TrainState, nnx.State]:
    """The state before the first step and the frozen part of the model, as shapes; nothing is computed.

    Args:
      run: the prepared run, whose model may have shapes in place of arrays.
      averaged: whether a moving average of the trained arrays is kept.

    Returns:
      Both.
    """
    graphdef, arrays = nnx.split(run.model)

    def parts(arrays: nnx.State) -> tuple[TrainState, nnx.State]:
        model = nnx.merge(graphdef, arrays, copy=True)
        state = initial_state(run, run.config.seed, averaged=averaged, model=model)
        return state, placing.in_place(run, model)

    return jax.eval_shape(parts, arrays)


def of_step(program: Program, state: TrainState, frozen: nnx.State) -> str:
    """Compiles one step and returns the compiler's figures: memory, operations, and bytes accessed per device.

    A line on the paths by which `auto` multiplies comes first, if it has something to choose.

    The compiler counts the body of a loop only once. So the step costs more than this if parts of a batch, or members
    of a population, are computed one after another.

    Args:
      program: the run's program.
      state: the state before a step, or its shapes and placement.
      frozen: the same of the frozen part of the model.

    Returns:
      One or two lines; figures that the platform does not report are left out.
    """
    with calibrated.asked() as asked:
        traced = program.trace(state, frozen, next(program.batches))
    compiled = traced.lower().compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    found = {
        "arguments": readable(memory.argument_size_in_bytes) if memory else None,
        "temporary memory": readable(memory.temp_size_in_bytes) if memory else None,
        "in all": readable(in_all(memory)) if memory else None,
        "operations": f"{cost['flops'] / 1e9:,.1f} GFLOP" if "flops" in cost else None,
        "read and written": readable(cost["bytes accessed"]) if "bytes accessed" in cost else None,
    }
    told = [f"{name} {value}" for name, value in found.items() if value]
    said = ", ".join(told) or "this platform reports nothing"
    taken = [f"path='auto' takes {paths.told(paths.by_path(asked))}"] if asked else []
    return "\n".join([*taken, f"a step on each device takes (the body of a loop is counted once): {said}"])


def in_all(memory: Any) -> int:
    """The bytes of arguments, results that do not take the place of arguments, and temporary memory.

    Args:
      memory: from `jax.stages.Compiled.memory_analysis`.

    Returns:
      The bytes on one device.
    """
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def _size(tree: Any) -> int:
    """The size in bytes of the arrays in a tree, or of those that its shapes describe."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.ndim)


def readable(size: float) -> str:
    """A number of bytes as text, with a binary unit.

    Examples:
      >>> readable(512), readable(10_900_000)
      ('512 B', '10.4 MiB')
    """
    power = min(int(math.log(size, 1024)) if size >= 1 else 0, len(_UNITS) - 1)
    return f"{size:.0f} B" if power == 0 else f"{size / 1024**power:.1f} {_UNITS[power]}"
