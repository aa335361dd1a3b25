"""Estimates before a run starts: a line on its devices and sizes, and the compiler's figures for one step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from surm.peft import surgery
from surm.training.members import Member
from surm.training.placing import narrowed
from surm.training.prepared import Run
from surm.training.program import Program
from surm.training.step import initial_state

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
    config, kind = run.config, jax.devices()[0].device_kind
    frozen = _size(lambda: narrowed(surgery.split(run.model)[2], config.model.dtype))
    where = "in parts" if config.mesh.shard_base else "on each"
    among = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    averaged = any(own.optim.ema_decay for own in [config, *(member.config for member in every)])
    trained = _size(lambda: initial_state(run, config.seed, averaged=averaged))
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


def of_step(program: Program, frozen: nnx.State) -> str:
    """Compiles one step and returns the compiler's figures: memory, operations, and bytes accessed per device.

    The compiler counts the body of a loop only once. So the step costs more than this if parts of a batch, or members
    of a population, are computed one after another.

    Args:
      program: the run's program.
      frozen: the frozen part of the model, placed on the devices.

    Returns:
      One line; figures that the platform does not report are left out.
    """
    compiled = program.lower(program.initial(), frozen, next(program.batches)).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    found = {
        "arguments": readable(memory.argument_size_in_bytes) if memory else None,
        "temporary memory": readable(memory.temp_size_in_bytes) if memory else None,
        "operations": f"{cost['flops'] / 1e9:,.1f} GFLOP" if "flops" in cost else None,
        "read and written": readable(cost["bytes accessed"]) if "bytes accessed" in cost else None,
    }
    told = [f"{name} {value}" for name, value in found.items() if value]
    said = ", ".join(told) or "this platform reports nothing"
    return f"a step on each device takes (the body of a loop is counted once): {said}"


def _size(make: Callable[[], Any]) -> int:
    """The size in bytes of the arrays that a function would return; it is traced, not computed."""
    leaves = jax.tree.leaves(jax.eval_shape(make))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.ndim)


def readable(size: float) -> str:
    """A number of bytes as text, with a binary unit.

    Examples:
      >>> readable(512), readable(10_900_000)
      ('512 B', '10.4 MiB')
    """
    power = min(int(math.log(size, 1024)) if size >= 1 else 0, len(_UNITS) - 1)
    return f"{size:.0f} B" if power == 0 else f"{size / 1024**power:.1f} {_UNITS[power]}"
