"""LoRA-XS: a small trained matrix between frozen singular vectors of the weight that it updates.

    ΔW = b r a      b = U: (n_out, r),   a = Σ Vᵀ: (r, n_in)   from the truncated SVD of W, frozen;   r: (r, r), trained

It has r² trained values for every size of W, and rank r. A product with a vector costs r (n_out + n_in + r)
multiply-adds. The frozen factors are not saved; they are recomputed from W each time an adapter is loaded. Training
starts with r = 0. (The paper starts with r ~ N(0, 1e-5²); zero has nearly the same first gradient and leaves the
outputs of the model exactly as they were.)

Source: arXiv 2405.17604.
"""

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
    working_dtype,
)

LEARNING_RATE = 1e-2
LINEAR = ("r",)
PRODUCT = "thin_in_large"
MEASURED_AS = "low_rank"


def fixed(base: Float[Array, "n_out n_in"], *, rank: int = 16) -> Params:
    """The frozen factors: the first r pairs of singular vectors of the weight, with the singular values in a.

    Args:
      base: W, the weight that is updated.
      rank: r; components beyond min(n_out, n_in) are zero.

    Returns:
      {"a": (r, n_in), "b": (n_out, r)}. Cost: one SVD.

    Raises:
      ValueError: if the weight is empty or rank is below 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> abs(fixed(jnp.array([[0.0, 3.0], [2.0, 0.0]]), rank=1)["a"]).round(5).tolist()
      [[0.0, 3.0]]
    """
    check_sizes(*base.shape)
    check_positive("rank", rank)
    u, s, vt = singular.decompose(base, rank)
    return {"a": (s[:, None] * vt).astype(base.dtype), "b": u.astype(base.dtype)}


def init(key: PRNGKeyArray, n_out: int, n_in: int, *, rank: int = 16, dtype: DTypeLike = jnp.float32) -> Params:
    """Parameters of a zero matrix: r = 0.

    Args:
      rank: r.

    Returns:
      {"r": (r, r)}.

    Raises:
      ValueError: if n_out, n_in or rank is below 1.

    Examples:
      >>> import jax
      >>> init(jax.random.key(0), 768, 768, rank=4)["r"].shape
      (4, 4)
    """
    check_sizes(n_out, n_in)
    check_positive("rank", rank)
    return {"r": jnp.zeros((rank, rank), dtype)}


def _check(params: Params, n_out: int, n_in: int) -> None:
    check_keys(params, ("a", "b", "r"))
    check_ndim("r", params["r"], "rank rank")
    rank = params["r"].shape[0]
    why = f"rank {rank}, n_out={n_out}, n_in={n_in}"
    check_shapes(params, {"r": (rank, rank), "a": (rank, n_in), "b": (n_out, rank)}, why)


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product b (r (a x)).

    Returns:
      The products, computed in the common dtype of x and the parameters and returned in x's dtype. Cost:
      r (n_out + n_in + r) multiply-adds per vector.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.ones((1, 3)), "b": jnp.array([[1.0], [2.0]]), "r": jnp.array([[0.5]])}
      >>> matvec(params, jnp.array([1.0, 2.0, 3.0]), 2).tolist()
      [3.0, 6.0]
    """
    _check(params, n_out, input_size(x))
    inner = jnp.einsum("...i,qi,rq->...r", x, params["a"], params["r"])
    return jnp.einsum("...r,or->...o", inner, params["b"]).astype(x.dtype)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix b r a.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.ones((1, 3)), "b": jnp.array([[1.0], [2.0]]), "r": jnp.array([[0.5]])}
      >>> to_dense(params, 2, 3).tolist()
      [[0.5, 0.5, 0.5], [1.0, 1.0, 1.0]]
    """
    _check(params, n_out, n_in)
    right = jnp.matmul(params["r"], params["a"], precision="highest")
    return jnp.matmul(params["b"], right, precision="highest")


def num_params(n_out: int, n_in: int, *, rank: int = 16) -> int:
    """The number of trained values: r².

    Args:
      rank: r.

    Raises:
      ValueError: if n_out, n_in or rank is below 1.

    Examples:
      >>> num_params(768, 768)
      256
    """
    check_sizes(n_out, n_in)
    check_positive("rank", rank)
    return rank**2


def project(dense: Float[Array, "n_out n_in"], *, fixed: Params, rank: int = 16) -> Params:
    """The nearest matrix with these frozen factors: r = b⁺ ΔW a⁺, with pseudo-inverses.

    Args:
      fixed: the frozen factors, from `fixed`.
      rank: r, the rank of the frozen factors.

    Returns:
      {"r"}, the solution of least norm. Cost: one SVD of each factor.

    Raises:
      ValueError: if the matrix is empty, rank is below 1, or the factors do not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> factors = {"a": jnp.array([[2.0, 0.0]]), "b": jnp.array([[1.0], [0.0]])}
      >>> project(jnp.array([[3.0, 4.0], [5.0, 6.0]]), fixed=factors, rank=1)["r"].round(5).tolist()
      [[1.5]]
    """
    check_sizes(*dense.shape)
    check_positive("rank", rank)
    _check({**fixed, "r": jnp.zeros((rank, rank))}, *dense.shape)
    wide = working_dtype(dense)
    left, right = (jnp.linalg.pinv(fixed[name].astype(wide)) for name in ("b", "a"))
    product = jnp.matmul(jnp.matmul(left, dense.astype(wide), precision="highest"), right, precision="highest")
    return {"r": product.astype(dense.dtype)}
