"""Low rank, as in LoRA: the product of a tall and a wide matrix.

              [b b]
    ΔW_ij  =  [b b] [a a a a]      ΔW = b a,   b: (n_out, r),   a: (r, n_in)
              [b b] [a a a a]

It has r (n_out + n_in) trained values and rank r, which may exceed min(n_out, n_in). A product with a vector costs
r (n_out + n_in) multiply-adds. Training starts with b = 0 and a random a. It is the baseline for the other families.

Source: LoRA, arXiv 2106.09685.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices.algebra import singular
from surm.matrices.algebra.params import (
    Params,
    check_keys,
    check_ndim,
    check_positive,
    check_shapes,
    check_sizes,
    input_size,
)

LEARNING_RATE, ADAPTER_LEARNING_RATE = 1e-2, 8e-3
LEARNING_RATE_BY_ROOT = "rank"  # with rank r, one step moves the rows of ΔW √r times further
PRODUCT = "thin"


def init(
    key: PRNGKeyArray,
    n_out: int,
    n_in: int,
    *,
    rank: int = 8,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters of a zero matrix: a uniform in ±1/√n_in (Kaiming uniform with √5, as in PyTorch), b = 0.

    Args:
      rank: r.

    Returns:
      {"a": (r, n_in), "b": (n_out, r)}.

    Raises:
      ValueError: if n_out, n_in or rank is below 1.

    Examples:
      >>> import jax
      >>> {name: array.shape for name, array in init(jax.random.key(0), 4, 3, rank=2).items()}
      {'a': (2, 3), 'b': (4, 2)}
    """
    check_sizes(n_out, n_in)
    check_positive("rank", rank)
    bound = n_in**-0.5
    return {
        "a": jax.random.uniform(key, (rank, n_in), dtype, -bound, bound),
        "b": jnp.zeros((n_out, rank), dtype),
    }


def _factors(params: Params, n_out: int, n_in: int) -> tuple[Float[Array, "r n_in"], Float[Array, "n_out r"]]:
    """The arrays a and b, after a check of their shapes."""
    check_keys(params, ("a", "b"))
    a, b = params["a"], params["b"]
    check_ndim("a", a, "rank n_in")
    why = f"rank {a.shape[0]}, n_out={n_out}, n_in={n_in}"
    check_shapes(params, {"a": (a.shape[0], n_in), "b": (n_out, a.shape[0])}, why)
    return a, b


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product b (a x).

    Returns:
      The products, computed in the common dtype of x and the parameters and returned in x's dtype. Cost:
      r (n_out + n_in) multiply-adds per vector.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.ones((1, 3)), "b": jnp.array([[1.0], [2.0]])}
      >>> matvec(params, jnp.array([1.0, 2.0, 3.0]), 2).tolist()
      [6.0, 12.0]
    """
    a, b = _factors(params, n_out, input_size(x))
    return jnp.einsum("...r,or->...o", jnp.einsum("...i,ri->...r", x, a), b).astype(x.dtype)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix b a.

    Examples:
      >>> import jax.numpy as jnp
      >>> to_dense({"a": jnp.ones((1, 3)), "b": jnp.array([[1.0], [2.0]])}, 2, 3).tolist()
      [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    """
    a, b = _factors(params, n_out, n_in)
    return jnp.matmul(b, a, precision="highest")


def num_params(n_out: int, n_in: int, *, rank: int = 8) -> int:
    """The number of trained values: r (n_out + n_in).

    Args:
      rank: r.

    Raises:
      ValueError: if n_out, n_in or rank is below 1.

    Examples:
      >>> num_params(768, 768, rank=1)
      1536
    """
    check_sizes(n_out, n_in)
    check_positive("rank", rank)
    return rank * (n_out + n_in)


def project(dense: Float[Array, "n_out n_in"], *, rank: int = 8) -> Params:
    """The nearest matrix of rank r: the truncated SVD (Eckart–Young), with √σ in each of the two factors.

    Where a singular value σ is negligible or 0, a gets √σ₁ / 100 instead of √σ, and b the rest of σ. The row of a is
    then not zero, so that the component can still be trained.

    Args:
      rank: r; components beyond min(n_out, n_in) are zero.

    Returns:
      {"a", "b"}. Cost: one SVD.

    Raises:
      ValueError: if the matrix is empty or rank is below 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> to_dense(project(jnp.array([[4.0, 2.0], [2.0, 4.0]]), rank=1), 2, 2).round().tolist()
      [[3.0, 3.0], [3.0, 3.0]]
    """
    check_sizes(*dense.shape)
    check_positive("rank", rank)
    u, s, vt = singular.decompose(dense, rank)
    floor = jnp.where(s[0] > 0, jnp.sqrt(s[0]) / 100, 1)
    of_a = jnp.maximum(jnp.sqrt(s), floor)
    return {"a": (of_a[:, None] * vt).astype(dense.dtype), "b": (u * (s / of_a)[None]).astype(dense.dtype)}
