"""The text of a compiled program: its computations, their instructions, and how often each computation runs.

XLA counts the body of a loop once in its own figures. What is read off the text here is counted as often as it runs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{[^{}]*?(S\((\d+)\))?\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAME = re.compile(r"%([\w.-]+)")


class Array(NamedTuple):
    """An array of a program.

    Attributes:
      size: in bytes, without the padding of its layout.
      space: the memory that holds it: 0 is the chip's main memory, on a TPU another number is memory on the chip.
    """

    size: int
    space: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: its name, unique in the program.
      result: the text of its type.
      opcode: such as `fusion` or `all-gather`.
      operands: the names of its operands.
      attributes: the text after them.
      is_root: whether it is the result of its computation.
    """

    name: str
    result: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def arrays(self) -> list[Array]:
        """The arrays of its result, those of tuples one by one."""
        return arrays(self.result)

    @property
    def called(self) -> dict[str, list[str]]:
        """The names of the computations that it calls, by the attribute that names them."""
        found: dict[str, list[str]] = {}
        for attribute, name in _CALLED.findall(self.attributes):
            found.setdefault(attribute, []).append(name)
        for names in _BRANCHES.findall(self.attributes):
            found.setdefault("branches", []).extend(_NAME.findall(names))
        return found


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: the instructions of every computation, by the computation's name.
      entry: the name of the computation with which it begins.
    """

    computations: Mapping[str, Sequence[Instruction]]
    entry: str

    @property
    def guessed(self) -> list[str]:
        """The names of loops whose number of runs cannot be read, which are taken to run once."""
        loops = (one for within in self.computations.values() for one in within if one.opcode == "while")
        return [loop.name for loop in loops if self._trips(loop) is None]

    def running(self) -> Iterator[tuple[str, int]]:
        """Every computation that runs by itself, as parts of fusions do not, with the number of times that it runs."""
        waiting = [(self.entry, 1)]
        while waiting:
            name, times = waiting.pop()
            yield name, times
            for one in self.computations[name]:
                for called, more in self._runs(one):
                    waiting.append((called, times * more))

    def _runs(self, one: Instruction) -> list[tuple[str, int]]:
        """The computations that an instruction runs, each with the number of times."""
        called = one.called
        if one.opcode == "while":
            trips = self._trips(one)
            return [(called["body"][0], 1 if trips is None else trips)]
        if one.opcode in ("call", "async-start"):
            return [(name, 1) for name in (*called.get("to_apply", ()), *called.get("calls", ()))]
        if one.opcode == "conditional":
            either = (*called.get("true_computation", ()), *called.get("false_computation", ()))
            return [(name, 1) for name in (*either, *called.get("branches", ()))]
        return []

    def _trips(self, loop: Instruction) -> int | None:
        """How often the body of a loop runs: as the loop says, or its condition, which counts up to a constant."""
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        within = [*self.computations[loop.called["condition"][0]]]
        for name in [name for one in within for name in one.called.get("calls", ())]:
            within += self.computations[name]
        constants = [int(one.operands[0]) for one in within if one.opcode == "constant" and one.operands[0].isdecimal()]
        if len(constants) == 1 and any("direction=LT" in one.attributes for one in within):
            return constants[0]
        return None


def parse(text: str) -> Program:
    """Reads the text of a compiled program, as `jax.stages.Compiled.as_text` gives it.

    Args:
      text: the program.

    Returns:
      The program.
    """
    computations: dict[str, list[Instruction]] = {}
    current, entry = None, ""
    for line in text.splitlines():
        if not line.startswith(" "):
            if header := _HEADER.match(line):
                current = computations.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
        elif current is not None and " = " in line:
            current.append(_instruction(line))
    return Program(computations, entry)


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().partition(" = ")
    end = _closed(rest) if rest.startswith("(") else rest.index(" ")
    result, rest = rest[:end], rest[end:].strip()
    opcode, _, rest = rest.partition("(")
    end = _closed("(" + rest) - 1
    given, attributes = rest[: end - 1], rest[end:]
    operands = (given.strip(),) if opcode in ("constant", "parameter") else tuple(_NAME.findall(given))
    return Instruction(
        name.removeprefix("ROOT ").removeprefix("%"), result, opcode, operands, attributes, name.startswith("ROOT ")
    )


def _closed(text: str) -> int:
    """The place behind the parenthesis that closes the one with which a text begins."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place + 1
    return len(text)


def arrays(text: str) -> list[Array]:
    """The arrays in the text of a type.

    Examples:
      >>> arrays("(bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, s32[])")
      [Array(size=64, space=1), Array(size=4, space=0)]
    """
    found = []
    for dtype, shape, _, space in _ARRAY.findall(text):
        entries = math.prod(int(size) for size in shape.split(",") if size)
        found.append(Array(-(-entries * _bits(dtype) // 8), int(space or 0)))
    return found


def elements(text: str) -> list[str]:
    """The types that a tuple type has; the type itself if it is none.

    Examples:
      >>> elements("((f32[2], f32[3]), f32[4]{0})"), elements("f32[5]")
      (['(f32[2], f32[3])', 'f32[4]{0}'], ['f32[5]'])
    """
    if not text.startswith("("):
        return [text]
    parts, depth, begin = [], 0, 1
    for place, character in enumerate(text):
        depth += (character in "({[") - (character in ")}]")
        if (character == "," and depth == 1) or depth == 0:
            parts.append(re.sub(r"/\*.*?\*/", "", text[begin:place]).strip())
            begin = place + 1
        if depth == 0:
            break
    return [part for part in parts if part]


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    if dtype.startswith("f8"):
        return 8
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0
