"""Aurora: one decomposed tensor for the whole model, from which a trained vector per matrix selects ΔW.

    ΔW = v (core ×₃ p) u      u: (R, n_in),   v: (n_out, R),   core: (R, R, R) for the whole model;   p: (R,) per matrix

core ×₃ p is the R×R matrix Σ_k p_k core[:, :, k]. All matrices of one shape together have R (n_in + n_out) + R³ trained
values, and R more each; ΔW has rank at most R. A product with a vector costs R (n_in + n_out + R) multiply-adds, after
R³ for core ×₃ p. Training starts with v = 0; the other parameters are random. The functions here see one matrix.

Source: arXiv 2305.08381.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices.algebra import gated_low_rank
from surm.matrices.algebra.params import (
    Params,
    check_keys,
    check_ndim,
    check_positive,
    check_shapes,
    check_sizes,
    input_size,
)

LEARNING_RATE = 3e-3
PRODUCT = "thin"
MEASURED_AS = "low_rank"

SHARED = {"core": "model", "u": "model", "v": "model"}
"""The parameters of which all matrices of one shape share one array; see `surm.matrices.family.Family.shared`."""


def init(key: PRNGKeyArray, n_out: int, n_in: int, *, rank: int = 64, dtype: DTypeLike = jnp.float32) -> Params:
    """Parameters of a zero matrix: u uniform in ±1/√n_in, core ~ N(0, 1/R), p uniform in ±√(6/(R+1)) (Xavier), v = 0.

    Args:
      rank: R.

    Returns:
      {"core": (R, R, R), "p": (R,), "u": (R, n_in), "v": (n_out, R)}.

    Raises:
      ValueError: if n_out, n_in or rank is below 1.

    Examples:
      >>> import jax
      >>> {name: array.shape for name, array in init(jax.random.key(0), 4, 3, rank=2).items()}
      {'core': (2, 2, 2), 'p': (2,), 'u': (2, 3), 'v': (4, 2)}
    """
    check_sizes(n_out, n_in)
    check_positive("rank", rank)
    of_core, of_p, of_u = jax.random.split(key, 3)
    of_mode, of_input = (6 / (rank + 1)) ** 0.5, n_in**-0.5
    return {
        "core": rank**-0.5 * jax.random.normal(of_core, (rank, rank, rank), dtype),
        "p": jax.random.uniform(of_p, (rank,), dtype, -of_mode, of_mode),
        "u": jax.random.uniform(of_u, (rank, n_in), dtype, -of_input, of_input),
        "v": jnp.zeros((n_out, rank), dtype),
    }


def _core(params: Params, n_out: int, n_in: int) -> Float[Array, "R R"]:
    """The matrix core ×₃ p, after a check of the shapes."""
    check_keys(params, ("core", "p", "u", "v"))
    check_ndim("p", params["p"], "rank")
    rank = params["p"].shape[0]
    why = f"rank {rank}, n_out={n_out}, n_in={n_in}"
    check_shapes(params, {"core": (rank,) * 3, "u": (rank, n_in), "v": (n_out, rank)}, why)
    return jnp.einsum("ijk,k->ij", params["core"], params["p"], precision="highest")


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product v ((core ×₃ p) (u x)).

    Returns:
      The products, computed in the common dtype of x and the parameters and returned in x's dtype. Cost:
      R (n_in + n_out + R) multiply-adds per vector, and R³ once.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"core": jnp.ones((1, 1, 1)), "p": jnp.array([2.0]), "u": jnp.ones((1, 2)), "v": jnp.ones((1, 1))}
      >>> matvec(params, jnp.array([1.0, 2.0]), 1).tolist()
      [6.0]
    """
    core = _core(params, n_out, input_size(x))
    inner = jnp.einsum("...i,ri,qr->...q", x, params["u"], core)
    return jnp.einsum("...q,oq->...o", inner, params["v"]).astype(x.dtype)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix v (core ×₃ p) u.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"core": jnp.ones((1, 1, 1)), "p": jnp.array([2.0]), "u": jnp.ones((1, 2)), "v": jnp.ones((1, 1))}
      >>> to_dense(params, 1, 2).tolist()
      [[2.0, 2.0]]
    """
    core = _core(params, n_out, n_in)
    return jnp.matmul(params["v"], jnp.matmul(core, params["u"], precision="highest"), precision="highest")


def num_params(n_out: int, n_in: int, *, rank: int = 64) -> int:
    """The number of trained values of a matrix that shares none: R (n_in + n_out) + R³ + R.

    Args:
      rank: R.

    Returns:
      The number. Several matrices of one shape in a model share all but R of the values.

    Raises:
      ValueError: if n_out, n_in or rank is below 1.

    Examples:
      >>> num_params(768, 768)
      360512
    """
    check_sizes(n_out, n_in)
    check_positive("rank", rank)
    return rank * (n_in + n_out) + rank**3 + rank


def project(dense: Float[Array, "n_out n_in"], *, rank: int = 64) -> Params:
    """The nearest matrix: the truncated SVD, with the singular values in the core's first slice.

    Args:
      rank: R; components beyond min(n_out, n_in) are zero.

    Returns:
      Parameters as `init` makes them, where p selects the first slice of the core. Cost: one SVD.

    Raises:
      ValueError: if the matrix is empty or rank is below 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> to_dense(project(jnp.array([[3.0, 0.0], [0.0, 4.0]]), rank=1), 2, 2).round(4).tolist()
      [[0.0, 0.0], [0.0, 4.0]]
    """
    found = gated_low_rank.project(dense, rank=rank, initial_rank=rank)
    first = jnp.zeros(rank, dense.dtype).at[0].set(1)
    return {"core": jnp.diag(found["e"])[:, :, None] * first[None, None], "p": first, "u": found["a"], "v": found["b"]}
