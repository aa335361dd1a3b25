"""A circulant between two diagonal matrices, block by block where the matrix is not square.

                                [l0 c0 r0   l0 c2 r1   l0 c1 r2]
    ΔW = diag(l) C(c) diag(r)   [l1 c1 r0   l1 c0 r1   l1 c2 r2]      l: (n_out,),  r: (n_in,)
                                [l2 c2 r0   l2 c1 r1   l2 c0 r2]      c: (n_out/p, n_in/p, p)

C is block circulant (`surm.matrices.block_circulant`) with blocks of p×p, where p is by default the greatest common
divisor of the sides; a square matrix has a single block and 3n trained values. ΔW can have any rank. The family
contains every circulant (l = r = 1) and every matrix of rank one (c constant). A product with a vector costs what one
with C costs, and n_out + n_in multiplications. Training starts with l = 0, r = 1 and a random c.

Source: arXiv 2505.00580, for products of circulant and diagonal matrices in turn, of which this is the shortest.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from surm.matrices import block_circulant, low_rank
from surm.matrices.algebra.params import Params, check_keys, check_ndim, check_shapes, input_size, working_dtype

LEARNING_RATE = 1e-2  # the best of 3e-3, 1e-2 and 3e-2 for the demo without dropout in 300 steps
PRODUCT = "transforms"
MEASURED_AS = "block_circulant"

_ROUNDS = 100
"""The largest number of rounds of alternating least squares in a projection."""
_LEAST_GAIN = 1e-5
"""The rounds end when the error falls by less than this fraction of the norm of the given matrix."""


def init(
    key: PRNGKeyArray, n_out: int, n_in: int, *, block_size: int | None = None, dtype: DTypeLike = jnp.float32
) -> Params:
    """Parameters of a zero matrix: c ~ N(0, 1/n_in), l = 0, r = 1.

    Args:
      block_size: p, a common divisor of both sides; None for the greatest.

    Returns:
      {"c": (n_out/p, n_in/p, p), "left": (n_out,), "right": (n_in,)}.

    Raises:
      ValueError: if a size or p is below 1, or p does not divide both sides.

    Examples:
      >>> import jax
      >>> {name: array.shape for name, array in init(jax.random.key(0), 6, 9).items()}
      {'c': (2, 3, 3), 'left': (6,), 'right': (9,)}
    """
    shape = block_circulant.init(key, n_out, n_in, block_size=block_size)["c"].shape
    c = n_in**-0.5 * jax.random.normal(key, shape, dtype)
    return {"c": c, "left": jnp.zeros(n_out, dtype), "right": jnp.ones(n_in, dtype)}


def _check(params: Params, n_out: int, n_in: int) -> None:
    """Refuses diagonals of other lengths; `block_circulant` checks the rest."""
    check_keys(params, ("c", "left", "right"))
    for name in ("left", "right"):
        check_ndim(name, params[name], {"left": "n_out", "right": "n_in"}[name])
    check_shapes(params, {"left": (n_out,), "right": (n_in,)}, f"n_out={n_out}, n_in={n_in}")


def matvec(params: Params, x: Float[Array, "*b n_in"], n_out: int) -> Float[Array, "*b {n_out}"]:
    """The product l ⊙ (C (r ⊙ x)).

    Returns:
      The products, in x's dtype. Cost: that of `block_circulant.matvec`. Only params and x are kept for the backward
      pass.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"c": jnp.array([[[0.0, 1.0]]]), "left": jnp.array([1.0, 2.0]), "right": jnp.array([3.0, 1.0])}
      >>> matvec(params, jnp.array([1.0, 2.0]), 2).round().tolist()
      [2.0, 6.0]
    """
    _check(params, n_out, input_size(x))
    return _product(params, x, n_out)


@functools.partial(jax.jit, static_argnums=2)
@functools.partial(jax.checkpoint, static_argnums=2)
def _product(params, x, n_out):
    left, right = (params[name].astype(working_dtype(params[name], x)) for name in ("left", "right"))
    y = block_circulant.matvec({"c": params["c"]}, jnp.einsum("...i,i->...i", x, right), n_out)
    return jnp.einsum("...o,o->...o", y, left).astype(x.dtype)


def to_dense(params: Params, n_out: int, n_in: int) -> Float[Array, "{n_out} {n_in}"]:
    """The dense matrix diag(l) C diag(r).

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"c": jnp.array([[[0.0, 1.0]]]), "left": jnp.array([1.0, 2.0]), "right": jnp.array([3.0, 1.0])}
      >>> to_dense(params, 2, 2).tolist()
      [[0.0, 1.0], [6.0, 0.0]]
    """
    _check(params, n_out, n_in)
    middle = block_circulant.to_dense({"c": params["c"]}, n_out, n_in)
    return params["left"][:, None] * middle * params["right"][None]


def num_params(n_out: int, n_in: int, *, block_size: int | None = None) -> int:
    """The number of trained values: n_out n_in / p + n_out + n_in.

    Args:
      block_size: p, a common divisor of both sides; None for the greatest.

    Raises:
      ValueError: if a size or p is below 1, or p does not divide both sides.

    Examples:
      >>> num_params(768, 768), num_params(768, 3072)
      (2304, 6912)
    """
    return block_circulant.num_params(n_out, n_in, block_size=block_size) + n_out + n_in


def project(dense: Float[Array, "n_out n_in"], *, block_size: int | None = None) -> Params:
    """A member close to a matrix: the best c, l and r in turn, each for the other two, from the best of three starts.

    One start is block circulant and one has rank one. For the third, every entry is divided by the one above and to
    the left of it in its block (cyclically). If the matrix is a member, the quotients have rank one and tell l and r
    up to factors that c can have, so that this start is exact.

    Args:
      block_size: p, a common divisor of both sides; None for the greatest.

    Returns:
      {"c", "left", "right"}. Cost: an SVD, and O(n_out n_in) for each of up to 100 rounds from each start.

    Raises:
      ValueError: if the matrix is empty, p is below 1, or p does not divide both sides.

    Examples:
      >>> import jax.numpy as jnp
      >>> found = project(jnp.array([[1.0, 2.0], [2.0, 4.0]]))
      >>> to_dense(found, 2, 2).round(4).tolist()
      [[1.0, 2.0], [2.0, 4.0]]
    """
    n_out, n_in = dense.shape
    target = dense.astype(working_dtype(dense))
    p = block_circulant.project(target, block_size=block_size)["c"].shape[2]
    of_rank_one = low_rank.project(target, rank=1)
    starts = [
        (jnp.ones(n_out, target.dtype), jnp.ones(n_in, target.dtype)),
        (of_rank_one["b"][:, 0], of_rank_one["a"][0]),
        _from_quotients(target, p),
    ]
    left, right = (jnp.stack(side) for side in zip(*starts, strict=True))
    errors, left, right = jax.lax.map(lambda start: _alternated(target, p, *start), (left, right))
    best = jnp.argmin(jnp.where(jnp.isnan(errors), jnp.inf, errors))  # quotients of any matrix may overflow
    left, right = left[best], right[best]
    found = {"c": _best_c(target, p, left, right), "left": left, "right": right}
    return {name: array.astype(dense.dtype) for name, array in found.items()}


def _alternated(target: Array, p: int, left: Array, right: Array) -> tuple[Array, Array, Array]:
    """The error and the diagonals after rounds that begin with the best c."""

    def middle(left: Array, right: Array) -> Array:
        return block_circulant.to_dense({"c": _best_c(target, p, left, right)}, *target.shape)

    def error(left: Array, right: Array) -> Array:
        return jnp.linalg.norm(left[:, None] * middle(left, right) * right[None] - target)

    def goes_on(state: tuple) -> Array:
        number, _, _, before, now = state
        return (number < _ROUNDS) & (before - now > _LEAST_GAIN * jnp.linalg.norm(target))

    def once_more(state: tuple) -> tuple:
        number, left, right, _, before = state
        dense = middle(left, right)
        left = _along(target, dense * right[None], 1, left)
        right = _along(target, left[:, None] * dense, 0, right)
        return number + 1, left, right, before, error(left, right)

    first = (0, left, right, jnp.asarray(jnp.inf, target.dtype), error(left, right))
    _, left, right, _, last = jax.lax.while_loop(goes_on, once_more, first)
    return last, left, right


def _along(target: Array, other: Array, axis: int, before: Array) -> Array:
    """The factors with which the rows (or columns) of another matrix are nearest to those of the target.

    Where all factors are equally near, the one before stays, so that it can still be trained.
    """
    square, product = jnp.sum(other**2, axis), jnp.sum(target * other, axis)
    return jnp.where(square > 0, product / jnp.where(square > 0, square, 1), before)


def _best_c(target: Array, p: int, left: Array, right: Array) -> Float[Array, "rows columns p"]:
    """The best circulants between given diagonals: means over wrapped diagonals, weighted by l² r²."""
    weights = left[:, None] * right[None]
    sums, squares = (block_circulant.project(part, block_size=p)["c"] for part in (target * weights, weights**2))
    return jnp.where(squares > 0, sums / jnp.where(squares > 0, squares, 1), 1)


def _from_quotients(target: Array, p: int) -> tuple[Float[Array, " n_out"], Float[Array, " n_in"]]:
    """The diagonals of a member without zeros; those of another matrix are a start and no more."""
    n_out, n_in = target.shape
    grid = target.reshape(n_out // p, p, n_in // p, p)
    quotients = (grid / jnp.roll(grid, (1, 1), (1, 3))).reshape(n_out, n_in)
    quotients = jnp.where(jnp.isfinite(quotients) & (quotients != 0), quotients, 1)
    u, _, vt = jnp.linalg.svd(jnp.sign(quotients), full_matrices=False)
    logarithms = jnp.log(jnp.abs(quotients))
    return _product_along(logarithms.mean(1), u[:, 0], p), _product_along(logarithms.mean(0), vt[0], p)


def _product_along(logarithms: Array, signs: Array, p: int) -> Array:
    """Products of the quotients along each block, from its second entry on; all p of a block together give 1."""
    sizes, turns = logarithms.reshape(-1, p), jnp.where(signs < 0, -1, 1).reshape(-1, p)
    turns = turns * jnp.prod(turns[0]) if p % 2 else turns  # the sign of singular vectors is arbitrary
    sizes = jnp.cumsum((sizes - sizes.mean(1, keepdims=True)).at[:, 0].set(0), axis=1)
    return (jnp.cumprod(turns.at[:, 0].set(1), axis=1) * jnp.exp(sizes)).reshape(-1)
