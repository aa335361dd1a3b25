"""Runs a stack of blocks as one `jax.lax.scan`, so that the time to compile does not grow with the depth.

Blocks of one structure that follow one another form a run, and so do blocks whose structures repeat with a period, such
as five with local attention and one with global attention. The body of the scan applies one period.

    runs = runs_of(model.blocks, config.every_layer)   blocks of one structure that are called with equal records
    frozen = stacked(runs, frozen)                     once, outside jit: the base is not copied in a step
    through(model.blocks, apply, x, runs=runs)         inside jit: arrays that are not stacked yet are stacked there

Adapters on some layers only split a run, because the structures of the blocks then differ. The paths of all arrays stay
as they are: in a state from `stacked`, the first block of a run holds the arrays of all, with a new first axis, and the
others hold empty arrays. Trained arrays are stacked by `packed`, so that the optimiser has one array where a run of
blocks has many; a run of the command keeps them stacked from step to step.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

Apply = Callable[[int, nnx.Module, Array, Any], tuple[Array, Any]]
"""A function of a block's number, the block, the tokens and what the block kept of earlier tokens, or None. It returns
the tokens after the block and what the block keeps."""

NAME = "blocks"
"""The attribute of a model that holds its blocks."""

_LONGEST_PERIOD = 8


class Run(NamedTuple):
    """Blocks that are scanned together: `count` times a body of `period` blocks, from block number `first` on."""

    first: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        """The number of the first block after the run."""
        return self.first + self.period * self.count

    def numbers(self, place: int) -> range:
        """The numbers of the blocks at a place of the period."""
        return range(self.first + place, self.stop, self.period)


def runs_of(blocks: Sequence[nnx.Module], called: Sequence[Any] | None = None) -> tuple[Run, ...]:
    """Divides a stack of blocks into runs; a block that resembles no neighbour is a run of its own.

    Args:
      blocks: the blocks in their order.
      called: a hashable value for each block, such as its window, that `apply` reads besides the block; None for none.

    Returns:
      The runs, which together hold every block once.
    """
    seen: dict[Any, int] = {}
    called = [None] * len(blocks) if called is None else called
    kinds = [seen.setdefault((_kind(block), more), len(seen)) for block, more in zip(blocks, called, strict=True)]
    found: list[Run] = []
    while (first := found[-1].stop if found else 0) < len(kinds):
        candidates = [_longest(kinds, first, period) for period in range(1, _LONGEST_PERIOD + 1)]
        found.append(max(candidates, key=lambda run: (run.stop, -run.period)))
    return tuple(found)


def _longest(kinds: Sequence[int], first: int, period: int) -> Run:
    """The longest run with a period; a single block if the period does not repeat."""
    count = 1
    pattern = kinds[first : first + period]
    while kinds[first + count * period : first + (count + 1) * period] == pattern:
        count += 1
    return Run(first, period, count) if count > 1 else Run(first, 1, 1)


def _kind(block: nnx.Module) -> Any:
    """The structure of a block with the shapes of its arrays; blocks of one kind can be scanned."""
    graphdef, state = nnx.split(block)
    return graphdef, tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state))


Layout = dict[str, tuple[str, ...]]
"""The dotted paths of arrays that are stacked together, by the first of them, which then holds the stack."""


def layout(runs: Iterable[Run], paths: Iterable[str], of: Callable[[str], Any] = lambda path: None) -> Layout:
    """The arrays that are stacked, among those at some paths.

    Args:
      runs: from `runs_of`.
      paths: dotted paths of arrays in the model. An array that several blocks share has only one, so it is not stacked.
      of: a function of a path; only arrays with equal values of it are stacked together.

    Returns:
      The layout.
    """
    paths, found = set(paths), {}
    places = [run.numbers(place) for run in runs if run.count > 1 for place in range(run.period)]
    by_first = {numbers[0]: numbers for numbers in places}
    for path in sorted(paths):
        name, _, rest = path.partition(".")
        number, _, rest = rest.partition(".")
        if name == NAME and number.isdigit() and int(number) in by_first:
            together = tuple(f"{NAME}.{other}.{rest}" for other in by_first[int(number)])
            if paths.issuperset(together) and all(of(other) == of(path) for other in together):
                found[path] = together
    return found


def packed(arrays: dict[str, Any], of: Layout) -> dict[str, Any]:
    """Arrays, or trees of arrays, by dotted path, with a stack in place of those that a layout puts together."""
    taken = {path for together in of.values() for path in together}
    stacks = {path: _stack([arrays[one] for one in together]) for path, together in of.items()}
    return {path: array for path, array in arrays.items() if path not in taken} | stacks


def unpacked(arrays: dict[str, Any], of: Layout) -> dict[str, Any]:
    """The inverse of `packed`."""
    apart = {one: _at(arrays[path], number) for path, together in of.items() for number, one in enumerate(together)}
    return {path: array for path, array in arrays.items() if path not in of} | apart


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *values: (np if isinstance(values[0], np.ndarray) else jnp).stack(values), *trees)


def _at(tree: Any, number: int) -> Any:
    return jax.tree.map(lambda values: values[number, ...], tree)


def spread(arrays: dict[str, Array], of: Layout) -> dict[str, Array]:
    """The arrays of `packed` in the form that `through` takes: empty arrays at all paths but those of the stacks."""
    empty = {one: jnp.zeros((0,), arrays[path].dtype) for path, together in of.items() for one in together[1:]}
    return arrays | empty


def stacked(runs: Iterable[Run], frozen: nnx.State) -> nnx.State:
    """Stacks the arrays of the blocks of every run; random keys stay where they are.

    Args:
      runs: from `runs_of`.
      frozen: arrays of a model that do not train.

    Returns:
      A state with the same paths, in the form that `through` takes.
    """
    return _changed(runs, frozen, _stacked)


def parts_of(runs: Iterable[Run], frozen: nnx.State) -> nnx.State:
    """The inverse of `stacked`: the arrays of every block, as parts of the memory of the stacks if that is the host's.

    Args:
      runs: from `runs_of`.
      frozen: from `stacked`; every process can read its arrays whole.

    Returns:
      The arrays that were stacked, as those of NumPy, and all others as they are.
    """
    return _changed(runs, frozen, _parted)


def _changed(runs: Iterable[Run], frozen: nnx.State, change: Callable[[Sequence[Any]], Sequence[Any]]) -> nnx.State:
    """A state in which the variables that a layout puts together are changed together."""
    flat = {".".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(frozen)}
    of = layout(runs, (path for path, (_, leaf) in flat.items() if not isinstance(leaf, nnx.RngState)))
    for together in of.values():
        changed = change([flat[path][1] for path in together])
        flat |= {path: (flat[path][0], leaf) for path, leaf in zip(together, changed, strict=True)}
    return nnx.from_flat_state(flat.values())


def _parted(variables: Sequence[nnx.Variable]) -> list[nnx.Variable]:
    whole = jax.tree.map(np.asarray, variables[0].get_value())
    return [variable.replace(_at(whole, number)) for number, variable in enumerate(variables)]


def _stacked(variables: Sequence[nnx.Variable]) -> list[nnx.Variable]:
    """The variables with all values in the first one."""
    whole = _stack([variable.get_value() for variable in variables])
    empty = jax.tree.map(lambda value: jnp.zeros((0,), value.dtype), whole)
    return [variable.replace(whole if number == 0 else empty) for number, variable in enumerate(variables)]


def through(
    blocks: Sequence[nnx.Module],
    apply: Apply,
    x: Float[Array, "batch tokens width"],
    past: Sequence[Any] | None = None,
    *,
    runs: Iterable[Run] | None = None,
    remat: bool = False,
    every: bool = True,
) -> tuple[list[Float[Array, "batch tokens width"]], list[Any] | None]:
    """Applies blocks one after another.

    Args:
      blocks: the blocks, perhaps with arrays from `stacked`.
      apply: applies one of them. In a scan its number is that of the first block of the same structure in the run.
      x: the tokens.
      past: what each block kept of earlier tokens; None if nothing is kept.
      runs: from `runs_of`; None applies every block on its own.
      remat: whether the backward pass computes every block again from its input (`jax.checkpoint`). Outside a scan,
        XLA's CPU compiler undoes this before jax 0.12.
      every: whether the tokens between the blocks are returned, too, which keeps them in memory.

    Returns:
      The tokens before the first block and after each one, or those after the last block alone; and what every block
      keeps, or None if `past` is None.
    """
    states, kept = [x] if every else [], []
    for run in runs or [Run(number, 1, 1) for number in range(len(blocks))]:
        earlier = None if past is None else past[run.first : run.stop]
        x, more, own = (_one if run.count == 1 else _scanned)(blocks, run, apply, x, earlier, remat, every)
        states += more
        kept += own
    return states if every else [x], None if past is None else kept


def _one(blocks, run, apply, x, past, remat, every):
    function = functools.partial(apply, run.first)
    x, kept = (nnx.remat(function) if remat else function)(blocks[run.first], x, None if past is None else past[0])
    return x, [x] if every else [], [kept]


def _scanned(blocks, run, apply, x, past, remat, every):
    parts = [_parts([blocks[number] for number in run.numbers(place)]) for place in range(run.period)]
    kept_before = None if past is None else _by_place(past, run)

    def body(x, of_layers):
        states, kept = [], []
        for place, (part, arrays, before) in enumerate(zip(parts, *of_layers, strict=True)):

            def one(arrays, x, before, part=part, place=place):
                return apply(run.first + place, part.block(arrays), x, before)

            x, own = (jax.checkpoint(one, prevent_cse=False) if remat else one)(arrays, x, before)
            states.append(x if every else None)
            kept.append(None if past is None else own)
        return x, (states, kept)

    before = [None] * run.period if kept_before is None else kept_before
    x, (states, kept) = jax.lax.scan(body, x, ([part.moving for part in parts], before))
    return x, _in_order(states, run) if every else [], _in_order(kept, run)


def _by_place(values: Sequence[Any], run: Run) -> list[Any]:
    """What belongs to the blocks of a run, stacked for every place of the period."""
    each = [values[place :: run.period] for place in range(run.period)]
    return [_stack(of_place) for of_place in each]


def _in_order(stacks: Sequence[Any], run: Run) -> list[Any]:
    """The inverse of `_by_place`."""
    return [_at(stacks[place], number) for number in range(run.count) for place in range(run.period)]


class _Part(NamedTuple):
    """The blocks at one place of the period: their structure, arrays of their own, and arrays that all share."""

    graphdef: nnx.GraphDef
    paths: tuple[tuple, ...]
    moving: list[Any]
    shared: dict[tuple, Any]

    def block(self, arrays: list[Any]) -> nnx.Module:
        """One of the blocks, with the given arrays of its own."""
        own = dict(zip(self.paths, arrays, strict=True))
        return nnx.merge(self.graphdef, nnx.from_flat_state((self.shared | own).items()))


def _parts(blocks: Sequence[nnx.Module]) -> _Part:
    each = [dict(nnx.to_flat_state(nnx.state(block))) for block in blocks]
    moving, shared = {}, {}
    for path in each[0]:
        variables = [leaves[path] for leaves in each]
        values = [one.get_value() if isinstance(one, nnx.Variable) else one for one in variables]
        if len({id(one) for one in variables}) == 1:
            shared[path] = values[0]
        elif _elsewhere(values[1]) and not _elsewhere(values[0]):
            moving[path] = values[0]
        else:
            moving[path] = _stack(values)
    return _Part(nnx.split(blocks[0])[0], tuple(moving), [*moving.values()], shared)


def _elsewhere(value: Any) -> bool:
    """Whether `stacked` has moved a value to the first block."""
    return all(leaf.size == 0 for leaf in jax.tree.leaves(value))
