"""Families of structured matrices, as pure functions on dictionaries of arrays.

    name                    ΔW (n×n)                          trained values    reaches rank
    circulant               Z_1(a⊙b)                          2n (or n)         n
    skew_circulant          Z_{-1}(a⊙b)                       2n (or n)         n
    toeplitz                T(b) T(a), symmetric factors      2n (or n, 2n-1)   n
    kronecker               Σ_t kron(b_t, a_t)                2n per term       min(r, n/r)² per term
    low_displacement_rank   Σ_i Z_1(g_i) Z_{-1}(h_i)          2nr               n
    low_rank                b a                               2nr               r
    block_circulant         circulant p×p blocks              n²/p              n

Every module has the same five functions, and works for every n_out×n_in:

    init(key, n_out, n_in, *, <options>, dtype) -> params     ΔW exactly zero, its gradient not
    matvec(params, x, n_out) -> y                             the fast product, over any batch axes
    to_dense(params, n_out, n_in) -> ΔW                       the definition
    num_params(n_out, n_in, *, <options>) -> int              of the trained values as stored
    project(dense, *, <options>) -> params                    the nearest member in Frobenius norm, or near it

and, where it knows a quicker way to the dense matrix, `quick_dense(params, n_out, n_in)`, or to the product with that,
`dense_matvec(params, x, n_out)`. Families whose product is made of convolutions take another kind of them by
`matvec(..., convolve=dft.convolve)`: matmuls alone, where FFTs are slow or not to be had in the type.

Nothing here knows of layers or models: `surm.peft` decides where a matrix goes.
"""

import inspect
from types import ModuleType

from surm.matrices import (
    block_circulant,
    circulant,
    kronecker,
    low_displacement_rank,
    low_rank,
    skew_circulant,
    toeplitz,
)
from surm.matrices.params import Params

__all__ = ["FAMILIES", "Params", "options"]

FAMILIES: dict[str, ModuleType] = {
    "circulant": circulant,
    "skew_circulant": skew_circulant,
    "toeplitz": toeplitz,
    "kronecker": kronecker,
    "low_displacement_rank": low_displacement_rank,
    "low_rank": low_rank,
    "block_circulant": block_circulant,
}


def options(family: str) -> dict[str, bool | int | None]:
    """The structural options of a family, which `init`, `num_params` and `project` take by keyword.

    Args:
      family: a name in `FAMILIES`.

    Returns:
      Each option's default, in the order of the signature.

    Raises:
      ValueError: if there is no such family.

    Examples:
      >>> options("kronecker")
      {'rank': None, 'terms': 1}
    """
    if family not in FAMILIES:
        raise ValueError(f"given family {family!r}; expected one of {', '.join(FAMILIES)}")
    parameters = inspect.signature(FAMILIES[family].num_params).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
