"""A stack of Transformer blocks, one after another."""

from collections.abc import Iterable

from flax import nnx
from jaxtyping import Array, Float


def hidden_states(
    blocks: Iterable[nnx.Module], x: Float[Array, "batch tokens width"], *others: Array | None, remat: bool = False
) -> list[Float[Array, "batch tokens width"]]:
    """The tokens before the first block and after each.

    Args:
      blocks: modules from tokens to tokens.
      x: the tokens.
      *others: what every block is given besides, such as a mask.
      remat: whether the backward pass computes a block again from its input rather than keep what is inside it
        (`jax.checkpoint`). Memory for one block instead of all; a step costs one forward pass more. (On CPUs from jax
        0.12 on; the compiler of earlier ones undoes it.)

    Returns:
      As many arrays as there are blocks, and one.
    """
    apply = nnx.remat(_apply) if remat else _apply
    states = [x]
    for block in blocks:
        states.append(apply(block, states[-1], *others))
    return states


def _apply(block: nnx.Module, x: Float[Array, "batch tokens width"], *others: Array | None) -> Array:
    return block(x, *others)
