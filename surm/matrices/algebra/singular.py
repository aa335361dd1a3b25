"""The singular vectors of a weight, for families that are made of them.

Files of adapters do not hold them: they are made anew wherever one is loaded, and are the same up to rounding wherever
the singular values differ, as those of trained weights do. Of equal ones (of an orthogonal matrix, say) every machine
may choose others, of which `surm.load_adapter` takes notice.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from surm.matrices.algebra.params import working_dtype


def decompose(
    base: Float[Array, "n_out n_in"], rank: int | None = None
) -> tuple[Float[Array, "n_out s"], Float[Array, " s"], Float[Array, "s n_in"]]:
    """The thin singular value decomposition W = U diag(σ) Vᵀ, or the first terms of it.

    A pair of vectors and its opposite are as good, and machines choose differently: here the entry of each column of U
    that is largest in size is positive, of several that are as large, up to rounding, the first.

    Args:
      base: W.
      rank: s, the terms to keep; zeros fill up what exceeds min(n_out, n_in). None for min(n_out, n_in).

    Returns:
      U, σ in descending order, Vᵀ; float32 at least. Cost O(n_out n_in s).

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
