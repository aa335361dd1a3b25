"""SVFT: the frozen singular vectors of the weight, with a trained weight for each pair of them.

    ΔW = U diag(m) Vᵀ      U: (n_out, s),   Vᵀ: (s, n_in)   from the thin SVD of W, frozen;   m: (s,), trained

There are s = min(n_out, n_in) trained values, and ΔW can have any rank up to s. Like a circulant matrix, ΔW is a
diagonal between two fixed bases; here the bases are the singular vectors of W instead of Fourier's. A product with a
vector costs s (n_out + n_in) multiply-adds, up to twice the cost of the layer. The frozen factors are not saved; they
are recomputed from W each time an adapter is loaded. Training starts with m = 0. Of the paper's four variants this is
the plain one, where m is diagonal.

Source: arXiv 2405.19597.
"""

import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices.algebra import singular
from surm.matrices.algebra.params import Params, check_keys, check_shapes, check_sizes, input_size, working_dtype

LEARNING_RATE = 1e-2
LINEAR = ("m",)
MEASURED_AS = "low_rank"


def fixed(base: Float[Array, "n_out n_in"]) -> Params:
    """The frozen factors: the singular vectors of the weight, with u set to 0 where the singular value is 0.

    Args:
      base: W, the weight that is updated.

    Returns:
      {"u": (n_out, s), "v": (s, n_in)}. Cost: one SVD.

    Examples:
      >>> import jax.numpy as jnp
      >>> {name: array.tolist() for name, array in fixed(jnp.array([[3.0, 0.0]])).items()}
      {'u': [[1.0]], 'v': [[1.0, 0.0]]}
    """
    check_sizes(*base.shape)
    u, s, vt = singular.decompose(base)
    told = s > jnp.finfo(s.dtype).eps * max(base.shape) * s[0]  # the other vectors are not determined by W
    u = jnp.where(told[None], u, 0)
    return {"u": u.astype(base.dtype), "v": vt.astype(base.dtype)}


def init(key: PRNGKeyArray, n_out: int, n_in: int, *, dtype: DTypeLike = jnp.float32) -> Params:
    """Parameters of a zero matrix: m = 0.

    Returns:
      {"m": (min(n_out, n_in),)}.

    Examples:
      >>> import jax
      >>> init(jax.random.key(0), 4, 3)["m"].shape
      (3,)
    """
    return {"m": jnp.zeros(num_params(n_out, n_in), dtype)}


def _check(params: Params, n_out: int, n_in: int) -> None:
    check_keys(params, ("m", "u", "v"))
    s = min(n_out, n_in)
    check_shapes(params, {"m": (s,), "u": (n_out, s), "v": (s, n_in)}, f"n_out={n_out}, n_in={n_in}")


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product U (m ⊙ (Vᵀ x)).

    Returns:
      The products, computed in the common dtype of x and the parameters and returned in x's dtype. Cost:
      s (n_out + n_in) multiply-adds per vector, up to twice those of the layer itself.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"u": jnp.array([[0.6], [0.8]]), "v": jnp.array([[1.0]]), "m": jnp.array([5.0])}
      >>> matvec(params, jnp.array([2.0]), 2).round(4).tolist()
      [6.0, 8.0]
    """
    _check(params, n_out, input_size(x))
    inner = jnp.einsum("...i,si,s->...s", x, params["v"], params["m"])
    return jnp.einsum("...s,os->...o", inner, params["u"]).astype(x.dtype)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix U diag(m) Vᵀ.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"u": jnp.array([[0.6], [0.8]]), "v": jnp.array([[1.0]]), "m": jnp.array([5.0])}
      >>> to_dense(params, 2, 1).round(4).tolist()
      [[3.0], [4.0]]
    """
    return quick_dense(params, n_out, n_in)


def quick_dense(
    params: Params, n_out: int, n_in: int, *, precision: PrecisionLike = "highest"
) -> Float[Array, "{n_out} {n_in}"]:
    """`to_dense` with a choice of the matmul's precision.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"u": jnp.array([[0.6], [0.8]]), "v": jnp.array([[1.0]]), "m": jnp.array([5.0])}
      >>> quick_dense(params, 2, 1).round(4).tolist()
      [[3.0], [4.0]]
    """
    _check(params, n_out, n_in)
    wide = working_dtype(params["m"])  # so that bfloat16 is rounded only once
    u, m, v = (params[name].astype(wide) for name in ("u", "m", "v"))
    return jnp.matmul(u * m[None], v, precision=precision).astype(params["m"].dtype)


def num_params(n_out: int, n_in: int) -> int:
    """The number of trained values: min(n_out, n_in).

    Examples:
      >>> num_params(768, 3072)
      768
    """
    check_sizes(n_out, n_in)
    return min(n_out, n_in)


def project(dense: Float[Array, "n_out n_in"], *, fixed: Params) -> Params:
    """The nearest matrix with these frozen factors: m = diag(Uᵀ ΔW V).

    Args:
      fixed: the frozen factors, from `fixed`, whose columns and rows are orthonormal (or 0).

    Returns:
      {"m"}. Cost: n_out n_in s multiply-adds.

    Raises:
      ValueError: if the matrix is empty, or the factors do not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> project(jnp.array([[1.0, 2.0], [3.0, 4.0]]), fixed={"u": jnp.eye(2), "v": jnp.eye(2)})["m"].tolist()
      [1.0, 4.0]
    """
    check_sizes(*dense.shape)
    _check({**fixed, "m": jnp.zeros(min(dense.shape))}, *dense.shape)
    return {"m": jnp.einsum("os,oi,si->s", fixed["u"], dense, fixed["v"], precision="highest").astype(dense.dtype)}
