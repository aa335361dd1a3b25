"""The nearest matrix of a bilinear family, by alternating least squares.

For a family Σ_k L(left_k) R(right_k) that is linear in each side, finding the best left for a given right is a
linear least-squares problem, and vice versa. Each half step is solved by conjugate gradients on the
least-squares problem itself (CGLS): it never forms the normal equations, whose squared condition number would
cost float32 half its digits. The error falls at every step; the limit is a local optimum.

Source: Å. Björck, Numerical Methods for Least Squares Problems, SIAM 1996 (CGLS).
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Product = Callable[[Float[Array, "terms n"], Float[Array, "terms n"], int, int], Float[Array, "n_out n_in"]]
Linear = Callable[[Float[Array, "*shape"]], Float[Array, "..."]]


def cgls(
    linear: Linear,
    target: Float[Array, "..."],
    start: Float[Array, "*shape"],
    *,
    iterations: int | Int[Array, ""],
) -> Float[Array, "*shape"]:
    """Minimise ‖target - linear(u)‖ over u, by conjugate gradients from `start`.

    Args:
      linear: a linear function, transposable by JAX.
      target: the desired value of linear(u).
      start: the initial u. The result differs from it by a vector of the row space, so from zero it is the solution
          of least norm.
      iterations: the largest number of steps; the loop ends earlier when the error no longer falls.

    Returns:
      The u found. Its error never exceeds that of `start` by more than rounding. Cost: `linear` and its
      transpose once a step.

    Examples:
      >>> import jax.numpy as jnp
      >>> cgls(lambda u: 2.0 * u, jnp.array([2.0, 4.0]), jnp.zeros(2), iterations=5).round().tolist()
      [1.0, 2.0]
    """
    transposed = jax.linear_transpose(linear, start)

    def squared(u):
        return jnp.vdot(u, u, precision="highest")

    def step(state):
        k, u, residual, direction, slope, error = state
        image = linear(direction)
        length = slope / squared(image)
        residual = residual - length * image
        (gradient,) = transposed(residual)
        new_slope, new_error = squared(gradient), squared(residual)
        # In exact arithmetic the error falls at every step. Where it does not, all that is left is rounding,
        # and a step along a direction whose image is next to nothing could be of any length: refuse it, stop.
        falls = new_error < error
        k, u = jnp.where(falls, k + 1, iterations), jnp.where(falls, u + length * direction, u)
        return k, u, residual, gradient + (new_slope / slope) * direction, new_slope, new_error

    def unfinished(state):
        k, *_, slope, error = state
        return (k < iterations) & (slope > 0) & (error > floor)

    floor = squared(target) * jnp.finfo(target.dtype).eps ** 2
    residual = target - linear(start)
    (gradient,) = transposed(residual)
    state = (jnp.asarray(0), start, residual, gradient, squared(gradient), squared(residual))
    return jax.lax.while_loop(unfinished, step, state)[1]


def _half_step(
    product: Product,
    target: Float[Array, "n_out n_in"],
    left: Float[Array, "terms n"],
    right: Float[Array, "terms n"],
    side: Literal["left", "right"],
    iterations: Int[Array, ""],
) -> Float[Array, "terms n"]:
    """The best left for this right (side "left"), or the best right for this left."""
    n_out, n_in = target.shape
    if side == "left":
        start, function = left, lambda u: product(u, right, n_out, n_in)
    else:
        start, function = right, lambda u: product(left, u, n_out, n_in)
    # Linearising first moves all computations with the fixed side out of the loop.
    _, linear = jax.linearize(function, start)
    return cgls(linear, target, start, iterations=iterations)


def _polish(
    product: Product,
    target: Float[Array, "n_out n_in"],
    left: Float[Array, "terms n"],
    right: Float[Array, "terms n"],
    *,
    sweeps: int,
    iterations: tuple[int, int],
    tolerance: float,
) -> tuple[Float[Array, ""], Float[Array, "terms n"], Float[Array, "terms n"]]:
    """Alternate from one start until the error is at rounding level or hardly falls; returns it with both sides."""
    floor = jnp.finfo(target.dtype).eps * jnp.linalg.norm(target)

    def error_of(left, right):
        return jnp.linalg.norm(target - product(left, right, *target.shape))

    def sweep(state):
        k, _, error, left, right = state
        most = jnp.where(k == 0, *iterations)
        new_left = _half_step(product, target, left, right, "left", most)
        new_right = _half_step(product, target, new_left, right, "right", most)
        new_error = error_of(new_left, new_right)
        new = (new_error, new_left, new_right)
        return k + 1, error, *jax.tree.map(partial(jnp.where, new_error < error), new, (error, left, right))

    def unfinished(state):
        k, before, error, *_ = state
        return (k < sweeps) & (error > floor) & ((k == 0) | (error < (1 - tolerance) * before))

    error = error_of(left, right)
    return jax.lax.while_loop(unfinished, sweep, (0, error, error, left, right))[2:]


@partial(jax.jit, static_argnames=("product", "sweeps", "iterations", "tolerance"))
def alternate(
    product: Product,
    target: Float[Array, "n_out n_in"],
    left: Float[Array, "starts terms n"],
    right: Float[Array, "starts terms n"],
    *,
    sweeps: int = 200,
    iterations: tuple[int, int] = (200, 10),
    tolerance: float = 1e-5,
) -> tuple[Float[Array, "terms n"], Float[Array, "terms n"]]:
    """Polish several starts by alternating least squares and keep the best result.

    Args:
      product: a bilinear function (left, right, n_out, n_in) -> dense, defined at module level (it is a key
          of the cache).
      target: the matrix to approximate.
      left: the starts' left vectors. A start with only one known side has zeros for the other, which is then
          solved for first, because moving a side gains nothing while its partner is zero.
      right: the starts' right vectors.
      sweeps: the largest number of times that both sides are solved for.
      iterations: the largest number of CGLS steps in each half step: in the first sweep, and in the others.
      tolerance: a sweep that lowers the error by less than this share of it is the last.

    Returns:
      The best (left, right) found, never worse than any of the starts.
    """
    with jax.default_matmul_precision("highest"):
        polish = partial(_polish, product, target, sweeps=sweeps, iterations=iterations, tolerance=tolerance)
        errors, left, right = jax.lax.map(lambda start: polish(*start), (left, right))
        best = jnp.argmin(errors)
        return left[best], right[best]
