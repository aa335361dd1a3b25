"""Convolutions, and with them products with Toeplitz matrices, by FFT or by matmuls alone."""

from collections.abc import Callable

from jaxtyping import Array, Float

from surm.matrices import dft, fourier

TRANSFORMS: dict[str, Callable[[Array, Array, int, int], Array]] = {"fft": fourier.convolve, "dft": dft.convolve}
"""By what a family's `matvec` may be told to convolve."""


def convolve(v: Float[Array, " k"], x: Float[Array, "*b m"], n: int, f: int, transform: str) -> Float[Array, "*b {n}"]:
    """Convolve every vector of x with v, circularly (f = 1) or skew-circularly (f = -1).

    Args:
      v: one vector of length at most n.
      x: vectors of length at most n.
      n: the length of the convolution.
      f: what the wrapped part is multiplied by, 1 or -1.
      transform: a key of `TRANSFORMS`.

    Returns:
      The convolutions.

    Raises:
      ValueError: if there is no such transform.

    Examples:
      >>> import jax.numpy as jnp
      >>> v, x = jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0, 3.0])
      >>> [convolve(v, x, 3, 1, transform).round().tolist() for transform in TRANSFORMS]
      [[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"given transform={transform!r}; expected one of {', '.join(TRANSFORMS)}")
    return TRANSFORMS[transform](v, x, n, f)


def toeplitz(
    diagonals: Float[Array, " d"], x: Float[Array, "*b n_in"], n_out: int, transform: str
) -> Float[Array, "*b {n_out}"]:
    """The product T x, as the middle of one linear convolution of the diagonals with x.

    Args:
      diagonals: n_out + n_in - 1 values, in the order of `diagonals.from_diagonals`.
      x: vectors of length n_in.
      n_out: rows.
      transform: a key of `TRANSFORMS`.

    Returns:
      T x. Cost: a convolution of the first smooth length >= n_out + n_in - 1; what wraps round at that length falls
      on the n_in - 1 entries that are cut off.

    Raises:
      ValueError: if there is no such transform.
    """
    n_in = x.shape[-1]
    length = fourier.smooth_length(n_out + n_in - 1)
    return convolve(diagonals, x, length, 1, transform)[..., n_in - 1 : n_in - 1 + n_out]
