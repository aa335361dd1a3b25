"""The bytes that a program moves between a chip and its main memory, counted off the program's text.

As XLA's own count does, it takes every instruction outside of fusions to read its operands and to write its results.
Unlike that, it counts the body of a loop as often as it runs, and it leaves out arrays that a TPU keeps on the chip.
"""

from collections.abc import Mapping, Sequence

from surm.training.hlo import Array, Instruction, Program

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done",
}  # fmt: skip
_READS_A_PART = ("slice", "dynamic-slice", "gather")


def accessed(program: Program, *, on_chip: bool) -> float:
    """The bytes that one chip reads and writes in a step.

    Args:
      program: from `surm.training.hlo.parse`.
      on_chip: whether memory spaces other than 0 are on the chip, as on a TPU.

    Returns:
      The bytes.
    """
    total = 0
    for name, times in program.running():
        instructions = program.computations[name]
        made = {one.name: one for one in instructions}
        total += times * sum(_of(program, one, made, on_chip) for one in instructions)
    return total


def _of(program: Program, one: Instruction, made: Mapping[str, Instruction], on_chip: bool) -> float:
    if one.opcode in _FREE or one.opcode.endswith("-done"):
        return 0

    def bytes_of(arrays: Sequence[Array]) -> int:
        return sum(array.size for array in arrays if not (on_chip and array.space))

    operands = [bytes_of(made[name].arrays) if name in made else 0 for name in one.operands]
    result = bytes_of(_written(one))
    if one.opcode in _READS_A_PART:
        return min(operands[0], _whole(one)) + result + sum(operands[1:])
    if one.opcode == "dynamic-update-slice":
        return 2 * operands[1]
    if one.opcode == "fusion":
        return _of_fusion(program.computations[one.called["calls"][0]], operands, result)
    return sum(operands) + result


def _written(one: Instruction) -> Sequence[Array]:
    """The arrays that an instruction writes; that of an asynchronous copy also names what is copied, and a product of
    cuBLAS its scratch memory."""
    if one.opcode == "copy-start":
        return one.arrays[:1]
    if one.opcode == "custom-call" and "__cublas" in one.attributes:
        return one.arrays[:1]
    if one.opcode.endswith("-start"):
        return one.arrays[len(one.operands) :] or one.arrays
    return one.arrays


def _of_fusion(inner: Sequence[Instruction], operands: Sequence[int], result: int) -> float:
    """The bytes of a fusion. Of an operand that it only slices, the slices count; an update in place writes itself."""
    users: dict[str, list[Instruction]] = {}
    for one in inner:
        for name in one.operands:
            users.setdefault(name, []).append(one)
    made, total = {one.name: one for one in inner}, 0.0
    for one in inner:
        if one.opcode != "parameter":
            continue
        size, used = operands[int(one.operands[0])], users.get(one.name, [])
        if used and all(user.opcode in _READS_A_PART and user.operands[0] == one.name for user in used):
            size = min(size, sum(_whole(user) for user in used))
        elif used and all(user.opcode == "dynamic-update-slice" and user.operands[0] == one.name for user in used):
            size = 0
        total += size
    (root,) = (one for one in inner if one.is_root)
    while root.opcode == "bitcast" and root.operands[0] in made:
        root = made[root.operands[0]]
    if root.opcode == "dynamic-update-slice":
        result = min(result, _whole(made[root.operands[1]]))
    return total + result


def _whole(one: Instruction) -> int:
    """The bytes of all results of an instruction, wherever they are."""
    return sum(array.size for array in one.arrays)
