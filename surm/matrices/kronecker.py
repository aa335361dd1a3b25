"""Kronecker products: every entry of a small matrix b, times a small matrix a as a block.

              [b00 a   b01 a]
    ΔW    =   [b10 a   b11 a]      ΔW = Σ_t kron(b_t, a_t),   a_t: (r, n_in/r),   b_t: (n_out/r, r)
              [b20 a   b21 a]

A term has n_out + n_in trained values for every r, and rank up to min(r, n_in/r) min(r, n_out/r). The product with x is
computed without a dense matrix: X is x as an r×(n_in/r) matrix, and y is b X aᵀ read row by row. That costs
min(r (n_out + n_in), 2 n_out n_in / r) multiply-adds per vector and term. Training starts with b = 0 and a random a.

Source: arXiv 2406.17740; G. H. Golub, C. F. Van Loan, Matrix Computations, 4th ed., section 12.3.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices import low_rank
from surm.matrices.algebra.params import (
    Params,
    check_divides,
    check_keys,
    check_ndim,
    check_positive,
    check_shapes,
    check_sizes,
    input_size,
)

LEARNING_RATE, ADAPTER_LEARNING_RATE = 1e-2, 8e-3
PRODUCT = "thin_in_large"


def _structure(n_out: int, n_in: int, rank: int | None, terms: int) -> int:
    """The size r, after a check that the options fit the shape."""
    check_sizes(n_out, n_in)
    check_positive("terms", terms)
    if rank is not None:
        check_divides("rank", rank, n_out, n_in)
        return rank
    common, middle = math.gcd(n_out, n_in), math.sqrt(min(n_out, n_in))
    # min returns the first of equal elements, so a tie goes to the smaller divisor.
    return min((r for r in range(1, common + 1) if common % r == 0), key=lambda r: abs(r - middle))


def init(
    key: PRNGKeyArray,
    n_out: int,
    n_in: int,
    *,
    rank: int | None = None,
    terms: int = 1,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters of a zero matrix: a uniform in ±1/√(n_in/r) (Kaiming uniform with √5), b = 0.

    Args:
      rank: r, a common divisor of both sides; None for the one nearest to √min(n_out, n_in), the smaller one of a tie.
      terms: the number of Kronecker products that are added.

    Returns:
      {"a": (terms, r, n_in/r), "b": (terms, n_out/r, r)}.

    Raises:
      ValueError: if a size or option is below 1, or r does not divide both sides.

    Examples:
      >>> import jax
      >>> {name: array.shape for name, array in init(jax.random.key(0), 768, 768).items()}
      {'a': (1, 24, 32), 'b': (1, 32, 24)}
    """
    r = _structure(n_out, n_in, rank, terms)
    fan_in = n_in // r
    bound = fan_in**-0.5
    return {
        "a": jax.random.uniform(key, (terms, r, fan_in), dtype, -bound, bound),
        "b": jnp.zeros((terms, n_out // r, r), dtype),
    }


def _factors(
    params: Params,
    n_out: int,
    n_in: int,
) -> tuple[Float[Array, "terms r q"], Float[Array, "terms p r"]]:
    """The arrays a and b, after a check of their shapes."""
    check_keys(params, ("a", "b"))
    a, b = params["a"], params["b"]
    check_ndim("a", a, "terms rank n_in/rank")
    terms, r, _ = a.shape
    check_divides("rank", r, n_out, n_in)
    why = f"{terms} terms, rank {r}, n_out={n_out}, n_in={n_in}"
    check_shapes(params, {"a": (terms, r, n_in // r), "b": (terms, n_out // r, r)}, why)
    return a, b


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product Σ_t b_t X a_tᵀ read row by row, where X is x as an r×(n_in/r) matrix.

    Returns:
      The products, computed in the common dtype of x and the parameters and returned in x's dtype. Cost:
      min(r (n_out + n_in), 2 n_out n_in / r) multiply-adds per vector and term.

    Examples:
      >>> import jax.numpy as jnp
      >>> swap = {"a": jnp.eye(2)[None], "b": jnp.array([[[0.0, 1.0], [1.0, 0.0]]])}
      >>> matvec(swap, jnp.array([1.0, 2.0, 3.0, 4.0]), 4).tolist()
      [3.0, 4.0, 1.0, 2.0]
    """
    n_in = input_size(x)
    a, b = _factors(params, n_out, n_in)
    terms, r, _ = a.shape
    blocks = x.reshape(*x.shape[:-1], r, n_in // r)
    if r * (n_out + n_in) * r <= 2 * n_out * n_in:
        right = blocks @ a.reshape(terms * r, n_in // r).T  # one product for all terms, in x's memory order
        y = jnp.einsum("tps,...str->...pr", b, right.reshape(*blocks.shape[:-1], terms, r))
    else:
        left = jnp.einsum("tps,...sq->...tpq", b, blocks)
        y = jnp.einsum("...tpq,trq->...pr", left, a)
    return y.reshape(*x.shape[:-1], n_out).astype(x.dtype)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix Σ_t kron(b_t, a_t).

    Examples:
      >>> import jax.numpy as jnp
      >>> to_dense({"a": jnp.array([[[1.0, 2.0]]]), "b": jnp.array([[[3.0], [4.0]]])}, 2, 2).tolist()
      [[3.0, 6.0], [4.0, 8.0]]
    """
    a, b = _factors(params, n_out, n_in)
    return jax.vmap(jnp.kron)(b.swapaxes(1, 2), a.swapaxes(1, 2)).sum(0).T  # in the memory order of a layer's kernel


def num_params(n_out: int, n_in: int, *, rank: int | None = None, terms: int = 1) -> int:
    """The number of trained values: terms (n_out + n_in), for every r.

    Args:
      rank: r, a common divisor of both sides; None for the default of `init`.
      terms: the number of Kronecker products that are added.

    Raises:
      ValueError: if a size or option is below 1, or r does not divide both sides.

    Examples:
      >>> num_params(768, 768), num_params(768, 768, rank=8)
      (1536, 1536)
    """
    _structure(n_out, n_in, rank, terms)
    return terms * (n_out + n_in)


def project(dense: Float[Array, "n_out n_in"], *, rank: int | None = None, terms: int = 1) -> Params:
    """The nearest sum of Kronecker products: the leading singular triples of the rearranged matrix.

    The rearrangement puts the entries that multiply b_ps into one row, which turns kron(b, a) into the
    rank-one matrix vec(b) vec(a)ᵀ and keeps the Frobenius norm.

    Args:
      rank: r, a common divisor of both sides; None for the default of `init`.
      terms: the number of Kronecker products that are added; those beyond min(n_out, n_in) are zero.

    Returns:
      {"a", "b"}. Cost: one SVD of a matrix with n_out rows and n_in columns.

    Raises:
      ValueError: if a size or option is below 1, or r does not divide both sides.

    Source:
        C. F. Van Loan, N. Pitsianis, Approximation with Kronecker products, 1993.

    Examples:
      >>> import jax.numpy as jnp
      >>> to_dense(project(jnp.array([[3.0, 6.0], [4.0, 8.0]])), 2, 2).round().tolist()
      [[3.0, 6.0], [4.0, 8.0]]
    """
    n_out, n_in = dense.shape
    r = _structure(n_out, n_in, rank, terms)
    p, q = n_out // r, n_in // r
    rearranged = dense.reshape(p, r, r, q).transpose(0, 2, 1, 3).reshape(n_out, n_in)
    factors = low_rank.project(rearranged, rank=terms)
    return {"a": factors["a"].reshape(terms, r, q), "b": factors["b"].T.reshape(terms, p, r)}
