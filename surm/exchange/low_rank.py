"""Finds the nearest update of low rank, for families that other programs do not know."""

from collections.abc import Mapping
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from surm.errors import InputError
from surm.exchange.peft_export import exact_type
from surm.machine import notes
from surm.peft import surgery
from surm.peft.spec import PeftSpec
from surm.peft.together import bases, warm_start

Model = TypeVar("Model", bound=nnx.Module)
_KEPT = ("scale", "dropout", "magnitude")
_POOR = 0.5  # relative errors above this are worth a warning
_ROUNDING = 1e-12  # a share of the energy, below the float32 noise in singular values that should be 0


def to_low_rank(
    model: Model, *, rank: int | None = None, energy: float | None = None
) -> tuple[Model, dict[str, float]]:
    """Returns the model with every update replaced by the nearest one of low rank, and gives the error of each.

    The truncated SVD (Eckart–Young) ΔW = U S Vᵀ gives b = U_r √S_r and a = √S_r V_rᵀ. The relative error of a layer is
    ‖ΔW − b a‖_F / ‖ΔW‖_F = √(Σ_{i>r} s_i² / Σ_i s_i²).

    Args:
      model: a model with an `update` of any family; it is left untouched.
      rank: the rank of all layers.
      energy: the share of Σ s_i² to keep, above 0 and up to 1, instead of a rank. All layers then get the smallest
        rank that keeps this share in every layer.

    Returns:
      A new model in evaluation mode with updates of the family low_rank and the same scales, magnitudes and head; and
      the relative error of every layer by path. If a rank is given and an error is above 0.5, a warning is logged.

    Raises:
      InputError: if the model has no update or one that is not finite, or not exactly one of rank and energy is given
        and in range.

    Examples:
      >>> import surm
      >>> mlp = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
      >>> adapted = surm.attach(mlp, surm.PeftSpec(family="circulant", targets=".*"), nnx.Rngs(0))
      >>> lora, errors = to_low_rank(adapted, rank=2)
      >>> errors
      {'layers.0': 0.0}
    """
    _check(rank, energy)
    original, model = model, bases.updated("the model", model, magnitude=True)
    layers = surgery.layers_by_path(model)
    deltas = {path: layer.scale * layer.delta.to_dense() for path, layer in layers.items()}
    each = (one for delta in deltas.values() for one in delta.reshape(-1, *delta.shape[-2:]))
    rank = rank or max(_needed(one, energy) for one in each)
    spec = _low_rank_spec(surgery.spec_of(model), rank)
    result, errors = warm_start.warm_start(surgery.attach(surgery.detach(model), spec, nnx.Rngs(0)), deltas)
    result.eval()
    if energy is None:
        _warn_of_loss(original, errors)
    for path, layer in surgery.layers_by_path(result).items():
        if layer.magnitude is not None:  # keep the trained magnitude instead of the norms of the new rows
            layer.magnitude = layer.magnitude.replace(layers[path].magnitude[...])
    return result, errors


def _warn_of_loss(original: nnx.Module, errors: Mapping[str, float]) -> None:
    """Warns if an update of low rank keeps little of the original, and names the format that keeps all of it."""
    poor = [error for error in errors.values() if error > _POOR]
    if not poor:
        return
    exact = exact_type(original) or exact_type(original, encoder_only=True)
    way_on = (
        f"surm export without --rank, or surm.export_peft of the model itself, writes it exactly, as {exact}"
        if exact
        else "a higher rank loses less, and surm merge writes the whole model exactly"
    )
    notes.warn(
        f"the low-rank update is not close to the trained one: {len(poor)} of {len(errors)} layers have a relative "
        f"error above {_POOR}, up to {max(poor):.3g} (1 would be no update at all); {way_on}"
    )


def _check(rank: int | None, energy: float | None) -> None:
    if (rank is None) == (energy is None):
        raise InputError(f"to_low_rank with rank={rank}, energy={energy}; expected one of them")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise InputError(f"rank={rank!r}, expected a whole number of at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"energy={energy}, expected a share above 0 and up to 1")


def _needed(delta: Float[Array, "n_out n_in"], share: float) -> int:
    """The smallest rank that keeps a share of the sum of squared singular values; 1 if the sum is 0."""
    if not jnp.isfinite(delta).all():
        return 1  # warm_start refuses it by name
    kept = np.cumsum(np.linalg.svd(np.asarray(delta, np.float64), compute_uv=False) ** 2)
    return int(np.searchsorted(kept, (share - _ROUNDING) * kept[-1])) + 1 if kept[-1] else 1


def _low_rank_spec(spec: PeftSpec, rank: int) -> PeftSpec:
    """The spec with another family everywhere; scales, dropouts and magnitudes stay, also those in its rules."""
    rules = {pattern: change if change is None else {name: change[name] for name in _KEPT if name in change}
             for pattern, change in spec.rules.items()}  # fmt: skip
    return PeftSpec(**spec.to_json() | {"family": "low_rank", "options": {"rank": rank}, "rules": rules})
