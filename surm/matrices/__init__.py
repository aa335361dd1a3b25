"""Families of structured matrices ΔW, as pure functions on dictionaries of arrays.

    name                    ΔW (n×n)                          trained values    reaches rank
    circulant               Z_1(a⊙b)                          2n (or n)         n
    skew_circulant          Z_{-1}(a⊙b)                       2n (or n)         n
    toeplitz                T(b) T(a), symmetric factors      2n (or n, 2n-1)   n
    kronecker               Σ_t kron(b_t, a_t)                2n per term       min(r, n/r)² per term
    low_displacement_rank   Σ_i Z_1(g_i) Z_{-1}(h_i)          2nr               n
    low_rank                b a                               2nr               r
    block_circulant         circulant p×p blocks              n²/p              n
    c3a                     the same, divided by n            n²/p              n
    monarch                 P B P' A, block-diagonal    2nr               kr
    diagonal_circulant      diag(l) C(c) diag(r)        3n                n
    melora                  b_k a_k along the diagonal        2nr               kr
    lora_xs                 U r Σ Vᵀ                          r²                r
    vera                    diag(b) B diag(d) A               n + r             r
    adalora, dora_dynamic   Σ_i e_i b_i a_iᵀ                  r'(2n + 1)        r'
    lora2                   (b' b) diag(e) (a a')             2np + 2r'p + r'   min(r', p)
    lorta                   rows of a head: b diag(c) a       of one tensor     r
    aurora                  v (core ×₃ p) u                   of one tensor     r
    svft                    U diag(m) Vᵀ                      n                 n

Z_f(v) is the f-circulant matrix with first column v, and T(t) the symmetric Toeplitz matrix with first column t.

Each family is one module, whose docstring gives its formula and parameters; its functions explain its options.
`surm.matrices.family.Family` describes the parts of a family: the five functions `init`, `matvec`, `to_dense`,
`num_params` and `project`, a learning rate, and optional parts with their defaults.

This package knows nothing of layers or models: `surm.peft` decides where a matrix is applied.
"""

from surm.matrices import (
    adalora,
    aurora,
    block_circulant,
    c3a,
    circulant,
    diagonal_circulant,
    dora_dynamic,
    kronecker,
    lora2,
    lora_xs,
    lorta,
    low_displacement_rank,
    low_rank,
    melora,
    monarch,
    skew_circulant,
    svft,
    toeplitz,
    vera,
)
from surm.matrices.algebra.params import Params
from surm.matrices.family import Family, check_together

__all__ = ["FAMILIES", "Family", "Params", "options", "training_options"]

FAMILIES: dict[str, Family] = {
    "circulant": Family.of(circulant),
    "skew_circulant": Family.of(skew_circulant),
    "toeplitz": Family.of(toeplitz),
    "kronecker": Family.of(kronecker),
    "low_displacement_rank": Family.of(low_displacement_rank),
    "low_rank": Family.of(low_rank),
    "block_circulant": Family.of(block_circulant),
    "monarch": Family.of(monarch),
    "diagonal_circulant": Family.of(diagonal_circulant),
    "c3a": Family.of(c3a),
    "melora": Family.of(melora),
    "lora_xs": Family.of(lora_xs),
    "vera": Family.of(vera),
    "adalora": Family.of(adalora),
    "dora_dynamic": Family.of(dora_dynamic),
    "lora2": Family.of(lora2),
    "lorta": Family.of(lorta),
    "aurora": Family.of(aurora),
    "svft": Family.of(svft),
}
check_together(FAMILIES)


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
    return dict(FAMILIES[family].options)


def training_options(family: str) -> dict[str, int | float]:
    """The options of a family that control its training, not its structure; none of its functions takes them.

    Args:
      family: a name in `FAMILIES`.

    Returns:
      Each option's default.

    Examples:
      >>> training_options("low_rank"), training_options("adalora")["penalty"]
      ({}, 0.1)
    """
    return dict(FAMILIES[family].training)
