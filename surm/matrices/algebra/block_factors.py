"""Two block-diagonal factors of k thin blocks each: the common part of MELoRA and Monarch matrices.

    a: (k, r, n_in/k),   b: (k, n_out/k, r)

MELoRA multiplies block by block; Monarch lets every block of b read from several blocks of a.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from surm.matrices.algebra.params import Params, check_divides, check_keys, check_ndim, check_shapes, check_sizes


def count(n_out: int, n_in: int, blocks: int | None, most: int) -> int:
    """The number of blocks k, after a check that it fits the shape.

    Args:
      n_out: rows.
      n_in: columns.
      blocks: k, a common divisor of both sides; None for the largest up to `most`.
      most: the largest default.

    Returns:
      k.

    Raises:
      ValueError: if a size or k is below 1, or k does not divide both sides.

    Examples:
      >>> count(12, 18, None, 4), count(12, 18, 6, 4)
      (3, 6)
    """
    check_sizes(n_out, n_in)
    if blocks is None:
        common = math.gcd(n_out, n_in)
        return max(k for k in range(1, most + 1) if common % k == 0)
    check_divides("blocks", blocks, n_out, n_in)
    return blocks


def init(key: PRNGKeyArray, n_out: int, n_in: int, blocks: int, rank: int, dtype: DTypeLike) -> Params:
    """Factors whose product is zero: a uniform in ±√(k/n_in) (Kaiming uniform with √5), b = 0.

    Args:
      key: a key of `jax.random`.
      n_out: rows.
      n_in: columns.
      blocks: k.
      rank: r.
      dtype: of both arrays.

    Returns:
      {"a": (k, r, n_in/k), "b": (k, n_out/k, r)}.

    Examples:
      >>> import jax
      >>> {name: array.shape for name, array in init(jax.random.key(0), 4, 6, 2, 1, "float32").items()}
      {'a': (2, 1, 3), 'b': (2, 2, 1)}
    """
    bound = (n_in // blocks) ** -0.5
    return {
        "a": jax.random.uniform(key, (blocks, rank, n_in // blocks), dtype, -bound, bound),
        "b": jnp.zeros((blocks, n_out // blocks, rank), dtype),
    }


def sizes(params: Params, n_out: int, n_in: int) -> tuple[int, int]:
    """The number of blocks k and the size r, after a check of the parameters.

    Args:
      params: {"a", "b"}.
      n_out: rows.
      n_in: columns.

    Returns:
      (k, r).

    Raises:
      ValueError: if the names or shapes of the parameters do not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> sizes({"a": jnp.zeros((2, 1, 3)), "b": jnp.zeros((2, 2, 1))}, 4, 6)
      (2, 1)
    """
    check_keys(params, ("a", "b"))
    check_ndim("a", params["a"], "blocks rank n_in/blocks")
    k, r, _ = params["a"].shape
    check_divides("blocks", k, n_out, n_in)
    why = f"{k} blocks of rank {r}, n_out={n_out}, n_in={n_in}"
    check_shapes(params, {"a": (k, r, n_in // k), "b": (k, n_out // k, r)}, why)
    return k, r
