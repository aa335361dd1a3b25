"""Monarch matrices: two block-diagonal factors of k blocks each, with a permutation between them and one behind.

    ΔW = P B P' A       A = diag(a_1, ..., a_k)       a: (k, r, n_in/k),   b: (k, n_out/k, r)
                        B = diag(b_1, ..., b_k)

The block-diagonal A turns x into k·r values. P' gives block m of B every k-th of them, beginning with the m-th, and P
writes entry o of the answer of block m into y at o·k + m. If the rows of ΔW are sorted by the block that they come
from, and r is a multiple of k, it is a grid of k×k blocks, each of which can be any matrix of rank r/k. So there are
r (n_out + n_in) trained values as in a low-rank matrix of rank r, but the rank reaches k·r. By default r = k. With
k = r = √n these are the matrices of the paper of 2022. A product with a vector costs r (n_out + n_in) multiply-adds.
Training starts with b = 0 and a random a.

Source: arXiv 2204.00595; as an update, MoRe, arXiv 2408.17383, whose factors w1 and w2 are a and b.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from surm.matrices import low_rank
from surm.matrices.algebra import block_factors
from surm.matrices.algebra.params import Params, check_positive, input_size

LEARNING_RATE = 1e-2  # the best of 3e-3, 1e-2 and 3e-2 for the demo with r = 4; a larger r needs a smaller one
PRODUCT = "thin_in_large"
MEASURED_AS = "low_rank"

_MOST_BLOCKS = 4
"""The default of MoRe, which found that more blocks help little."""


def _structure(n_out: int, n_in: int, rank: int | None, blocks: int | None) -> tuple[int, int]:
    """The number of blocks k and the size r, after a check that they fit the shape."""
    k = block_factors.count(n_out, n_in, blocks, _MOST_BLOCKS)
    rank = k if rank is None else rank
    check_positive("rank", rank)
    return k, rank


def init(
    key: PRNGKeyArray,
    n_out: int,
    n_in: int,
    *,
    rank: int | None = None,
    blocks: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters of a zero matrix: a uniform in ±√(k/n_in) (Kaiming uniform with √5), b = 0.

    Args:
      rank: r, the number of values between the factors for each block; None for as many as blocks.
      blocks: k, a common divisor of both sides; None for the largest up to 4.

    Returns:
      {"a": (k, r, n_in/k), "b": (k, n_out/k, r)}.

    Raises:
      ValueError: if a size, r or k is below 1, or k does not divide both sides.

    Examples:
      >>> import jax
      >>> {name: array.shape for name, array in init(jax.random.key(0), 8, 12).items()}
      {'a': (4, 4, 3), 'b': (4, 2, 4)}
    """
    k, r = _structure(n_out, n_in, rank, blocks)
    return block_factors.init(key, n_out, n_in, k, r, dtype)


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product P B P' A x: two batched products of small matrices, with a transposition behind each.

    Returns:
      The products, computed in the common dtype of x and the parameters and returned in x's dtype. Cost:
      r (n_out + n_in) multiply-adds per vector.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.eye(2)[:, None].repeat(2, 1), "b": jnp.ones((2, 1, 2))}
      >>> matvec(params, jnp.array([1.0, 2.0, 3.0, 4.0]), 2).tolist()
      [5.0, 5.0]
    """
    k, r = block_factors.sizes(params, n_out, input_size(x))
    parts = x.reshape(*x.shape[:-1], k, x.shape[-1] // k)
    middle = jnp.einsum("...ji,jqi->...jq", parts, params["a"]).reshape(*x.shape[:-1], r, k)
    y = jnp.einsum("...tm,mot->...om", middle, params["b"])
    return y.reshape(*x.shape[:-1], n_out).astype(x.dtype)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix P B P' A.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.eye(2)[:, None].repeat(2, 1), "b": jnp.ones((2, 1, 2))}
      >>> to_dense(params, 2, 4).tolist()
      [[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]]
    """
    k, r = block_factors.sizes(params, n_out, n_in)
    rows = jax.scipy.linalg.block_diag(*params["a"]).reshape(r, k, n_in)
    return jnp.einsum("tmi,mot->omi", rows, params["b"], precision="highest").reshape(n_out, n_in)


