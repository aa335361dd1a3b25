"""Families of structured matrices, as pure functions on dictionaries of arrays.

    name                    ΔW (n×n)                          trained values    reaches rank
    circulant               Z_1(a⊙b)                          2n (or n)         n
    skew_circulant          Z_{-1}(a⊙b)                       2n (or n)         n
    toeplitz                T(b) T(a), symmetric factors      2n (or n, 2n-1)   n
    kronecker               Σ_t kron(b_t, a_t)                2n per term       min(r, n/r)² per term
    low_displacement_rank   Σ_i Z_1(g_i) Z_{-1}(h_i)          2nr               n
    low_rank                b a                               2nr               r
    block_circulant         circulant p×p blocks              n²/p              n
    c3a                     the same, divided by n            n²/p              n
    melora                  b_k a_k along the diagonal        2nr               kr
    lora_xs                 U r Σ Vᵀ                          r²                r
    vera                    diag(b) B diag(d) A               n + r             r
    adalora, dora_dynamic   Σ_i e_i b_i a_iᵀ                  r'(2n + 1)        r'
    lora2                   (b' b) diag(e) (a a')             2np + 2r'p + r'   min(r', p)
    lorta                   rows of a head: b diag(c) a       of one tensor     r
    aurora                  v (core ×₃ p) u                   of one tensor     r
    svft                    U diag(m) Vᵀ                      n                 n

Every module has the same five functions, and works for every n_out×n_in:

    init(key, n_out, n_in, *, <options>, dtype) -> params     ΔW exactly zero, its gradient not
    matvec(params, x, n_out) -> y                             the fast product, over any batch axes
    to_dense(params, n_out, n_in) -> ΔW                       the definition
    num_params(n_out, n_in, *, <options>) -> int              of the trained values as stored
    project(dense, *, <options>) -> params                    the nearest member in Frobenius norm, or near it

and, where it knows a quicker way to the dense matrix, `quick_dense(params, n_out, n_in, precision=)`, or to the product
with that, `dense_matvec(params, x, n_out)`. Families whose product is made of convolutions take another kind of them by
`matvec(..., convolve=dft.convolve)`: matmuls alone, where FFTs are slow or not to be had in the type.

What a family may have besides:

    fixed(base, *, <options>) -> params      arrays that never train, made anew from the weight that is updated; matvec
                                             and to_dense take them together with what trains, project as fixed=
    SHARED                                   parameters that are one array for several matrices of a model
    TRAINING                                 options of the training, with their defaults
    LEARNING_RATE                            of AdamW where nobody gives one
    LINEAR                                   what the one array is called in which ΔW is linear, in the forms that have
                                             no other: sums of matrices are sums of arrays there
    MEASURED_AS                              the family whose measured speed its own goes by
    (`surm.peft.multiply.paths`) penalty(params) -> number                what is added to the loss
    GATE, first_scores, next_scores,         the parameter that switches components off, and how important they are:
    scores, surplus                          see `surm.peft.schedules.rank_budget`

Nothing here knows of layers or models: `surm.peft` decides where a matrix goes.
"""

import inspect
from types import ModuleType

from surm.matrices import (
    adalora,
    aurora,
    block_circulant,
    c3a,
    circulant,
    dora_dynamic,
    kronecker,
    lora2,
    lora_xs,
    lorta,
    low_displacement_rank,
    low_rank,
    melora,
    skew_circulant,
    svft,
    toeplitz,
    vera,
)
from surm.matrices.algebra.params import Params

__all__ = ["FAMILIES", "Params", "options", "training_options"]

FAMILIES: dict[str, ModuleType] = {
    "circulant": circulant,
    "skew_circulant": skew_circulant,
    "toeplitz": toeplitz,
    "kronecker": kronecker,
    "low_displacement_rank": low_displacement_rank,
    "low_rank": low_rank,
    "block_circulant": block_circulant,
    "c3a": c3a,
    "melora": melora,
    "lora_xs": lora_xs,
    "vera": vera,
    "adalora": adalora,
    "dora_dynamic": dora_dynamic,
    "lora2": lora2,
    "lorta": lorta,
    "aurora": aurora,
    "svft": svft,
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


def training_options(family: str) -> dict[str, int | float]:
    """The options of a family's training, which no function of its module takes.

    Args:
      family: a name in `FAMILIES`.

    Returns:
      Each option's default.

    Examples:
      >>> training_options("low_rank"), training_options("adalora")["penalty"]
      ({}, 0.1)
    """
    return dict(getattr(FAMILIES[family], "TRAINING", {}))
