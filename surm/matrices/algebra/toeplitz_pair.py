"""Products of two symmetric Toeplitz matrices: fast multiplication, and the nearest such product.

Write W = T(b) T(a), n_out <= n_in = n, and take differences along its diagonals. All but two terms cancel:

    E_ij = W_{i+1,j+1} - W_ij,     E = u vᵀ - w (Jv)ᵀ,     u_i = b_{i+1},   w_i = b_{n-1-i},   v_j = a_{j+1}

with J the reversal. For P± = (I ± J)/2 both E P+ = (u - w)(P+ v)ᵀ and E P- = (u + w)(P- v)ᵀ have rank one. Up to scale,
their right singular vectors are the symmetric and the antisymmetric part of a_1, a_2, ..., and their left ones those of
b_1, b_2, ..., of which only the first and the last n_out - 1 entries matter. So a lies in the span of 3 known vectors
α_k, and b in the span of 3 known vectors β_j and the unit vectors of the other entries. Then W = Σ_jk X_jk T(β_j)
T(α_k) is linear in X. Finding X is a small least-squares problem; its solution has rank one, and an SVD splits it into
the coefficients of b and of a.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from surm.matrices.algebra import alternating, diagonals, fourier
from surm.matrices.algebra.params import Params

_START_ITERATIONS = 200  # the number of CGLS steps to solve for X


def matvec(
    b: Float[Array, " n"], a: Float[Array, " n"], x: Float[Array, "*b n_in"], n_out: int, convolve: fourier.Convolution
) -> Float[Array, "*b {n_out}"]:
    """The first n_out entries of the product T(b) (T(a) x), with n×n matrices T(b) and T(a).

    Args:
      b: first column of the left factor.
      a: first column of the right factor.
      x: vectors of length n_in <= n.
      n_out: the number of entries to keep, at most n.
      convolve: the function that convolves.

    Returns:
      The products. Cost: two convolutions of length at most 2n - 1.
    """
    n = a.shape[0]
    inner = diagonals.product(diagonals.symmetric(a, n, x.shape[-1]), x, n, convolve)
    return diagonals.product(diagonals.symmetric(b, n_out, n), inner, n_out, convolve)


def project(dense: Float[Array, "n_out n_in"]) -> Params:
    """A product T(b) T(a) near a matrix: the better of two starts, polished by alternating least squares.

    One start is a = e_0 with the best b, the nearest symmetric Toeplitz matrix; the other comes from the
    differences (see above). The result is a local optimum, never worse than the nearest single symmetric Toeplitz
    matrix. Members are recovered to rounding where X is unique, which needs n >= 7 and a shorter side of
    at least n/2. Otherwise the error can reach a tenth of the largest entry.

    Args:
      dense: any matrix, float32 or float64.

    Returns:
      {"a", "b"}.
    """
    n_out, n_in = dense.shape
    if n_out > n_in:
        # Wᵀ = T(a) T(b): the same problem with the factors' roles exchanged.
        swapped = project(dense.T)
        return {"a": swapped["b"], "b": swapped["a"]}
    b, a = _fit(dense)
    return {"a": a[0], "b": b[0]}


@jax.jit
def _fit(dense: Float[Array, "n_out n"]) -> tuple[Float[Array, "1 n"], Float[Array, "1 n"]]:
    """The b and a of `project`; for n_out <= n_in = n."""
    nothing = jnp.zeros(dense.shape[1], dense.dtype)  # the side that is zero is solved for first
    with jax.default_matmul_precision("highest"):
        b, a = _from_differences(dense)
    left, right = jnp.stack([nothing, b]), jnp.stack([nothing.at[0].set(1.0), a])
    return alternating.alternate(_product, dense, left[:, None], right[:, None])


def _product(
    b: Float[Array, "terms n"], a: Float[Array, "terms n"], n_out: int, n_in: int
) -> Float[Array, "{n_out} {n_in}"]:
    """Σ_k T(b_k) T(a_k) by FFT, bilinear in b and a, for `alternating`."""
    x = jnp.eye(n_in, dtype=a.dtype)
    return jax.vmap(lambda b_k, a_k: matvec(b_k, a_k, x, n_out, fourier.convolve))(b, a).sum(0).T


def _from_differences(dense: Float[Array, "n_out n"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The b and a from the differences along the diagonals; for n_out <= n_in = n."""
    basis_b, basis_a = _bases(dense)
    coefficients = _solve_lifted(dense, basis_b, basis_a)
    beta, s, gamma = jnp.linalg.svd(coefficients, full_matrices=False)
    return s[0] * beta[:, 0] @ basis_b, gamma[0] @ basis_a


def _solve_lifted(
    dense: Float[Array, "n_out n"], basis_b: Float[Array, "q n"], basis_a: Float[Array, "3 n"]
) -> Float[Array, "q 3"]:
    """The X of least ‖W - Σ_jk X_jk T(basis_b_j) T(basis_a_k)‖."""

    def linear(x: Float[Array, "q 3"]) -> Float[Array, "n_out n"]:
        return _product(x.T @ basis_b, basis_a, *dense.shape)

    start = jnp.zeros((basis_b.shape[0], 3), dense.dtype)
    return alternating.cgls(linear, dense, start, iterations=_START_ITERATIONS)


def _bases(dense: Float[Array, "n_out n"]) -> tuple[Float[Array, "q n"], Float[Array, "3 n"]]:
    """Vectors that span b, and vectors that span a: the β and α above."""
    n_out, n = dense.shape
    first = jnp.zeros((1, n), dense.dtype).at[0, 0].set(1.0)
    if n_out == 1:  # no differences; a = e_0 does
        return jnp.eye(n, dtype=dense.dtype), jnp.pad(first, ((0, 2), (0, 0)))
    differences = dense[1:, 1:] - dense[:-1, :-1]
    left, right = [first], [first]
    for sign in (1, -1):  # P+, then P-
        u, _, vt = jnp.linalg.svd((differences + sign * differences[:, ::-1]) / 2, full_matrices=False)
        seen, known = (jnp.pad(v, (0, n - n_out)) for v in (u[:, 0], jnp.ones_like(u[:, 0])))
        part = (seen - sign * seen[::-1]) / jnp.maximum(known + known[::-1], 1)
        left.append(jnp.pad(part, (1, 0))[None])
        right.append(jnp.pad(vt[0], (1, 0))[None])
    unseen = jnp.eye(n, dtype=dense.dtype)[n_out : max(n - n_out + 1, n_out)]
    return jnp.concatenate([*left, unseen]), jnp.concatenate(right)
