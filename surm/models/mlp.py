"""The multi-layer perceptron of a Transformer block."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from surm.ops.activations import ACTIVATIONS
from surm.ops.matmul import dot_general


class MLP(nnx.Module):
    """Two linear maps, `up` and `down`, with an activation between them."""

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
          hidden: size between the two maps.
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
