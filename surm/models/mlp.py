"""The multi-layer perceptron of a Transformer block, and the activations that published models use in it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from surm.matmul import dot_general


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x·Φ(x), with Φ from erf and in single precision at least, as PyTorch computes it.

    (`jax.nn.gelu` takes erfc, which is closer for x far below 0, where the value is tiny, and several times slower on
    a CPU.)

    Source: Hendrycks and Gimpel, arXiv 1606.08415.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
}


class MLP(nnx.Module):
    """Two linear maps with an activation between them."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str,
        *,
        dtype: jax.typing.DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        """Creates the maps.

        Args:
          width: size of a token, in and out.
          hidden: size between the maps `up` and `down`.
          activation: a key of `ACTIVATIONS`.
          dtype: the dtype to compute in; None promotes input and parameters.
          rngs: source of the initial kernels.
        """
        init = nnx.initializers.xavier_uniform()
        self.up = nnx.Linear(width, hidden, kernel_init=init, dtype=dtype, dot_general=dot_general, rngs=rngs)
        self.down = nnx.Linear(hidden, width, kernel_init=init, dtype=dtype, dot_general=dot_general, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies down(activation(up(x)))."""
        return self.down(ACTIVATIONS[self.activation](self.up(x)))
