"""Circular and skew-circular convolution by small matmuls only, in any dtype.

Write n = p q and a vector as a polynomial in z, its entry mq + s standing at w^m z^s with w = z^q. A convolution of
length n with wrap factor f multiplies modulo w^p = f. A DFT of size p over m sets w to each p-th root ω of f. Then
a product of polynomials of degree q - 1 modulo z^q = ω, a q×q matrix for each ω:

    y = (D⊗I) diag_ω(M_ω) (E⊗I) x,      M_ω = [ v0 ωv2 ωv1 ]      v_s = Σ_m ω^m v_{mq+s}    (here q = 3)
                                              [ v1  v0 ωv2 ]
                                              [ v2  v1  v0 ]

Roots come in conjugate pairs, of which one is enough for real vectors. With p near √n this costs O(n √n) per vector,
which is more than an FFT. But everything is a matmul in float32, bfloat16 or any other dtype, and a batch that is
spread over devices stays where it is. For prime n this is the product with the dense matrix.

Source: for the split, H. J. Nussbaumer, Fast Fourier Transform and Convolution Algorithms, Springer 1982.
"""

import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from surm.matrices.algebra import fourier
from surm.matrices.algebra.diagonals import from_diagonals
from surm.matrices.algebra.params import working_dtype


def convolve(
    v: Float[Array, " k"], x: Float[Array, "*b m"], n: int, f: int, kept: slice = fourier.ALL
) -> Float[Array, "*b n_out"]:
    """Convolve every vector of x with v, circularly (f = 1) or skew-circularly (f = -1).

    Args:
      v: one vector of length at most n.
      x: vectors of length at most n.
      n: the length of the convolution.
      f: the factor of the wrapped part, 1 or -1.
      kept: the entries to return, a slice with a step of 1.

    Returns:
      These entries of the convolutions, in x's dtype and rounded to it after each of three steps. Values that depend
      only on v are computed in v's dtype, in float32 at least. Cost: about 4n (p + q) operations per vector, where
      n = p q with p and q near √n, and less if x or the result is shorter; that of the dense product for prime n.

    Examples:
      >>> import jax.numpy as jnp
      >>> convolve(jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0, 3.0, 4.0]), 4, -1).round().tolist()
      [-4.0, 1.0, 2.0, 3.0]
    """
    first, end, _ = kept.indices(n)
    v, p, n_out = _turned(v.astype(working_dtype(v)), first, n, f), _parts(n), end - first
    if p == 1:
        dense = from_diagonals(jnp.concatenate([f * v[n - x.shape[-1] + 1 :], v[:n_out]]), n_out, x.shape[-1])
        return x @ dense.T.astype(x.dtype)
    angles, weights = _roots(p, f)
    analysis = jnp.array([[(math.cos(m * angle), math.sin(m * angle)) for angle in angles] for m in range(p)])
    synthesis = analysis * jnp.array(weights)[None, :, None] / p
    of_v = jnp.einsum("ms,mkc->kcs", *_split(v, n // p, analysis), precision="highest")
    of_x = jnp.einsum("...ms,mkc->...kcs", *_split(x, n // p, analysis))
    products = jnp.einsum("kcrds,...kds->...kcr", _blocks(of_v, angles).astype(x.dtype), of_x)
    y = jnp.einsum("...kcs,mkc->...ms", products, synthesis[: -(-n_out // (n // p))].astype(x.dtype))
    return y.reshape(*x.shape[:-1], y.shape[-2] * y.shape[-1])[..., :n_out]


def entries(n: int) -> int:
    """How many numbers there are in the matrices M_ω, which are made from v.

    Args:
      n: the length of the convolution; without divisors near √n they are more than a dense matrix has.

    Returns:
      2 n q, where n = p q, up to what real roots save.

    Examples:
      >>> entries(4096), entries(4099)
      (524288, 33603602)
    """
    return 2 * n * (n // _parts(n))


def _turned(v: Float[Array, " k"], first: int, n: int, f: int) -> Float[Array, " {n}"]:
    """v with zeros up to length n, turned so that the entry of a convolution at this place comes first."""
    v = jnp.pad(v, (0, n - v.shape[0]))
    return jnp.concatenate([v[first:], f * v[:first]]) if first else v


@functools.cache
def _parts(n: int) -> int:
    """The divisor p of n that is nearest to √n."""
    return min((p for p in range(1, n + 1) if n % p == 0), key=lambda p: abs(p - math.sqrt(n)))


def _roots(p: int, f: int) -> tuple[list[float], list[float]]:
    """The angles of the p-th roots of f from 0 to π, and how many roots each stands for: 1 if real, else 2."""
    halves = range(0, p + 1, 2) if f == 1 else range(1, p + 1, 2)  # angles in units of π/p
    return [math.pi * half / p for half in halves], [1.0 if half in (0, p) else 2.0 for half in halves]


def _split(
    x: Float[Array, "*b k"], q: int, analysis: Float[Array, "p roots 2"]
) -> tuple[Float[Array, "*b m q"], Float[Array, "m roots 2"]]:
    """Splits vectors into rows of q entries, the last with zeros, and takes as many rows of the matrix of the DFT."""
    m = -(-x.shape[-1] // q)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, m * q - x.shape[-1])])
    return x.reshape(*x.shape[:-1], m, q), analysis[:m].astype(x.dtype)


def _blocks(v: Float[Array, "roots 2 q"], angles: list[float]) -> Float[Array, "roots 2 q 2 q"]:
    """The matrices M_ω, with each complex number a + ib written as the real matrix [[a, -b], [b, a]]."""
    real, imaginary = v[:, 0], v[:, 1]
    cos, sin = (jnp.array([turn(angle) for angle in angles], v.dtype)[:, None] for turn in (math.cos, math.sin))
    wrapped = cos * real - sin * imaginary, sin * real + cos * imaginary
    q = v.shape[-1]
    sides = (jnp.concatenate([w[:, 1:], u], axis=1) for w, u in zip(wrapped, (real, imaginary), strict=True))
    a, b = (from_diagonals(side, q, q) for side in sides)
    return jnp.stack([jnp.stack([a, -b], axis=2), jnp.stack([b, a], axis=2)], axis=1)
