"""Penalties that families add to the loss, such as the distance of their factors from orthogonal ones."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from surm import matrices
from surm.peft import kernels, surgery
from surm.peft.matrix import StructuredMatrix


def penalised(model: nnx.Module) -> list[StructuredMatrix]:
    """The matrices of a model whose family adds a penalty with a weight other than 0."""
    return [delta for delta in surgery.structured_matrices(model).values() if delta.training.get("penalty")]


def penalty(model: nnx.Module, progress: float | Float[Array, ""]) -> Float[Array, ""]:
    """The mean of weight·penalty over all matrices whose family has a penalty, as its paper defines it.

    Args:
      model: a model with an adapter.
      progress: the fraction of the steps that have been taken; some families drop the penalty before the end.

    Returns:
      A number, which is 0 for a model without such matrices.
    """
    terms, count = [], 0
    for delta in penalised(model):
        value = kernels.each(matrices.FAMILIES[delta.family].penalty, len(delta.stack))(delta.values())
        value = jnp.sum(value) if delta.stack else value
        terms.append(jnp.where(progress < delta.training["penalty_until"], delta.training["penalty"] * value, 0))
        count += math.prod(delta.stack)
    return sum(terms, jnp.zeros(())) / max(count, 1)


def gradients(
    graphdef: nnx.GraphDef, trainable: dict[str, jax.Array], frozen: nnx.State, progress: Float[Array, ""]
) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
    """The penalty and its gradient.

    Args:
      graphdef: the structure of the model, from `surgery.split`.
      trainable: its trained arrays, from `surgery.split`.
      frozen: its other arrays, from `surgery.split`.
      progress: as for `penalty`.

    Returns:
      The penalty, and its gradient with respect to every trained array.
    """
    return jax.value_and_grad(lambda t: penalty(surgery.join(graphdef, t, frozen), progress))(trainable)
