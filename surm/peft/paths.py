"""The ways to multiply by a trained matrix: same result, different cost.

    branch          the family's own product beside the layer: FFTs, or thin matmuls
    branch_dft      the same with every convolution by small matmuls (the convolutional families)
    branch_dense    the product with the dense matrix beside the layer
    fused           the matrix is added to the layer's kernel; the gradient is that of the family's own product
    fused_dense     likewise; the gradient goes through the dense matrix (see `surm.peft.fused`)
"""

import inspect

from surm import matrices

FUSED = ("fused", "fused_dense")
"""For updates alone; an adapter has a nonlinearity between the layer and itself."""

_THIN = ("low_rank", "kronecker", "circulant", "skew_circulant")
"""Families whose own gradient costs less than the xᵀ·dy of a dense one."""


def available(method: str, family: str) -> tuple[str, ...]:
    """The paths that a family has in a position.

    Args:
      method: `update` or `adapter`.
      family: a key of `surm.matrices.FAMILIES`.

    Returns:
      Their names.

    Examples:
      >>> available("adapter", "low_rank")
      ('branch', 'branch_dense')
    """
    convolves = "transform" in inspect.signature(matrices.FAMILIES[family].matvec).parameters
    beside = ("branch", "branch_dft", "branch_dense") if convolves else ("branch", "branch_dense")
    return beside + FUSED if method == "update" else beside


def quickest(family: str, n_out: int, n_in: int, rows: int, platform: str, fusible: bool) -> str:
    """The path that `auto` takes.

    Args:
      family: a key of `surm.matrices.FAMILIES`.
      n_out: rows of the matrix.
      n_in: columns.
      rows: vectors in the batch.
      platform: as `jax.default_backend` names it.
      fusible: whether the matrix may be added to the layer's kernel.

    Returns:
      A path that the family has.
    """
    if not fusible or platform != "cpu" or rows < max(n_out, n_in):
        return "branch"
    return "fused" if family in _THIN else "fused_dense"
