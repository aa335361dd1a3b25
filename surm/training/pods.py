"""What a step of a run would take on a target: hardware that is only described (`surm.machine.targets`)."""

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from surm.errors import InputError, one_line
from surm.machine import mesh as meshes
from surm.machine import targets
from surm.machine.targets import Target
from surm.peft.multiply import calibrated, paths
from surm.training import collectives, estimate, hlo, operations, traffic
from surm.training.collectives import Moved
from surm.training.prepared import Run
from surm.training.program import Program

_PREALLOCATED = 0.75
"""The part of a GPU's memory that JAX takes by default (XLA_PYTHON_CLIENT_MEM_FRACTION)."""
_FULL = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm|\(([\d.]+)([KMGT])\) exceeds available HBM")
_POWERS = {unit: 1024 ** (power + 1) for power, unit in enumerate("KMGT")}


@dataclasses.dataclass(frozen=True)
class Step:
    """One training step on a target; sizes are in bytes and for one chip.

    Attributes:
      target: the name of the target.
      device: the kind of its chips, as JAX names it.
      devices: the number of chips.
      hosts: the number of hosts.
      mesh: the sizes of the mesh's axes.
      dtype: the dtype in which the model computes.
      memory: of one chip.
      base: the frozen arrays.
      trained: the trained arrays with the state of the optimiser.
      batch: the batch.
      temporary: what the step needs beside its arguments, most of it for activations; None if the compiler gave up.
      program: the program itself; None where the compiler does not say.
      in_all: everything together at its peak.
      fits: whether that is within the memory that programs can use.
      rows: the number of examples, or of tokens for a language model, in a batch of all chips.
      counts: what they are.
      collectives: what each chip sends, by the kind of the collective; None if the compiler gave up.
      operations: in matrix products, of one chip; those of the loss's gradient are among them.
      accessed: read and written in main memory.
      compiler_accessed: the same as the compiler estimates it, with the bodies of loops counted once.
      compiler_seconds: the compiler's own estimate of the time, with the bodies of loops counted once.
      unknown: the number of operations of which that knows no time.
      bounds: the seconds that matrix products, main memory and links need at least, at the peak of the data sheet.
      compile_seconds: the time to compile the step here.
      guessed: the number of loops of unknown length, which count once in what is sent and accessed.
      paths: the matrices for which `auto` chooses a path, in words, by that path.
    """

    target: str
    device: str
    devices: int
    hosts: int
    mesh: Mapping[str, int]
    dtype: str
    memory: int
    base: int
    trained: int
    batch: int
    temporary: int | None
    program: int | None
    in_all: int
    fits: bool
    rows: int
    counts: str
    collectives: Mapping[str, Moved] | None
    operations: float
    accessed: float | None
    compiler_accessed: float | None
    compiler_seconds: float | None
    unknown: int
    bounds: Mapping[str, float]
    compile_seconds: float
    guessed: int = 0
    paths: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The least time of a step: that of the slowest of products, memory and links, if all three overlap."""
        return max(self.bounds.values())

    @property
    def rate(self) -> float:
        """The most examples or tokens a second, on all chips."""
        return self.rows / self.seconds


def step_of(target: Target, prepared: Run, program: Program, state: Any, frozen: Any, mesh: jax.sharding.Mesh) -> Step:
    """Compiles a run's training step for a target and reads off what it takes.

    Args:
      target: the described hardware.
      prepared: the prepared run.
      program: the run's program on the target's mesh.
      state: the shapes of the state before a step, placed on that mesh.
      frozen: the same of the frozen part of the model.
      mesh: the target's mesh.

    Returns:
      The figures.

    Raises:
      InputError: if the compiler cannot compile it for another reason than the size of the memory.
    """
    config, devices, chip = prepared.config, [*mesh.devices.flat], target.chip
    batch = _longest(next(program.batches), prepared.plan.lengths)
    with calibrated.asked() as asked:
        traced = program.trace(state, frozen, batch)
    began = time.perf_counter()
    compiled, used = _compiled(target, traced)
    seconds = time.perf_counter() - began
    over = 1 if config.mesh.shard_members else mesh.shape["data"]
    worked = operations.counted(traced.jaxpr) / over
    common = {
        "target": target.text,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "hosts": meshes.hosts_of(devices),
        "mesh": dict(mesh.shape),
        "dtype": config.model.dtype,
        "memory": chip.memory,
        "base": _on_each(frozen),
        "trained": _on_each(state),
        "batch": sum(value.nbytes for value in batch.values()) // over,
        **_rows(prepared, batch),
        "operations": worked,
        "compile_seconds": seconds,
        "paths": paths.by_path(asked),
    }
    bounds = {"matrix products": worked / chip.peak[config.model.dtype]}
    if compiled is None:
        nothing = dict.fromkeys(
            ("temporary", "program", "collectives", "accessed", "compiler_accessed", "compiler_seconds")
        )
        return Step(**common, **nothing, in_all=used, fits=False, unknown=0, bounds=bounds)
    return Step(**common, **_of_compiled(compiled, target, bounds))


def _of_compiled(compiled: jax.stages.Compiled, target: Target, bounds: dict[str, float]) -> dict[str, Any]:
    """The figures that a compiled step gives."""
    memory, cost, chip = compiled.memory_analysis(), compiled.cost_analysis() or {}, target.chip
    program = hlo.parse(compiled.as_text())
    sent = collectives.moved(program, target.chips)
    accessed = traffic.accessed(program, on_chip=chip.platform == "tpu")
    bounds |= {"memory": accessed / chip.bandwidth, "links": sum(moved.size for moved in sent.values()) / chip.links}
    if chip.platform == "gpu" and target.grid[1] > 1:
        del bounds["links"]  # between hosts there is a network, of which nothing is known
    estimated = cost.get("optimal_seconds")
    unknown = 0 if estimated is None else max(0, -int(estimated // 1))
    in_all = estimate.in_all(memory) + memory.generated_code_size_in_bytes
    usable = _PREALLOCATED * chip.memory if chip.platform == "gpu" else chip.memory
    return {
        "temporary": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes or None,
        "in_all": in_all,
        "fits": in_all <= usable,
        "collectives": sent,
        "accessed": accessed,
        "compiler_accessed": cost.get("bytes accessed"),
        "compiler_seconds": None if estimated is None else estimated + unknown,
        "unknown": unknown,
        "bounds": bounds,
        "guessed": len(program.guessed),
    }


def _compiled(target: Target, traced: jax.stages.Traced) -> tuple[jax.stages.Compiled | None, int]:
    """The compiled step; None, and the bytes that a chip would need, if they are more than it has."""
    try:
        return traced.lower().compile(compiler_options=targets.compiler_options(target)), 0
    except jax.errors.JaxRuntimeError as error:
        if full := _FULL.search(str(error)):
            size, unit = full.groups()[:2] if full[1] else full.groups()[2:]
            return None, round(float(size) * _POWERS[unit])
        raise InputError(f"--target={target.text}: the step cannot be compiled: {one_line(error)}") from error


def _on_each(tree: Any) -> int:
    """The bytes of placed shapes on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)


