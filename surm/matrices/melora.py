"""MELoRA: a block-diagonal matrix of small low-rank matrices.

    [b₁a₁          ]
    [     b₂a₂     ]      b: (k, n_out/k, r),   a: (k, r, n_in/k)
    [          b₃a₃]

The k blocks have rank r each and k r together, with the r (n_out + n_in) trained values of a single low-rank matrix of
rank r. A product with a vector costs r (n_out + n_in) multiply-adds. Training starts with b = 0 and a random a.

Source: arXiv 2402.17263.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices import low_rank
from surm.matrices.algebra import block_factors
from surm.matrices.algebra.params import Params, check_positive, input_size

LEARNING_RATE = 1e-2
PRODUCT = "thin_in_large"
MEASURED_AS = "low_rank"

_MOST_BLOCKS = 8


def init(
    key: PRNGKeyArray,
    n_out: int,
    n_in: int,
    *,
    rank: int = 1,
    blocks: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters of a zero matrix: a uniform in ±√(k/n_in) (Kaiming uniform with √5), b = 0.

    Args:
      rank: r, the rank of each block.
      blocks: k, a common divisor of both sides; None for the largest up to 8.

    Returns:
      {"a": (k, r, n_in/k), "b": (k, n_out/k, r)}.

    Raises:
      ValueError: if a size, r or k is below 1, or k does not divide both sides.

    Examples:
      >>> import jax
      >>> {name: array.shape for name, array in init(jax.random.key(0), 4, 6).items()}
      {'a': (2, 1, 3), 'b': (2, 2, 1)}
    """
    k = block_factors.count(n_out, n_in, blocks, _MOST_BLOCKS)
    check_positive("rank", rank)
    return block_factors.init(key, n_out, n_in, k, rank, dtype)


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product; its part for block k is b_k (a_k x_k).

    Returns:
      The products, computed in the common dtype of x and the parameters and returned in x's dtype. Cost:
      r (n_out + n_in) multiply-adds per vector.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.ones((2, 1, 2)), "b": jnp.array([[[1.0]], [[2.0]]])}
      >>> matvec(params, jnp.array([1.0, 2.0, 3.0, 4.0]), 2).tolist()
      [3.0, 14.0]
    """
    k, _ = block_factors.sizes(params, n_out, input_size(x))
    parts = x.reshape(*x.shape[:-1], k, x.shape[-1] // k)
    y = jnp.einsum("...kr,kor->...ko", jnp.einsum("...ki,kri->...kr", parts, params["a"]), params["b"])
    return y.reshape(*x.shape[:-1], n_out).astype(x.dtype)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix, with the blocks b_k a_k along the diagonal.

    Examples:
      >>> import jax.numpy as jnp
      >>> to_dense({"a": jnp.ones((2, 1, 2)), "b": jnp.array([[[1.0]], [[2.0]]])}, 2, 4).tolist()
      [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0]]
    """
    block_factors.sizes(params, n_out, n_in)
    return jax.scipy.linalg.block_diag(*jnp.matmul(params["b"], params["a"], precision="highest"))


def num_params(n_out: int, n_in: int, *, rank: int = 1, blocks: int | None = None) -> int:
    """The number of trained values: r (n_out + n_in), for every k.

    Args:
      rank: r, the rank of each block.
      blocks: k, a common divisor of both sides; None for the largest up to 8.

    Raises:
      ValueError: if a size, r or k is below 1, or k does not divide both sides.

    Examples:
      >>> num_params(768, 768, rank=2, blocks=4)
      3072
    """
    block_factors.count(n_out, n_in, blocks, _MOST_BLOCKS)
    check_positive("rank", rank)
    return rank * (n_out + n_in)


def project(dense: Float[Array, "n_out n_in"], *, rank: int = 1, blocks: int | None = None) -> Params:
    """The nearest matrix: the truncated SVD of every block on the diagonal.

    Args:
      rank: r, the rank of each block.
      blocks: k, a common divisor of both sides; None for the largest up to 8.

    Returns:
      {"a", "b"}. Cost: k SVDs.

    Raises:
      ValueError: if the matrix is empty, r or k is below 1, or k does not divide both sides.

    Examples:
      >>> import jax.numpy as jnp
      >>> found = project(jnp.array([[1.0, 2.0], [3.0, 4.0]]), blocks=2)
      >>> to_dense(found, 2, 2).round(5).tolist()
      [[1.0, 0.0], [0.0, 4.0]]
    """
    n_out, n_in = dense.shape
    k = block_factors.count(n_out, n_in, blocks, _MOST_BLOCKS)
    of_grid = dense.reshape(k, n_out // k, k, n_in // k)
    diagonal = of_grid[jnp.arange(k), :, jnp.arange(k)]
    return jax.vmap(lambda block: low_rank.project(block, rank=rank))(diagonal)
