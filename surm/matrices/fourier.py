"""Circular and skew-circular convolution by FFT.

A convolution of length n whose wrapped part is multiplied by f,

    y_i = Σ_{j<=i} v_{i-j} x_j + f Σ_{j>i} v_{n+i-j} x_j,      f = 1 or f = -1,

is a product of spectra. For f = 1 the spectrum is the FFT; for f = -1 the vectors are first multiplied by the
powers of η = exp(iπ/n), a root of ηⁿ = -1, and the result by their conjugates: y = Re( conj(ηᵏ) ifft( fft(ηᵏ
v) fft(ηᵏ x) ) ).

Source: P. J. Davis, Circulant Matrices, Wiley 1979.
"""

import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from surm.matrices.params import working_dtype


def _eta_powers(n: int, dtype: jnp.dtype) -> Complex[Array, " n"]:
    """The powers exp(iπk/n), k < n."""
    return jnp.exp(1j * (jnp.pi / n) * jnp.arange(n, dtype=dtype))


def spectrum(x: Float[Array, "*b k"], n: int, f: int) -> Complex[Array, "*b m"]:
    """The transform under which a convolution of length n with wrap factor f is a product.

    Args:
      x: vectors of length k <= n, float32 or float64; zeros are added up to n.
      n: the length of the convolution.
      f: 1 (circular: n//2 + 1 values, the others are their conjugates) or -1 (skew-circular: n values).

    Returns:
      The spectra along the last axis.
    """
    if f == 1:
        return jnp.fft.rfft(x, n=n)
    eta = _eta_powers(n, x.dtype)[: x.shape[-1]]
    return jnp.fft.fft(x * jnp.broadcast_to(eta, x.shape), n=n)


def from_spectrum(z: Complex[Array, "*b m"], n: int, f: int) -> Float[Array, "*b {n}"]:
    """The inverse of `spectrum`.

    Args:
      z: spectra along the last axis.
      n: the length of the convolution.
      f: 1 or -1, as given to `spectrum`.

    Returns:
      Real vectors of length n.
    """
    if f == 1:
        return jnp.fft.irfft(z, n=n)
    y = jnp.fft.ifft(z)
    return jnp.real(y * jnp.broadcast_to(_eta_powers(n, y.real.dtype).conj(), y.shape))


def convolve(v: Float[Array, " k"], x: Float[Array, "*b m"], n: int, f: int) -> Float[Array, "*b {n}"]:
    """Convolve every vector of x with v, circularly (f = 1) or skew-circularly (f = -1).

    Args:
      v: one vector of length at most n.
      x: vectors of length at most n.
      n: the length of the convolution.
      f: what the wrapped part is multiplied by, 1 or -1.

    Returns:
      The convolutions, in the common type of v and x, float32 at least. Cost O(n log n) a vector.

    Examples:
      >>> import jax.numpy as jnp
      >>> convolve(jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0, 3.0]), 3, 1).round().tolist()
      [3.0, 1.0, 2.0]
      >>> convolve(jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0, 3.0]), 3, -1).round().tolist()
      [-3.0, 1.0, 2.0]
    """
    dtype = working_dtype(v, x)
    z = spectrum(x.astype(dtype), n, f)
    return from_spectrum(z * jnp.broadcast_to(spectrum(v.astype(dtype), n, f), z.shape), n, f)


def smooth_length(n: int) -> int:
    """The smallest length >= n without a prime factor above 7, for which FFTs are quick.

    Args:
      n: the length needed.

    Returns:
      The length to pad to.

    Examples:
      >>> [smooth_length(n) for n in (1, 11, 13, 121, 1535)]
      [1, 12, 14, 125, 1536]
    """
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