def quick_dense(
    params: Params, n_out: int, n_in: int, *, precision: jax.lax.PrecisionLike = "highest"
) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix, block by block of the grid if r is a multiple of k, which is k times cheaper; else `to_dense`.

    Args:
      precision: that of the products; `to_dense` has the highest.

    Returns:
      The matrix. Cost: n_out n_in r / k multiply-adds, or k times that.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.ones((2, 2, 2)), "b": jnp.ones((2, 1, 2))}
      >>> quick_dense(params, 2, 4).tolist()
      [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    """
    k, r = block_factors.sizes(params, n_out, n_in)
    if r % k:
        return to_dense(params, n_out, n_in)
    of_a = params["a"].reshape(k, r // k, k, n_in // k)  # input block, component, output block
    of_b = params["b"].reshape(k, n_out // k, k, r // k)  # output block, row, input block, component
    return jnp.einsum("mojs,jsmi->omji", of_b, of_a, precision=precision).reshape(n_out, n_in)


def num_params(n_out: int, n_in: int, *, rank: int | None = None, blocks: int | None = None) -> int:
    """The number of trained values: r (n_out + n_in), for every k.

    Args:
      rank: r, the number of values between the factors for each block; None for as many as blocks.
      blocks: k, a common divisor of both sides; None for the largest up to 4.

    Raises:
      ValueError: if a size, r or k is below 1, or k does not divide both sides.

    Examples:
      >>> num_params(768, 768), num_params(768, 768, rank=1)
      (6144, 1536)
    """
    _, r = _structure(n_out, n_in, rank, blocks)
    return r * (n_out + n_in)


def project(dense: Float[Array, "n_out n_in"], *, rank: int | None = None, blocks: int | None = None) -> Params:
    """The nearest matrix: an SVD of every block of the k×k grid, truncated to r/k triples, rounded up or down by block.

    Args:
      rank: r, the number of values between the factors for each block; None for as many as blocks.
      blocks: k, a common divisor of both sides; None for the largest up to 4.

    Returns:
      {"a", "b"}. Cost: k² SVDs.

    Raises:
      ValueError: if the matrix is empty, r or k is below 1, or k does not divide both sides.

    Examples:
      >>> import jax.numpy as jnp
      >>> found = project(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
      >>> to_dense(found, 2, 2).round(5).tolist()
      [[1.0, 2.0], [3.0, 4.0]]
    """
    n_out, n_in = dense.shape
    k, r = _structure(n_out, n_in, rank, blocks)
    grid = dense.reshape(n_out // k, k, k, n_in // k).transpose(1, 2, 0, 3)
    each = lambda block: low_rank.project(block, rank=-(-r // k))  # noqa: E731
    factors = jax.vmap(jax.vmap(each))(grid)
    source, component = _between(k, r)
    of_b = factors["b"][jnp.arange(k)[:, None], source, :, component]  # output block, slot, row
    slots = jnp.arange(k * r).reshape(k, r)  # input block, component
    of_a = factors["a"][slots % k, jnp.arange(k)[:, None], component[slots % k, slots // k]]
    return {"a": of_a, "b": of_b.swapaxes(1, 2)}


def _between(k: int, r: int) -> tuple[Int[Array, "k r"], Int[Array, "k r"]]:
    """For each block of B and each of its r inputs: the block of A it comes from, and how many before it do, too."""
    source = (jnp.arange(r)[None] * k + jnp.arange(k)[:, None]) // r
    earlier = source[:, :, None] == source[:, None, :]
    return source, jnp.tril(earlier, -1).sum(2)
