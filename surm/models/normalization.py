"""LayerNorm, with the two-pass variance, and RMSNorm, both with hand-written derivatives.

The one-pass variance E[x²] − E[x]² loses precision in float32 by cancellation. The two-pass variance does not, but its
automatic derivative recomputes reductions on a CPU. The hand-written derivative gives both accuracy and speed.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from surm.ops.fusion import computed_once
from surm.ops.manual_axes import vary_together


class LayerNorm(nnx.Module):
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it.

    Source: Ba, Kiros, Hinton, "Layer normalization", arXiv 1607.06450.
    """

    def __init__(self, size: int, *, epsilon: float, dtype: jax.typing.DTypeLike | None = None):
        """Creates scale 1 and bias 0.

        Args:
          size: length of the last axis.
          epsilon: added to the variance.
          dtype: dtype of the result; None keeps the input's. Statistics are taken in at least float32.
        """
        self.scale = nnx.Param(jnp.ones(size))
        self.bias = nnx.Param(jnp.zeros(size))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Returns (x − mean) / √(variance + epsilon) · scale + bias."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        scale, bias = (parameter[...].astype(wide.dtype) for parameter in (self.scale, self.bias))
        normal = layer_norm(wide, scale, bias, self.epsilon)
        return normal.astype(x.dtype if self.dtype is None else self.dtype)


def layer_norm(
    x: Float[Array, "*batch size"], scale: Float[Array, " size"], bias: Float[Array, " size"], epsilon: float
) -> Float[Array, "*batch size"]:
    """Layer normalisation of the last axis, (x − mean)/σ · scale + bias.

    The derivative exists in reverse mode only. It keeps x, the mean and 1/σ, and is, with x̂ = (x − mean)/σ and
    d = dy·scale:  dx = (d − mean(d) − x̂·mean(d·x̂)) / σ.

    Args:
      x: the input.
      scale: multiplies the normalised input; in x's dtype.
      bias: is added to it; in x's dtype.
      epsilon: added to the variance.

    Returns:
      The normalised input.
    """
    return _layer_norm(*vary_together(x, scale, bias), epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x, scale, bias, epsilon):
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    mean = x.mean(axis=-1, keepdims=True)
    centred = x - mean
    inverse_deviation = jax.lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + epsilon)
    return centred * inverse_deviation * scale + bias, (x, mean, inverse_deviation, scale)


def _backward(epsilon, saved, dy):
    return _gradients(saved, dy)


@computed_once
def _gradients(saved, dy):
    x, mean, inverse_deviation, scale = saved
    normal = (x - mean) * inverse_deviation
    d = dy * scale
    dx = d - d.mean(axis=-1, keepdims=True) - normal * (d * normal).mean(axis=-1, keepdims=True)
    batch = tuple(range(x.ndim - 1))
    return dx * inverse_deviation, (dy * normal).sum(batch), dy.sum(batch)


_layer_norm.defvjp(_forward, _backward)


class RMSNorm(nnx.Module):
    """Divides the last axis by the root of its mean square, then scales it.

    Source: Zhang and Sennrich, "Root mean square layer normalization", arXiv 1910.07467.
    """

    def __init__(self, size: int, *, epsilon: float, offset: float = 0.0, dtype: jax.typing.DTypeLike | None = None):
        """Creates a scale that changes nothing, which is 1 − offset.

        Args:
          size: length of the last axis.
          epsilon: added to the mean square.
          offset: is added to the scale.
          dtype: dtype of the result; None keeps the input's. The mean is taken in at least float32.
        """
        self.scale = nnx.Param(jnp.full(size, 1.0 - offset))
        self.epsilon = epsilon
        self.offset = offset
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Returns x / √(mean(x²) + epsilon) · (scale + offset)."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        scale = self.scale[...].astype(wide.dtype)
        normal = rms_norm(wide, scale + self.offset if self.offset else scale, self.epsilon)
        return normal.astype(x.dtype if self.dtype is None else self.dtype)


def rms_norm(
    x: Float[Array, "*batch size"], scale: Float[Array, " size"], epsilon: float
) -> Float[Array, "*batch size"]:
    """Root-mean-square normalisation of the last axis, x/ρ · scale with ρ² = mean(x²) + epsilon.

    The derivative exists in reverse mode only. It keeps x and 1/ρ, and is, with x̂ = x/ρ and d = dy·scale:
    dx = (d − x̂·mean(d·x̂)) / ρ.

    Args:
      x: the input.
      scale: multiplies the normalised input; in x's dtype.
      epsilon: added to the mean square.

    Returns:
      The normalised input.
    """
    return _rms_norm(*vary_together(x, scale), epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rms_norm(x, scale, epsilon):
    return _rms_forward(x, scale, epsilon)[0]


def _rms_forward(x, scale, epsilon):
    inverse_root = jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + epsilon)
    return x * inverse_root * scale, (x, inverse_root, scale)


def _rms_backward(epsilon, saved, dy):
    return _rms_gradients(saved, dy)


@computed_once
def _rms_gradients(saved, dy):
    x, inverse_root, scale = saved
    normal = x * inverse_root
    d = dy * scale
    dx = d - normal * (d * normal).mean(axis=-1, keepdims=True)
    return dx * inverse_root, (dy * normal).sum(tuple(range(x.ndim - 1)))


_rms_norm.defvjp(_rms_forward, _rms_backward)
