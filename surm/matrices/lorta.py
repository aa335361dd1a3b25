"""LoRTA: one tensor of low rank for the whole model, with axes for layers, kinds of matrices, heads, rows and columns.

    ΔW[l, m, h] = b diag(c_layer[l] ⊙ c_kind[m] ⊙ c_head[h]) a      rows h d to (h+1) d of layer l's matrix of kind m

    a: (r, n_in)    b: (d, r), d = n_out / heads    c_head: (heads, r)      one of each for the whole model
    c_layer: (r,)    one per layer          c_kind: (r,)    one for all queries, one for all keys, ...

All matrices of one shape together have r (n_in + d + layers + heads + kinds) trained values; each has rank at most r. A
product with a vector costs r (n_in + n_out) multiply-adds. Training starts with b = 0; the other parameters are random.
The functions here see one matrix.

Source: arXiv 2410.04060.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices.algebra.params import (
    Params,
    check_keys,
    check_ndim,
    check_positive,
    check_shape,
    check_shapes,
    check_sizes,
    input_size,
    working_dtype,
)

LEARNING_RATE = 1e-2
PRODUCT = "thin"
MEASURED_AS = "low_rank"

SHARED = {"a": "model", "b": "model", "c_head": "model", "c_kind": "kind", "c_layer": "layer"}
"""Which matrices of one shape share a parameter: all of the model, all of a kind (query, key, ...), all of a layer."""

_MOST_HEADS = 12
_ROUNDS = 2000
"""The largest number of rounds of alternating least squares in a projection."""


def _heads(n_out: int, n_in: int, rank: int, heads: int | None) -> int:
    """The number of heads, after a check that the options fit the shape."""
    check_sizes(n_out, n_in)
    check_positive("rank", rank)
    divisors = [count for count in range(1, n_out + 1) if n_out % count == 0]
    if heads is None:
        return max(count for count in divisors if count <= _MOST_HEADS)
    if heads not in divisors:
        shown = ", ".join(map(str, divisors[:16]))
        raise ValueError(f"heads must divide n_out, as {shown} do; given {heads=}, {n_out=}")
    return heads


def init(
    key: PRNGKeyArray,
    n_out: int,
    n_in: int,
    *,
    rank: int = 8,
    heads: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters of a zero matrix: b = 0, a uniform in ±1/√n_in, the vectors c uniform in ±1/√r.

    Args:
      rank: r.
      heads: the number of attention heads; None for the largest divisor of n_out up to 12.

    Returns:
      {"a": (r, n_in), "b": (n_out/heads, r), "c_head": (heads, r), "c_kind": (r,), "c_layer": (r,)}.

    Raises:
      ValueError: if a size or rank is below 1, or heads do not divide n_out.

    Examples:
      >>> import jax
      >>> {name: array.shape for name, array in init(jax.random.key(0), 6, 4, rank=2, heads=3).items()}
      {'a': (2, 4), 'b': (2, 2), 'c_head': (3, 2), 'c_kind': (2,), 'c_layer': (2,)}
    """
    heads = _heads(n_out, n_in, rank, heads)
    of_a, of_head, of_kind, of_layer = jax.random.split(key, 4)

    def uniform(key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int) -> Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return {
        "a": uniform(of_a, (rank, n_in), n_in),
        "b": jnp.zeros((n_out // heads, rank), dtype),
        "c_head": uniform(of_head, (heads, rank), rank),
        "c_kind": uniform(of_kind, (rank,), rank),
        "c_layer": uniform(of_layer, (rank,), rank),
    }


def _check(params: Params, n_out: int, n_in: int) -> None:
    check_keys(params, ("a", "b", "c_head", "c_kind", "c_layer"))
    check_ndim("c_head", params["c_head"], "heads rank")
    heads, rank = params["c_head"].shape
    why = f"{heads} heads, rank {rank}, n_out={n_out}, n_in={n_in}"
    check_shape("a", params["a"], (rank, n_in), why)
    _heads(n_out, n_in, rank, heads)
    check_shapes(params, {"b": (n_out // heads, rank), "c_kind": (rank,), "c_layer": (rank,)}, why)


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product; its part for head h is b (c_layer ⊙ c_kind ⊙ c_head[h] ⊙ (a x)).

    Returns:
      The products, computed in the common dtype of x and the parameters and returned in x's dtype. Cost:
      r (n_in + n_out) multiply-adds per vector.

    Examples:
      >>> import jax.numpy as jnp
      >>> one = jnp.ones(1)
      >>> params = {"a": jnp.ones((1, 2)), "b": jnp.ones((1, 1)), "c_head": jnp.array([[1.0], [2.0]])}
      >>> matvec({**params, "c_kind": one, "c_layer": one}, jnp.array([1.0, 2.0]), 2).tolist()
      [3.0, 6.0]
    """
    _check(params, n_out, input_size(x))
    inner = jnp.einsum("...i,ri,r->...r", x, params["a"], params["c_layer"] * params["c_kind"])
    y = jnp.einsum("...r,hr,dr->...hd", inner, params["c_head"], params["b"])
    return y.reshape(*x.shape[:-1], n_out).astype(x.dtype)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix: the rows of the heads, one head below the other.

    Examples:
      >>> import jax.numpy as jnp
      >>> one = jnp.ones(1)
      >>> params = {"a": jnp.ones((1, 2)), "b": jnp.ones((1, 1)), "c_head": jnp.array([[1.0], [2.0]])}
      >>> to_dense({**params, "c_kind": one, "c_layer": one}, 2, 2).tolist()
      [[1.0, 1.0], [2.0, 2.0]]
    """
    _check(params, n_out, n_in)
    left = (params["c_head"][:, None] * params["b"][None]).reshape(n_out, -1)
    return jnp.matmul(left * (params["c_layer"] * params["c_kind"])[None], params["a"], precision="highest")


def num_params(n_out: int, n_in: int, *, rank: int = 8, heads: int | None = None) -> int:
    """The number of trained values of a matrix that shares none: r (n_in + n_out/heads + heads + 2).

    Args:
      rank: r.
      heads: the number of attention heads; None for the largest divisor of n_out up to 12.

    Returns:
      The number. Several matrices of one shape in a model share most of the values.

    Raises:
      ValueError: if a size or rank is below 1, or heads do not divide n_out.

    Examples:
      >>> num_params(768, 768, rank=4)
      3384
    """
    heads = _heads(n_out, n_in, rank, heads)
    return rank * (n_in + n_out // heads + heads + 2)


def project(dense: Float[Array, "n_out n_in"], *, rank: int = 8, heads: int | None = None) -> Params:
    """A member close to a matrix: alternating least squares for a, b and c_head.

    It starts from the leading singular vectors along each axis. With one head, or with heads of size one, the result is
    the truncated SVD, which is the nearest member.

    Args:
      rank: r.
      heads: the number of attention heads; None for the largest divisor of n_out up to 12.

    Returns:
      Parameters as `init` makes them, where c_kind and c_layer are 1.

    Raises:
      ValueError: if the matrix is empty, rank is below 1, or heads do not divide n_out.

    Examples:
      >>> import jax.numpy as jnp
      >>> dense = jnp.array([[1.0, 2.0], [2.0, 4.0]])
      >>> to_dense(project(dense, rank=1), 2, 2).round(4).tolist()
      [[1.0, 2.0], [2.0, 4.0]]
    """
    n_out, n_in = dense.shape
    heads = _heads(n_out, n_in, rank, heads)
    wide = working_dtype(dense)
    size = jnp.max(jnp.abs(dense)).astype(wide)
    tensor = dense.astype(wide).reshape(heads, n_out // heads, n_in) / jnp.where(size > 0, size, 1)
    factors = _decomposed(tensor, rank)
    ones = jnp.ones(rank, dense.dtype)
    found = {"c_head": factors[0], "b": factors[1] * size, "a": factors[2].T}
    return {**{name: array.astype(dense.dtype) for name, array in found.items()}, "c_kind": ones, "c_layer": ones}


def _decomposed(tensor: Float[Array, "h d n"], rank: int) -> tuple[Array, Array, Array]:
    """Factors (h, r), (d, r), (n, r) of a tensor Σ_k c_k ⊗ b_k ⊗ a_k close to the given one (CANDECOMP/PARAFAC)."""
    start = tuple(_leading(jnp.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1), rank) for axis in range(3))

    def improved(factors: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        for axis in range(3):
            factors = _best(tensor, factors, axis)
        return factors

    def unfinished(state: tuple) -> Array:
        step, _, error, before = state
        return (step < _ROUNDS) & (error < before)

    def body(state: tuple) -> tuple:
        step, factors, error, _ = state
        factors = improved(factors)
        rebuilt = jnp.einsum("hr,dr,nr->hdn", *factors, precision="highest")
        return step + 1, factors, jnp.sum((tensor - rebuilt) ** 2), error

    first = (0, start, jnp.asarray(jnp.finfo(tensor.dtype).max, tensor.dtype), jnp.asarray(jnp.inf, tensor.dtype))
    return jax.lax.while_loop(unfinished, body, first)[1]


def _leading(unfolded: Float[Array, "n m"], rank: int) -> Float[Array, "n r"]:
    """The first left singular vectors, followed by fixed random vectors if there are fewer than rank."""
    vectors = jnp.linalg.svd(unfolded, full_matrices=False)[0][:, :rank]
    more = jax.random.normal(jax.random.key(0), (len(unfolded), rank - vectors.shape[1]), unfolded.dtype)
    return jnp.concatenate([vectors, more], axis=1)


def _best(tensor: Array, factors: tuple[Array, Array, Array], axis: int) -> tuple[Array, Array, Array]:
    """The factors, with the factor of one axis replaced by the best one for the two others (least squares)."""
    one, two = (factor for other, factor in enumerate(factors) if other != axis)
    pairs = (one[:, None] * two[None]).reshape(-1, one.shape[1])  # row-wise products of the two others
    unfolded = jnp.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    found = jnp.linalg.lstsq(pairs, unfolded.T)[0].T
    return tuple(found if other == axis else factor for other, factor in enumerate(factors))
