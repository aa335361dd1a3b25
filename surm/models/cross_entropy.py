"""Cross-entropy of every token over a large vocabulary, in chunks of tokens.

The logits of all tokens are the largest array of a training step: 2,048 tokens over 128,256 words take 1 GiB in
float32, and their derivative takes as much again. Here only the logits of one chunk exist at a time. With the logits z
of a token, p = softmax(z) and its target t,

    loss = log Σ exp(z) − z_t,    d loss/d z = p − onehot(t),    d loss/d x = (d z/d x)ᵀ (p − onehot(t)).

The forward pass under differentiation computes d loss/d x beside the loss, while the logits of the chunk exist. The
backward pass multiplies it by the incoming derivative, so it needs no product with the kernel, and the logits are not
computed again. Only if arrays of the head train, as in full fine-tuning, does the backward pass compute the logits of
every chunk a second time for the gradient of these arrays.

The idea of gradients in the forward pass is that of Liger Kernel, Hsu et al., arXiv 2410.10989, section 3.2.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from surm.ops.spread import whole

_ENTRIES, _ROWS = 2**24, 128
"""A chunk has at most so many logits on a device (64 MiB in float32), but no fewer than so many tokens."""

Head = Callable[[Any, Float[Array, "batch tokens width"]], Float[Array, "batch tokens vocabulary"]]
"""A function from a tree of arrays and the tokens before the head to the logits."""


class Scores(NamedTuple):
    """How well a model predicts every token, in float32.

    Attributes:
      loss: the cross-entropy in nats.
      correct: 1 where the most probable token is the target, else 0; the first one counts if several are.
    """

    loss: Float[Array, "batch tokens"]
    correct: Float[Array, "batch tokens"]


def scores(
    head: Head,
    arrays: Any,
    x: Float[Array, "batch tokens width"],
    targets: Int[Array, "batch tokens"],
    *,
    vocabulary: int,
    chunk: int | None = None,
) -> Scores:
    """Computes the cross-entropy of every token without an array of all logits.

    A chunk is a stretch of tokens of all rows, so a batch that is spread over devices stays where it is.

    Args:
      head: the function to the logits. It is called once for each chunk.
      arrays: its arrays. Random keys among them get the number of the chunk folded in, so chunks draw different masks.
      x: the tokens that the head reads.
      targets: the token that should be predicted at each place.
      vocabulary: the number of logits of a token.
      chunk: the number of tokens of a row in a chunk; None chooses it by the vocabulary and the batch.

    Returns:
      Loss and correctness of every token. The loss can be differentiated in reverse mode only.
    """
    tokens = x.shape[1]
    chunks = math.ceil(tokens / (chunk or _chunk(x.shape[0], tokens, vocabulary)))
    leaves, structure = jax.tree.flatten(arrays)
    leaves = [whole(leaf) if jnp.issubdtype(leaf.dtype, jnp.number) else leaf for leaf in leaves]  # once for all chunks
    of_leaves = lambda leaves, x: head(jax.tree.unflatten(structure, leaves), x)  # noqa: E731
    loss, correct = _scores(of_leaves, _apart(x, chunks), leaves, _apart(targets, chunks))
    return Scores(*(_together(each)[:, :tokens] for each in (loss, correct)))


def _chunk(batch: int, tokens: int, vocabulary: int) -> int:
    devices = jax.sharding.get_abstract_mesh().shape.get("data", 1)
    rows = batch // devices if batch % devices == 0 else batch  # on one device
    return min(max(max(_ENTRIES // vocabulary, _ROWS) // max(rows, 1), 1), max(tokens, 1))


def _apart(array: Array, chunks: int) -> Array:
    """Splits the second axis into chunks, which become the first axis; zeros fill the last one."""
    rest = -array.shape[1] % chunks
    array = jnp.pad(array, [(0, 0), (0, rest), *[(0, 0)] * (array.ndim - 2)])
    return jnp.moveaxis(array.reshape(array.shape[0], chunks, -1, *array.shape[2:]), 1, 0)


def _together(array: Float[Array, "chunks batch chunk"]) -> Float[Array, "batch tokens"]:
    return jnp.moveaxis(array, 0, 1).reshape(array.shape[1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(head, x, arrays, targets):
    return _pass(head, x, arrays, targets, slopes=False)[:2]


def _forward(head, x, arrays, targets):
    trains = [leaf.perturbed for leaf in arrays]
    moves, (x, *arrays, targets) = x.perturbed, [leaf.value for leaf in (x, *arrays, targets)]
    loss, correct, slopes = _pass(head, x, arrays, targets, slopes=moves)
    if not any(trains):
        return (loss, correct), (slopes, None)
    trained = [leaf if own else None for leaf, own in zip(arrays, trains, strict=True)]
    fixed = [None if own else leaf for leaf, own in zip(arrays, trains, strict=True)]
    return (loss, correct), (slopes, (x, trained, fixed, targets))


def _backward(head, saved, slopes_of_results):
    d_loss = slopes_of_results[0]
    if isinstance(d_loss, SymbolicZero):
        d_loss = jnp.zeros(d_loss.shape, d_loss.dtype)
    slopes, of_head = saved
    dx = None if slopes is None else (d_loss[..., None] * slopes).astype(slopes.dtype)
    return dx, of_head and _of_arrays(head, *of_head, d_loss), None


_scores.defvjp(_forward, _backward, symbolic_zeros=True)


def _pass(head, x, arrays, targets, *, slopes: bool):
    """Loss and correctness of all chunks, and the slope of every token's loss by x if it is asked for."""

    def of_chunk(_, chunk):
        number, x, targets = chunk
        of_x = lambda x: head(_own(arrays, number), x)  # noqa: E731
        logits, back = jax.vjp(of_x, x) if slopes else (of_x(x), None)
        loss, correct, slope = _of_logits(logits, targets)
        return None, (loss, correct, back(slope.astype(logits.dtype))[0] if slopes else None)

    return jax.lax.scan(of_chunk, None, (jnp.arange(len(x)), x, targets))[1]


