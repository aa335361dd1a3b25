"""The parts that stacks of Transformer blocks share: their hidden states, and optional dropout."""

from collections.abc import Iterable

from flax import nnx
from jaxtyping import Array, Float


def hidden_states(
    blocks: Iterable[nnx.Module], x: Float[Array, "batch tokens width"], *others: Array | None, remat: bool = False
) -> list[Float[Array, "batch tokens width"]]:
    """Applies blocks one after another, and returns the tokens before the first and after each of them.

    Args:
      blocks: modules from tokens to tokens.
      x: the tokens.
      *others: further arguments of every block, such as a mask.
      remat: whether the backward pass recomputes a block from its input instead of storing its intermediate values
        (`jax.checkpoint`). It then needs the intermediate values of one block at a time, and a step costs one more
        forward pass. On CPUs this has an effect from jax 0.12 on; the compiler of earlier versions undoes it.

    Returns:
      A list of arrays, one more than there are blocks.
    """
    apply = nnx.remat(_apply) if remat else _apply
    states = [x]
    for block in blocks:
        states.append(apply(block, states[-1], *others))
    return states


def drop(dropout: nnx.Dropout | None, x: Array) -> Array:
    """Applies dropout to an array; returns it unchanged if `dropout` is None."""
    return x if dropout is None else dropout(x)


def _apply(block: nnx.Module, x: Float[Array, "batch tokens width"], *others: Array | None) -> Array:
    return block(x, *others)
