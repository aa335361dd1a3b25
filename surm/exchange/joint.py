"""Updates of maps that transformers has as one map, such as the queries, keys and values of a GPT-2 or Phi-3.

    split    the rows of ΔW that belong to each part: for a LoRA B A, every part has rows of B and all of A
    join     the parts' matrices above one another: for LoRAs B_i A_i, a LoRA whose rank is the sum of theirs,

                 [s₁B₁A₁]   [s₁B₁       ] [A₁]
                 [s₂B₂A₂] = [      s₂B₂ ] [A₂],    or, if all A_i and s_i are the same, the B_i above one A

Both are exact. A part without an update has rows of zeros.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from surm.errors import InputError
from surm.exchange import c3a
from surm.exchange.updates import Update

Parts = Sequence[Update | None]


def split(module: str, update: Update, sizes: Sequence[int]) -> list[Update]:
    """The updates of the parts of a joint map.

    Args:
      module: its name in transformers, for messages.
      update: its update.
      sizes: the number of outputs of each part.

    Returns:
      An update for each part.

    Raises:
      InputError: if the parts do not add up to the map, or their borders lie within blocks of the update.
    """
    if sum(sizes) != update.n_out:
        given = f"{module} of {update.n_out}×{update.n_in}"
        raise InputError(f"the adapter has {given}, but its parts here have {' + '.join(map(str, sizes))} outputs")
    name, axis, block = _BLOCKS[update.family](update)
    if any(size % block for size in sizes):
        raise InputError(
            f"{module} has an update with blocks of {block} rows, which do not divide its parts of "
            f"{', '.join(map(str, sizes))} outputs; expected blocks within the parts"
        )
    ends = np.cumsum(sizes)[:-1]
    pieces = np.split(update.params[name], ends // block, axis)
    magnitudes = [None] * len(sizes) if update.magnitude is None else np.split(update.magnitude, ends)
    return [
        update._replace(params={**update.params, name: piece}, n_out=size, magnitude=magnitude)
        for piece, size, magnitude in zip(pieces, sizes, magnitudes, strict=True)
    ]


def join(module: str, parts: Parts, sizes: Sequence[int]) -> Update:
    """The update of a joint map whose parts have updates.

    Args:
      module: its name in transformers, for messages.
      parts: the updates of the parts, at least one, all of one of PEFT's types; None for a part without an update.
      sizes: the number of outputs of each part.

    Returns:
      The update.

    Raises:
      InputError: if the type of PEFT cannot hold all parts in one update, or only some have a magnitude.
    """
    there = [part for part in parts if part is not None]
    magnitudes = [part and part.magnitude for part in parts]
    if any(magnitude is not None for magnitude in magnitudes) and any(one is None for one in magnitudes):
        raise InputError(f"{module} is one map in transformers, and only some of its parts have magnitude=True; "
                         "expected all of them")  # fmt: skip
    magnitude = None if magnitudes[0] is None else np.concatenate(magnitudes)
    joined = _JOIN[there[0].family](module, parts, sizes)
    return joined._replace(n_out=sum(sizes), magnitude=magnitude, dropout=there[0].dropout)


def _low_rank(module: str, parts: Parts, sizes: Sequence[int]) -> Update:
    if _share(parts, "a"):
        return parts[0]._replace(params={"a": parts[0].params["a"], "b": _stacked(parts, "b", axis=0)})
    there = [part for part in parts if part is not None]
    params = {"a": _stacked(there, "a", axis=0), "b": _block_diagonal(parts, sizes, scaled=True)}
    return there[0]._replace(options={"rank": len(params["a"])}, params=params, scale=1.0)


def _adalora(module: str, parts: Parts, sizes: Sequence[int]) -> Update:
    there = [part for part in parts if part is not None]
    gates = np.concatenate([np.float32(part.scale) * part.params["e"] for part in there])
    params = {"a": _stacked(there, "a", axis=0), "b": _block_diagonal(parts, sizes, scaled=False), "e": gates}
    options = {"rank": sum(part.options["rank"] for part in there)}
    return there[0]._replace(options=options, params=params, scale=1.0)


def _c3a(module: str, parts: Parts, sizes: Sequence[int]) -> Update:
    kernels = [None if part is None else c3a.kernel(module, part) for part in parts]
    columns, block = next(kernel.shape[1:] for kernel in kernels if kernel is not None)
    if any(size % block or (kernel is not None and kernel.shape[1:] != (columns, block))
           for size, kernel in zip(sizes, kernels, strict=True)):  # fmt: skip
        raise InputError(f"{module} is one map in transformers, with one block_size in PEFT; expected updates of its "
                         "parts with one block size, which divides their outputs")  # fmt: skip
    filled = [np.zeros((size // block, columns, block), np.float32) if kernel is None else kernel
              for size, kernel in zip(sizes, kernels, strict=True)]  # fmt: skip
    return Update("c3a", {"block_size": block}, {"c": np.concatenate(filled)}, sum(sizes), columns * block)


def _kronecker(module: str, parts: Parts, sizes: Sequence[int]) -> Update:
    if not _share(parts, "a"):
        raise InputError(
            f"{module} is one map in transformers, and the kroneckers of its parts do not make one LoKr; "
            "surm.to_low_rank makes a LoRA close to them, surm.export_merged writes the whole model"
        )
    return parts[0]._replace(params={"a": parts[0].params["a"], "b": _stacked(parts, "b", axis=1)})


def _share(parts: Parts, name: str) -> bool:
    """Whether all parts have an update with one scale, and a parameter in common."""
    if any(part is None for part in parts):
        return False
    first = parts[0]
    return all(
        part.scale == first.scale and np.array_equal(part.params[name], first.params[name]) for part in parts[1:]
    )


def _stacked(parts: Parts, name: str, axis: int) -> Float[np.ndarray, "..."]:
    return np.concatenate([part.params[name] for part in parts], axis)


def _block_diagonal(parts: Parts, sizes: Sequence[int], *, scaled: bool) -> Float[np.ndarray, "n_out rank"]:
    found = np.zeros((sum(sizes), sum(part.params["b"].shape[1] for part in parts if part is not None)), np.float32)
    row = column = 0
    for part, size in zip(parts, sizes, strict=True):
        if part is not None:
            b = np.float32(part.scale if scaled else 1) * part.params["b"]
            found[row : row + size, column : column + b.shape[1]] = b
            column += b.shape[1]
        row += size
    return found


_BLOCKS: dict[str, Callable[[Update], tuple[str, int, int]]] = {
    "low_rank": lambda update: ("b", 0, 1),
    "adalora": lambda update: ("b", 0, 1),
    "c3a": lambda update: ("c", 0, update.params["c"].shape[2]),
    "kronecker": lambda update: ("b", 1, update.params["a"].shape[1]),
}
"""By family: the parameter that holds the rows of ΔW, its axis of rows, and how many rows one of its entries holds."""

_JOIN: dict[str, Callable[[str, Parts, Sequence[int]], Update]] = {
    "low_rank": _low_rank, "adalora": _adalora, "c3a": _c3a, "block_circulant": _c3a, "circulant": _c3a,
    "kronecker": _kronecker,
}  # fmt: skip
