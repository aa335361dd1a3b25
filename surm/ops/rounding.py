"""Rounds to bfloat16 with a fixed dither, so that small changes of a matrix are not lost.

A weight that is stored in bfloat16 has no bits below those 8, and a change of less than half a unit in the last place
rounds to nothing, in every entry. With a dither, an entry moves to its neighbour for a share of all dithers that is
its distance, counted in units: a matrix moves by the right amount on average over its entries.

    rounded(x) = the bfloat16 at or below |x| + u·d(x), with the sign of x;   u in [0, 1),   d(x) the unit of x

u depends on nothing but the entry's place, so a computation that is repeated gives the same result.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, BFloat16, Float, Float32, UInt32

_LOW = 16
"""The number of bits that float32 has below those of bfloat16."""


@jax.custom_jvp
def dithered(x: Float32[Array, "*stack n m"]) -> BFloat16[Array, "*stack n m"]:
    """Rounds a matrix to bfloat16, each entry up or down so that the mean error is 0.

    Args:
      x: a matrix. An entry that bfloat16 has is returned as it is; one beyond its largest may become infinite.

    Returns:
      One of the two neighbours of each entry in bfloat16, the farther one of them at a share of all places that is the
      distance of the nearer one, in units. The derivative is that of the identity. Cost: a dozen integer operations an
      entry.

    Examples:
      >>> import jax.numpy as jnp
      >>> entries = dithered(jnp.full((100, 100), 1 + 2**-9))  # a quarter of the unit at 1
      >>> sorted({*entries.ravel().tolist()}), round(float(entries.astype(jnp.float32).mean() - 1) * 2**9, 1)
      ([1.0, 1.0078125], 1.0)
    """
    noise = jnp.broadcast_to(_noise(*x.shape[-2:]), x.shape)
    cut = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) >> _LOW << _LOW
    rounded = jax.lax.bitcast_convert_type(cut, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)  # the sum of a NaN's bits could be a number's


@dithered.defjvp
def _dithered_jvp(primals, tangents):
    return dithered(*primals), tangents[0].astype(jnp.bfloat16)


def rounded(x: Float[Array, "..."], dtype: DTypeLike) -> Float[Array, "..."]:
    """Rounds an array to a dtype: a matrix to bfloat16 with the dither, anything else to the nearest number.

    Args:
      x: the array, or a stack of matrices.
      dtype: the dtype of the result.

    Returns:
      The array.

    Examples:
      >>> import jax.numpy as jnp
      >>> entry = 1 + 2**-9  # a quarter of the unit at 1
      >>> [bool((rounded(jnp.full(shape, entry), "bfloat16") > 1).any()) for shape in ((100,), (10, 10))]
      [False, True]
    """
    if jnp.dtype(dtype) == jnp.bfloat16 and x.ndim > 1:
        return dithered(x.astype(jnp.float32))
    return x.astype(dtype)


def _noise(n: int, m: int) -> UInt32[Array, "{n} {m}"]:
    """Integers that look random and uniform below 2^16, of the place alone: a hash of the numbers of row and column."""
    rows, columns = _mixed(jnp.arange(n, dtype=jnp.uint32)), _mixed(jnp.arange(m, dtype=jnp.uint32) + (1 << 24))
    return _mixed(rows[:, None] ^ columns[None]) >> _LOW


def _mixed(h: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The finaliser of MurmurHash3."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
