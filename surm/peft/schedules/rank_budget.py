"""Rank budgets: which components of a model are kept, and when the others are switched off.

    components
    initial ──────╮                       kept(t) = target + surplus((t - begin) / (end - begin)) (initial - target)
                   ╲___
    target              ╰──────────       surplus falls from 1 to 0 (see the family)
             begin    end

Families with a gate per component (`surm.matrices.algebra.gated_low_rank`) compute how important each component is.
Between the fractions `begin` and `end` of the training, every `every_steps` steps, the gates of the least important
components of all layers are set to 0. These components can train again and return until the next time. After `end` they
stay off, and exactly as many components are on as the budget allows. The budget is an optax transformation around that
of the gates, so every checkpoint contains its state.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.core import FrozenDict
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

from surm import matrices
from surm.errors import InputError
from surm.matrices.family import Gate
from surm.peft import surgery

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Gated:
    """One matrix with gates.

    Attributes:
      layer: the path of its layer.
      paths: the paths of its parameters, by the parameters' names.
      initial: the number of components at the start.
      target: the number of components that are left at the end, on average over the matrices.
    """

    layer: str
    paths: dict[str, str]
    initial: int
    target: int

    def of(self, arrays: Arrays) -> matrices.Params:
        """The parameters of this matrix, taken from a model's arrays."""
        return {name: arrays[path] for name, path in self.paths.items()}


class BudgetState(NamedTuple):
    """The inner transformation's state, the number of steps, and each matrix's scores and active components."""

    inner: Any
    step: Int[Array, ""]
    scores: tuple[Any, ...]
    on: tuple[Bool[Array, " _"], ...]


@dataclasses.dataclass(frozen=True)
class RankBudget:
    """One budget, for all matrices of one family with one schedule.

    Attributes:
      gate: the gate of the family.
      gated: the matrices.
      training: the options of the schedule.
      steps: the number of training steps.
      first: the step at which the matrices begin to train, where the fraction `begin` or `end` is 0.
    """

    gate: Gate
    gated: tuple[Gated, ...]
    training: FrozenDict
    steps: int
    first: int = 0

    def kept(self, step: int | Int[Array, ""]) -> Int[Array, ""]:
        """The largest number of components, in all matrices together, that are on after a step."""
        begin, end = self._window()
        progress = jnp.clip((jnp.asarray(step) - begin) / (end - begin), 0, 1)
        target, initial = (sum(getattr(one, name) for one in self.gated) for name in ("target", "initial"))
        return target + jnp.round(self.gate.surplus(progress) * (initial - target)).astype(jnp.int32)

    def around(self, inner: optax.GradientTransformation) -> optax.GradientTransformation:
        """Wraps a transformation so that its updates keep to the budget."""
        inner = optax.with_extra_args_support(inner)

        def init(params: Arrays) -> BudgetState:
            scores = tuple(self.gate.first_scores(one.of(params)) for one in self.gated)
            on = tuple(jnp.ones(one.initial, bool) for one in self.gated)
            return BudgetState(inner.init(params), jnp.int32(0), scores, on)

        def update(gradients: Arrays, state: BudgetState, params: Arrays, **extra: Any) -> tuple[Arrays, BudgetState]:
            updates, inner_state = inner.update(gradients, state.inner, params, **extra)
            after, step = optax.apply_updates(params, updates), state.step + 1
            scores = tuple(
                self.gate.next_scores(before, one.of(after), one.of(gradients))
                for one, before in zip(self.gated, state.scores, strict=True)
            )
            chosen, applied = self._due(step)
            best = self._most_important(scores, step)
            on = tuple(jnp.where(chosen, new, old) for new, old in zip(best, state.on, strict=True))
            for one, mask in zip(self.gated, on, strict=True):
                of_gate = one.paths[self.gate.parameter]
                off = jnp.where(applied & ~mask, -params[of_gate], updates[of_gate])
                updates = {**updates, of_gate: off}
            return updates, BudgetState(inner_state, step, scores, on)

        return optax.GradientTransformationExtraArgs(init, update)

    def _window(self) -> tuple[int, int]:
        own = self.steps - self.first
        begin, end = (self.first + round(self.training[name] * own) for name in ("begin", "end"))
        end = max(end, 1)
        return min(begin, end - 1), end

    def _due(self, step: Int[Array, ""]) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
        """Whether a step chooses the active components again, and whether it switches the others off."""
        begin, end = self._window()
        chosen = (
            (step >= begin) & (step <= end) & (((step - begin) % self.training["every_steps"] == 0) | (step == end))
        )
        return chosen, chosen | (step > end)

    def _most_important(self, scores: Sequence[Any], step: Int[Array, ""]) -> tuple[Bool[Array, " _"], ...]:
        """The active components of every matrix by their scores; of equal scores the first ones win."""
        each = [self.gate.scores(of) for of in scores]
        places = jnp.argsort(jnp.argsort(-jnp.concatenate(each), stable=True), stable=True)
        ends = [sum(len(one) for one in each[: number + 1]) for number in range(len(each))]
        return tuple(jnp.split(places < self.kept(step), ends[:-1]))


def budgets_of(model: nnx.Module, steps: int, first: int = 0) -> list[RankBudget]:
    """The budgets of a model: one for each family with gates and each schedule.

    Args:
      model: a model with an adapter.
      steps: the number of training steps.
      first: the step at which the adapter begins to train.

    Returns:
      The budgets; an empty list for most models.

    Raises:
      InputError: if a matrix with gates belongs to a stack of layers.
    """
    found: dict[tuple[str, FrozenDict], list[Gated]] = {}
    for path, delta in surgery.structured_matrices(model).items():
        if gate := matrices.FAMILIES[delta.family].gate:
            if delta.stack:
                stacked = f"{path} holds {math.prod(delta.stack)} stacked layers"
                raise InputError(f"{stacked}, to which {delta.family} gives no budget; expected another family there")
            names = {name: f"{path}.delta.parameters.{name}" for name in delta.parameters}
            gates = delta.parameters[gate.parameter][...]
            one = Gated(path, names, len(gates), delta.target_rank)
            found.setdefault((delta.family, delta.training), []).append(one)
    return [
        RankBudget(matrices.FAMILIES[family].gate, tuple(gated), training, steps, first)
        for (family, training), gated in found.items()
    ]


def around(inner: optax.GradientTransformation, budgets: Sequence[RankBudget]) -> optax.GradientTransformation:
    """Wraps a transformation so that it keeps to all budgets; without budgets it is returned as it is."""
    for budget in budgets:
        inner = budget.around(inner)
    return inner


def switched_off(arrays: Arrays, like: Arrays, budgets: Sequence[RankBudget]) -> Arrays:
    """Sets gates to 0 where those of other arrays are 0.

    This is for an average of a model's arrays over the steps, in which a gate that is switched off fades only slowly.

    Args:
      arrays: the arrays of a model, by path.
      like: the arrays whose gates decide.
      budgets: the budgets of the model.

    Returns:
      The arrays, with those gates 0.
    """
    gates = [one.paths[budget.gate.parameter] for budget in budgets for one in budget.gated]
    return arrays | {gate: jnp.where(like[gate] == 0, 0, arrays[gate]) for gate in gates}


def active_ranks(arrays: Mapping[str, ArrayLike], budgets: Sequence[RankBudget]) -> dict[str, Int[Array, ""]]:
    """The number of active components of each matrix, by the matrix's path."""
    gates = {one.layer: one.paths[budget.gate.parameter] for budget in budgets for one in budget.gated}
    return {layer: jnp.count_nonzero(arrays[gate]) for layer, gate in gates.items()}