def _of_arrays(head, x, trained, fixed, targets, d_loss):
    """The gradient of the head's trained arrays, summed over the chunks in float32; None for all others."""

    def add(total, chunk):
        number, x, targets, d_loss = chunk

        def weighted(trained):
            arrays = [other if own is None else own for own, other in zip(trained, fixed, strict=True)]
            return head(_own(arrays, number), x)

        logits, back = jax.vjp(weighted, trained)
        slope = _of_logits(logits, targets)[2] * d_loss[..., None]
        return jax.tree.map(jnp.add, total, back(slope.astype(logits.dtype))[0]), None

    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), trained)
    total = jax.lax.scan(add, nothing, (jnp.arange(len(x)), x, targets, d_loss))[0]
    return jax.tree.map(lambda sum, leaf: sum.astype(leaf.dtype), total, trained)


def _of_logits(logits: Float[Array, "*batch vocabulary"], targets: Int[Array, "*batch"]) -> tuple[Array, Array, Array]:
    """Loss, correctness and the slope of the loss by the logits, in at least single precision."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    top = wide.max(axis=-1, keepdims=True)
    words = jax.lax.broadcasted_iota(targets.dtype, wide.shape, wide.ndim - 1)
    first = jnp.where(wide == top, words, wide.shape[-1]).min(axis=-1)  # a CPU is quicker at this than at argmax
    powers = jnp.exp(wide - top)
    total = powers.sum(axis=-1, keepdims=True)
    of_target = jnp.take_along_axis(wide, targets[..., None], axis=-1, mode="clip")
    loss = (jnp.log(total) + top - of_target)[..., 0]
    slope = powers / total - (words == targets[..., None])
    return loss, (first == targets).astype(loss.dtype), slope


def _own(arrays: list[Array], number: Int[Array, ""]) -> list[Array]:
    """The head's arrays for one chunk."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [jax.random.fold_in(leaf, number) if is_key(leaf) else leaf for leaf in arrays]
