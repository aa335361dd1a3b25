"""Activation functions: those of published models, and those that an adapter may apply."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x·Φ(x), with Φ computed from erf in float32 at least, as PyTorch does.

    (`jax.nn.gelu` uses erfc, which is more accurate for x far below 0, where the value is tiny, and several times
    slower on a CPU.)

    Source: Hendrycks and Gimpel, arXiv 1606.08415.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "gelu_10": lambda x: jnp.clip(gelu(x), -10, 10),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "mish": jax.nn.mish,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "hardswish": jax.nn.hard_swish,
    "identity": lambda x: x,
    "laplace": lambda x: 0.5 * (1 + jax.lax.erf((x - 0.707107) / (0.282095 * 2**0.5))),
    "sqrtsoftplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
}
"""The activations of the models' MLPs. `surm.models.hf_fields.HF_ACTIVATIONS` has Hugging Face's names for them."""

BRANCH_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    # jax.nn.relu has derivative 0 at 0, where every adapter starts, so the adapter would never train.
    "relu": lambda x: jnp.maximum(x, 0),
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}
"""The activations of adapters; each is 0 at 0 and has a nonzero derivative there."""
