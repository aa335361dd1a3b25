"""Circular and skew-circular convolution by FFT.

A convolution of length n whose wrapped part is multiplied by f,

    y_i = Σ_{j<=i} v_{i-j} x_j + f Σ_{j>i} v_{n+i-j} x_j,      f = 1 or f = -1,

is a product of spectra. For f = 1 the spectrum is the real FFT. For f = -1 half the size suffices too:

    n odd     Multiplied by (-1)ᵏ before and after, the convolution is circular, as f is the n-th power of -1.
    n even    Polynomials modulo zⁿ + 1 become, modulo z^(n/2) - i, complex ones of half the length: x_k + i x_{k+n/2}.
              Multiplied by ηᵏ, with η = exp(iπ/n) and so η^(n/2) = i, their convolution is circular, too.

Sources: P. J. Davis, Circulant Matrices, Wiley 1979; for the half length ("right-angle convolution") R. Crandall,
C. Pomerance, Prime Numbers: A Computational Perspective, 2nd ed., Springer 2005, section 9.5.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Complex, Float

from surm.matrices.algebra.params import working_dtype

ALL = slice(None)
"""What convolutions return if nothing else is asked for."""

Convolution = Callable[[Float[Array, " k"], Float[Array, "*b m"], int, int, slice], Float[Array, "*b n_out"]]
"""A function (v, x, n, f, kept) that returns successive entries of convolutions of length n, such as `convolve`."""

_FFTS_GATHER = jax.__version_info__ < (0, 12)


def spectrum(x: Float[Array, "*b k"], n: int, f: int, *, of_batch: bool = True) -> Complex[Array, "*b m"]:
    """The transform under which a convolution of length n with wrap factor f is a product.

    Args:
      x: vectors of length k <= n, float32 or float64; they are padded with zeros to length n.
      n: the length of the convolution.
      f: 1 (circular) or -1 (skew-circular).
      of_batch: whether x is a batch, which may be spread over devices, rather than parameters.

    Returns:
      The spectra along the last axis: n//2 + 1 values, or one fewer for f = -1 and even n.
    """
    if f == -1:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, n - x.shape[-1])])
        if n % 2 == 0:
            halves = jax.lax.complex(x[..., : n // 2], x[..., n // 2 :])
            return _on_its_device(jnp.fft.fft, halves * _eta_powers(n, halves), of_batch)
        x = x * _signs(x)
    return _on_its_device(functools.partial(jnp.fft.rfft, n=n), x, of_batch)


def from_spectrum(z: Complex[Array, "*b m"], n: int, f: int, *, of_batch: bool = True) -> Float[Array, "*b {n}"]:
    """The inverse of `spectrum`.

    Args:
      z: spectra along the last axis.
      n: the length of the convolution.
      f: 1 or -1, as given to `spectrum`.
      of_batch: as given to `spectrum`.

    Returns:
      Real vectors of length n.
    """
    if f == -1 and n % 2 == 0:
        halves = _on_its_device(jnp.fft.ifft, z, of_batch)
        halves = halves * _eta_powers(n, halves).conj()
        return jnp.concatenate([halves.real, halves.imag], axis=-1)
    x = _on_its_device(functools.partial(jnp.fft.irfft, n=n), z, of_batch)
    return x if f == 1 else x * _signs(x)


def _on_its_device(transform: Callable[[Array], Array], x: Array, of_batch: bool) -> Array:
    """Transforms every vector on the device that holds it.

    Before jax 0.12, XLA gathers the vectors of all devices for an FFT (jax#15680), unless the FFT is mapped over the
    devices. If a mesh has explicit axes, x's type tells how its batch is spread. If XLA chooses, this is not
    known in advance; the first axis is then assumed to be the batch, and is moved if that was wrong. (A `vmap` over the
    batch hides the sharding, and so do shardings that are only given to `jax.jit`. XLA then gathers before jax 0.12;
    `dft.convolve` never does.)
    """
    if not (_FFTS_GATHER and of_batch):
        return transform(x)
    sharding = jax.typeof(x).sharding
    mesh, spec = sharding.mesh, [*sharding.spec]
    chosen_by_xla = [name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto]
    devices = math.prod(mesh.shape[name] for name in chosen_by_xla)
    if devices > 1 and x.ndim > 1 and spec[0] is None and x.shape[0] % devices == 0:
        spec[0] = tuple(chosen_by_xla)
    if spec[-1] is not None or not any(spec):
        return transform(x)
    return jax.shard_map(transform, mesh=mesh, in_specs=PartitionSpec(*spec), out_specs=PartitionSpec(*spec))(x)


def for_each(v: Array, x: Array) -> Array:
    """The array v with additional leading axes of length 1, so that it has as many axes as x.

    (If it were broadcast to the shape of an x that is spread over devices, every device would hold a whole copy.)

    Args:
      v: the array that is to be combined with every vector of x.
      x: vectors.

    Returns:
      v, with as many axes as x.
    """
    return jnp.expand_dims(v, range(x.ndim - v.ndim))


def _eta_powers(n: int, like: Complex[Array, "*b m"]) -> Complex[Array, "*_ m"]:
    """The powers exp(iπk/n), one for each entry of a vector."""
    return for_each(jnp.exp(1j * (jnp.pi / n) * jnp.arange(like.shape[-1], dtype=like.real.dtype)), like)


def _signs(like: Float[Array, "*b n"]) -> Float[Array, "*_ n"]:
    """The powers (-1)ᵏ, one for each entry of a vector."""
    return for_each((1 - 2 * (jnp.arange(like.shape[-1]) % 2)).astype(like.dtype), like)


def convolve(
    v: Float[Array, " k"], x: Float[Array, "*b m"], n: int, f: int, kept: slice = ALL, *, of_batch: bool = True
) -> Float[Array, "*b n_out"]:
    """Convolve every vector of x with v, circularly (f = 1) or skew-circularly (f = -1).

    Args:
      v: one vector of length at most n.
      x: vectors of length at most n.
      n: the length of the convolution.
      f: the factor of the wrapped part, 1 or -1.
      kept: the entries to return, a slice with a step of 1.
      of_batch: whether x is a batch, which may be spread over devices, rather than parameters.

    Returns:
      These entries, in the common dtype of v and x, in float32 at least. Cost O(n log n) per vector.

    Examples:
      >>> import jax.numpy as jnp
      >>> convolve(jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0, 3.0]), 3, 1).round().tolist()
      [3.0, 1.0, 2.0]
      >>> convolve(jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0, 3.0]), 3, -1).round().tolist()
      [-3.0, 1.0, 2.0]
    """
    dtype = working_dtype(v, x)
    z = spectrum(x.astype(dtype), n, f, of_batch=of_batch)
    z = z * for_each(spectrum(v.astype(dtype), n, f, of_batch=False), z)
    return from_spectrum(z, n, f, of_batch=of_batch)[..., kept]


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
