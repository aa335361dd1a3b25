"""The singular vectors of a weight, for families that use them.

An adapter's files do not hold them. They are recomputed each time an adapter is loaded, and are the same up to rounding
if the singular values differ, as those of trained weights do. If singular values are equal (as for an orthogonal
matrix), every machine may choose other vectors; `surm.load_adapter` notices this.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from surm.matrices.algebra.params import working_dtype


def decompose(
    base: Float[Array, "n_out n_in"], rank: int | None = None
) -> tuple[Float[Array, "n_out s"], Float[Array, " s"], Float[Array, "s n_in"]]:
    """The thin singular value decomposition W = U diag(σ) Vᵀ, or the first terms of it.

    A pair of vectors and its negative are equally valid, and machines choose differently. Here the entry of largest
    magnitude in each column of U is positive; if several are equal up to rounding, the first of them is.

    Args:
      base: W.
      rank: s, the terms to keep; terms beyond min(n_out, n_in) are zero. None for min(n_out, n_in).

    Returns:
      U, σ in descending order, and Vᵀ, in float32 at least. Cost O(n_out n_in s).

    Examples:
      >>> import jax.numpy as jnp
      >>> u, s, vt = decompose(jnp.array([[0.0, -3.0], [2.0, 0.0]]))
      >>> u.argmax(0).tolist(), s.round(4).tolist(), (u * s @ vt).round(4).tolist()
      ([0, 1], [3.0, 2.0], [[0.0, -3.0], [2.0, 0.0]])
    """
    u, s, vt = jnp.linalg.svd(base.astype(working_dtype(base)), full_matrices=False)
    sizes = jnp.abs(u)
    large = sizes > (1 - 1e-3) * sizes.max(0, keepdims=True)
    largest = jnp.take_along_axis(u, large.argmax(0)[None], axis=0)[0]
    signs = jnp.where(largest < 0, -1, 1).astype(u.dtype)
    u, vt = u * signs[None], signs[:, None] * vt
    if rank is None:
        return u, s, vt
    missing = max(rank - len(s), 0)
    return (
        jnp.pad(u[:, :rank], ((0, 0), (0, missing))),
        jnp.pad(s[:rank], (0, missing)),
        jnp.pad(vt[:rank], ((0, missing), (0, 0))),
    )
