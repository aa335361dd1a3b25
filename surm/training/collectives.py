"""What the chips of a program send to one another, read off the program's text."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from surm.training import hlo
from surm.training.hlo import Instruction, Program

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
)  # fmt: skip
_KIND = re.compile(rf"({'|'.join(KINDS)})(-start)?$")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_AXES = re.compile(r"replica_groups=@?mesh\['?(.*?)\] ?\{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")


class Moved(NamedTuple):
    """Collectives of one kind in a step.

    Attributes:
      count: how often a chip takes part in one.
      size: the bytes that each chip sends, if they go around a ring.
    """

    count: int
    size: float


class Collective(NamedTuple):
    """One collective in a program's text.

    Attributes:
      kind: one of `KINDS`.
      result: the text of the type of its result.
      times: how often it runs.
      chips: the number of chips that take part together.
      source: the operation in the model that it is for, as JAX names it.
    """

    kind: str
    result: str
    times: int
    chips: int
    source: str

    @property
    def size(self) -> float:
        """The bytes that each chip sends in one of them."""
        whole = sum(array.size for array in hlo.arrays(self.result))
        others = self.chips - 1
        if self.kind == "all-reduce":
            return 2 * whole * others / self.chips
        if self.kind == "reduce-scatter":
            return whole * others  # the result is a part of what is sent
        if self.kind in ("collective-permute", "collective-broadcast"):
            return whole
        return whole * others / self.chips


def moved(program: Program, devices: int) -> dict[str, Moved]:
    """The collectives of a step, by kind.

    Args:
      program: from `hlo.parse`.
      devices: the number of devices that the program is for.

    Returns:
      For each kind that occurs, how many there are and how much each chip sends in them.
    """
    found: dict[str, Moved] = {}
    for one in every(program, devices):
        count, size = found.get(one.kind, Moved(0, 0))
        found[one.kind] = Moved(count + one.times, size + one.times * one.size)
    return {kind: found[kind] for kind in KINDS if kind in found}


def every(program: Program, devices: int) -> list[Collective]:
    """All collectives of a program, one by one.

    A TPU's compiler writes one collective into several fusions, in which it goes on beside other work; they have one
    channel, and count once.
    """
    found = {}
    for name, times in program.running():
        for one in _within(program, program.computations[name]):
            kind, started = _KIND.match(one.opcode).groups()
            channel = _CHANNEL.search(one.attributes)
            key = (name, kind, channel[1] if channel else one.name)
            source = re.search(r'op_name="([^"]*)"', one.attributes)
            result = _received(kind, one.result) if started else one.result
            of_one = Collective(kind, result, times, _together(one, devices), source[1] if source else "")
            found.setdefault(key, of_one)
    return [*found.values()]


def _within(program: Program, instructions: list[Instruction]) -> list[Instruction]:
    """The collectives of a computation and of its fusions."""
    found = []
    for one in instructions:
        if _KIND.match(one.opcode):
            found.append(one)
        elif one.opcode == "fusion":
            for name in one.called.get("calls", ()):
                found += _within(program, program.computations[name])
    return found


def _received(kind: str, result: str) -> str:
    """The type of what arrives, in that of an instruction that only starts a collective: sent first, then received."""
    parts = hlo.elements(result)
    return result if kind == "all-reduce" or len(parts) == 1 else parts[1]


def _together(one: Instruction, devices: int) -> int:
    """The number of chips in each group of a collective."""
    if listed := _LISTED.search(one.attributes):
        return listed[1].count(",") + 1
    if iota := _IOTA.search(one.attributes):
        return int(iota[2])
    if axes := _AXES.search(one.attributes):
        return _of_axes(axes[1], axes[2])
    return devices


def _of_axes(mesh: str, named: str) -> int:
    """The number of chips along some axes of a mesh, such as `axis_0'=4,'axis_1'=2` and `'axis_0'`.

    A part of an axis is written with its size behind it, `'axis_0':(2)4`.
    """
    sizes: Mapping[str, int] = {name: int(size) for name, size in re.findall(r"([\w.]+)'?=(\d+)", mesh)}
    parts = re.findall(r"'?([\w.]+)'?(?::\(\d+\)(\d+))?(?:,|$)", named)
    return math.prod(int(part) if part else sizes[name] for name, part in parts)