def _longest(batch: dict[str, np.ndarray], lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """A batch of texts padded to the greatest length that batches of the run have; that of images stays as it is."""
    if "tokens" not in batch:
        return batch
    missing = lengths[-1] - batch["tokens"].shape[-1]
    width = lambda value: [(0, 0)] * (value.ndim - 1) + [(0, missing)]  # noqa: E731
    shape = batch["tokens"].shape
    return {name: np.pad(value, width(value)) if value.shape == shape else value for name, value in batch.items()}


def _rows(prepared: Run, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What a batch consists of: tokens, images or examples, and how many."""
    leading = 2 if prepared.config.population else 1  # batches of a population have a first axis of seeds
    any_array = next(iter(batch.values()))
    if prepared.task.counts == "tokens":
        return {"rows": int(np.prod(batch["tokens"].shape[leading - 1 :])), "counts": "tokens"}
    counts = "images" if prepared.data.kind == "image" else "examples"
    return {"rows": any_array.shape[leading - 1], "counts": counts}


def text(step: Step) -> str:
    """The figures of a step in aligned lines."""
    size, spread = estimate.readable, ", ".join(f"{axis} {number}" for axis, number in step.mesh.items())
    hosts = f" on {step.hosts} host{'s' * (step.hosts != 1)}"
    needs = {"base": step.base, "trained with optimiser": step.trained, "batch": step.batch,
             "temporary": step.temporary, "program": step.program}  # fmt: skip
    parts = ", ".join(f"{name} {size(value)}" for name, value in needs.items() if value is not None)
    lines = {
        "target": f"{step.target}: {step.devices} {step.device}{hosts} ({spread}), {step.dtype}",
        "bytes a chip": f"{parts}, in all {size(step.in_all)} of {size(step.memory)}: {_fitting(step)}",
    }
    if step.collectives is not None:
        sent = [f"{count} {kind} {size(moved)}" for kind, (count, moved) in step.collectives.items()]
        lines["sent by a chip"] = ", ".join(sent) or "nothing"
    accessed = "" if step.accessed is None else f", {size(step.accessed)} read and written in its memory"
    lines["work of a chip"] = f"{step.operations / 1e12:,.3g} TFLOP in matrix products{accessed}"
    if step.paths:
        lines["paths"] = paths.told(step.paths)
    if step.guessed:
        lines["loops"] = f"{step.guessed} of unknown length, counted once"
    if step.compiler_seconds is not None:
        unknown = f", {step.unknown} operations of unknown time left out" if step.unknown else ""
        estimated = f"{_milliseconds(step.compiler_seconds)} ms, {size(step.compiler_accessed)}"
        lines["compiler's estimate"] = f"{estimated} (bodies of loops counted once{unknown})"
    bounds = ", ".join(f"{name} {_milliseconds(seconds)}" for name, seconds in step.bounds.items())
    lines["roofline"] = (
        f"{_milliseconds(step.seconds)} ms a step (ms: {bounds}), {step.rate:,.0f} {step.counts} a second"
    )
    lines["compiled in"] = f"{step.compile_seconds:.1f} s"
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{told}" for name, told in lines.items())


def _fitting(step: Step) -> str:
    if step.fits:
        return "fits"
    if step.in_all <= step.memory and step.temporary is not None:
        return (f"fits only if JAX may take more than the {_PREALLOCATED:.0%} of a GPU's memory that it takes by "
                "itself (XLA_PYTHON_CLIENT_MEM_FRACTION)")  # fmt: skip
    return "does not fit"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def as_json(step: Step) -> dict[str, Any]:
    """The figures of a step as JSON values, with its time and rate at the roofline."""
    sent = {kind: one._asdict() for kind, one in step.collectives.items()} if step.collectives is not None else None
    return {**dataclasses.asdict(step), "collectives": sent, "seconds": step.seconds, "rate": step.rate}
