"""Displacement structure: matrices that change little under a shift on both sides.

The displacement ∇_{A,B}(W) = A W - W B of a structured W has low rank r, and its 2r generator vectors stand
for W. Here A and B are shifts Z_f:

    Z_f = [0 0 0 f]      Z_1 W: rows move one down, the last one to the top
          [1 0 0 0]      W Z_{-1}: columns move one left, the first one, negated, to the end
          [0 1 0 0]
          [0 0 1 0]

Ranks for the pair (Z_1, Z_{-1}): circulant 1, skew-circulant 1, Toeplitz and its inverse 2, a product of
two Toeplitz matrices 4. If Z_1 M - M Z_{-1} = Σ g_i h_iᵀ then M = ½ Σ Z_1(g_i) Z_{-1}(J h_i), where J is the reversal.
So n terms reach every n×n matrix.

Source: V. Y. Pan, Structured Matrices and Polynomials, Birkhäuser 2001.
"""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float

from surm.matrices.algebra.params import Params, check_positive, working_dtype


def shift(n: int, f: float) -> Float[Array, "{n} {n}"]:
    """The dense f-unit-circulant shift Z_f: ones below the diagonal, f in the top right corner.

    Args:
      n: the size; Z_f is (f) for n = 1.
      f: the wrapped entry.

    Returns:
      The matrix.

    Raises:
      ValueError: if n is below 1.

    Examples:
      >>> shift(3, -1.0).tolist()
      [[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    check_positive("n", n)
    return jnp.eye(n, k=-1).at[0, -1].add(f)


def apply_shift(x: Float[Array, "*b n"], f: float) -> Float[Array, "*b n"]:
    """The product Z_f x: every entry moves on by one place, and the last one, multiplied by f, comes first.

    Args:
      x: vectors along the last axis.
      f: the factor of the wrapped entry.

    Returns:
      Z_f x. Cost O(n) per vector.

    Examples:
      >>> import jax.numpy as jnp
      >>> apply_shift(jnp.array([1.0, 2.0, 3.0]), -1.0).tolist()
      [-3.0, 1.0, 2.0]
    """
    return jnp.concatenate([f * x[..., -1:], x[..., :-1]], axis=-1)


def displacement(
    dense: Float[Array, "n_out n_in"],
    left: Float[Array, "n_out n_out"] | None = None,
    right: Float[Array, "n_in n_in"] | None = None,
) -> Float[Array, "n_out n_in"]:
    """The displacement ∇_{A,B}(W) = A W - W B.

    Args:
      dense: W.
      left: A; None for Z_1.
      right: B; None for Z_{-1}.

    Returns:
      The displacement. Cost O(n_out n_in) for the shifts.

    Examples:
      >>> import jax.numpy as jnp
      >>> displacement(jnp.eye(3)).tolist()
      [[0.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    multiply = partial(jnp.matmul, precision="highest")
    rows = apply_shift(dense.T, 1.0).T if left is None else multiply(left, dense)
    if right is not None:
        return rows - multiply(dense, right)
    # W Z_{-1}: the columns one to the left, the first one, negated, at the end.
    return rows - jnp.concatenate([dense[:, 1:], -dense[:, :1]], axis=1)


def displacement_rank(
    dense: Float[Array, "n_out n_in"],
    left: Float[Array, "n_out n_out"] | None = None,
    right: Float[Array, "n_in n_in"] | None = None,
    *,
    tolerance: float | None = None,
) -> int:
    """The numerical rank of A W - W B.

    Args:
      dense: W.
      left: A; None for Z_1.
      right: B; None for Z_{-1}.
      tolerance: singular values up to this fraction of the largest count as zero; None for 16 eps max(n_out, n_in).

    Returns:
      The rank, 0 for W = 0.

    Examples:
      >>> import jax.numpy as jnp
      >>> displacement_rank(jnp.eye(4))
      1
    """
    if tolerance is None:
        tolerance = 16 * max(dense.shape) * float(jnp.finfo(dense.dtype).eps)
    singular = jnp.linalg.svd(displacement(dense, left, right), compute_uv=False)
    return int((singular > tolerance * singular.max()).sum())


def from_dense(dense: Float[Array, "n_out n_in"], *, rank: int) -> Params:
    """Vectors g and h with Σ_{i<=r} Z_1(g_i) Z_{-1}(h_i) = W, for a W of displacement rank at most r.

    The singular triples Z_1 W - W Z_{-1} = Σ σ_i u_i v_iᵀ give g_i = ½ √σ_i u_i and h_i = √σ_i J v_i. For r =
    n this holds for every W; for smaller r and other W the truncated sum is near W, though not the nearest.

    Args:
      dense: W, square.
      rank: r; terms above n are zero.

    Returns:
      {"g": (r, n), "h": (r, n)}, the parameters of `low_displacement_rank`. Cost: one SVD.

    Raises:
      ValueError: if W is not square or rank is below 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> {name: array.shape for name, array in from_dense(jnp.eye(3), rank=2).items()}
      {'g': (2, 3), 'h': (2, 3)}
    """
    check_positive("rank", rank)
    if dense.shape[0] != dense.shape[1]:
        raise ValueError(f"dense has shape {dense.shape}; expected a square matrix")
    u, s, vt = jnp.linalg.svd(displacement(dense.astype(working_dtype(dense))))
    root, padding = jnp.sqrt(s[:rank])[:, None], ((0, max(rank - s.shape[0], 0)), (0, 0))
    g = jnp.pad(0.5 * root * u.T[:rank], padding)
    h = jnp.pad(root * vt[:rank, ::-1], padding)
    return {"g": g.astype(dense.dtype), "h": h.astype(dense.dtype)}
