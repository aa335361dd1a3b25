"""Multi-head self-attention with one 2-D kernel for each of query, key, value and output.

The four maps are separate `nnx.Linear` layers, so that an adapter can target any one of them by its path.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from surm.errors import InputError
from surm.ops.matmul import dot_general


class Attention(nnx.Module):
    """Scaled dot-product self-attention, softmax(Q Kᵀ / √d) V, over the token axis.

    Source: Vaswani et al., "Attention is all you need", arXiv 1706.03762, equation 1 and section 3.2.2.
    """

    def __init__(self, width: int, heads: int, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the four maps.

        Args:
          width: size of a token, in and out.
          heads: number of heads; divides `width`.
          dtype: the dtype to compute in; None promotes input and parameters.
          rngs: source of the initial kernels.

        Raises:
          InputError: if `heads` does not divide `width`.
        """
        if width % heads:
            raise InputError(f"heads={heads} does not divide width={width}")
        init = nnx.initializers.xavier_uniform()
        self.query = nnx.Linear(width, width, kernel_init=init, dtype=dtype, dot_general=dot_general, rngs=rngs)
        self.key = nnx.Linear(width, width, kernel_init=init, dtype=dtype, dot_general=dot_general, rngs=rngs)
        self.value = nnx.Linear(width, width, kernel_init=init, dtype=dtype, dot_general=dot_general, rngs=rngs)
        self.output = nnx.Linear(width, width, kernel_init=init, dtype=dtype, dot_general=dot_general, rngs=rngs)
        self.heads = heads

    def __call__(
        self, x: Float[Array, "batch tokens width"], mask: Bool[Array, "batch tokens"] | None = None
    ) -> Float[Array, "batch tokens width"]:
        """Attends from every token to every token whose mask is True.

        Args:
          x: the tokens.
          mask: True for tokens that may be attended to; None for all.

        Returns:
          The attended tokens, after the output map.
        """
        split = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        heads = (layer(x).reshape(split).swapaxes(1, 2) for layer in (self.query, self.key, self.value))
        return self.output(attend(*heads, mask).swapaxes(1, 2).reshape(x.shape))


def attend(
    query: Float[Array, "batch heads tokens size"],
    key: Float[Array, "batch heads tokens size"],
    value: Float[Array, "batch heads tokens size"],
    mask: Bool[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch heads tokens size"]:
    """Computes softmax(Q Kᵀ / √size) V for every head, with the softmax in at least single precision.

    The axis of heads comes before that of tokens, so that all products are plain batched matrix products, forward and
    backward.

    Args:
      query: the queries Q.
      key: the keys K.
      value: the values V.
      mask: True for tokens that may be attended to; None for all. In a row without any, all tokens have equal weight.

    Returns:
      The weighted means of the values.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bhqs,bhks->bhqk", query, key, preferred_element_type=wide) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(wide).min / 2)
    return jnp.einsum("bhqk,bhks->bhqs", jax.nn.softmax(scores).astype(value.dtype), value)
