"""A training step of surm on random weights and data, compiled: what is timed, and how much memory it asks for."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import surm
from experiments.shared import models
from surm.peft import surgery
from surm.training.placing import narrowed

SHAPES = ("bert_base", "vit_b16")
FLOORS = {
    "floor": {"bert_base": r"embed\.norm\.bias", "vit_b16": r"embed\.position"},
    "floor to the first query and value": dict.fromkeys(SHAPES, r"blocks\.0\..*\.(query|value)\.bias"),
}
"""What trains beside the head where nothing is adapted: the gradient flows that far, and costs next to nothing itself.
The first takes the gradient of every activation, the second of those alone that an adapted model asks for."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a step is measured on.

    Attributes:
      shape: `bert_base`, or `vit_b16` at 224 pixels.
      batch: examples.
      length: tokens of a text; unread for images.
      dtype: of the base and its activations; what trains is float32.
    """

    shape: str
    batch: int
    length: int
    dtype: str


@dataclasses.dataclass
class Step:
    """A compiled step.

    Attributes:
      run: takes one step and waits for it.
      saved_bytes: that the forward pass keeps for the backward pass, the weights included.
      temporary_bytes: that the compiled step asks for beside its arguments and results.
      trained_parameters: without the head's.
      program: its compiled text.
    """

    run: Callable[[], None]
    saved_bytes: int
    temporary_bytes: int
    trained_parameters: int
    program: Callable[[], str]


def floor(setting: Setting, name: str) -> surm.PeftSpec:
    """What trains at one of the `FLOORS`."""
    return surm.PeftSpec(method="full", targets=(FLOORS[name][setting.shape],), train=("head",))


def step(setting: Setting, spec: surm.PeftSpec) -> Step:
    """Builds the step: forward, backward, AdamW on what trains.

    Args:
      setting: model, batch and type.
      spec: of the adapter, or from `floor`.

    Returns:
      The step, not yet run.
    """
    model, inputs = models.random(setting.shape, 2, setting.batch, setting.length, setting.dtype)
    adapted = surm.attach(model, spec, nnx.Rngs(1))
    graphdef, trainable, frozen = surgery.split(adapted)
    frozen = narrowed(frozen, setting.dtype)
    optimiser = optax.adamw(1e-3)
    labels = jnp.arange(setting.batch) % 2

    def loss(trainable, frozen, inputs):
        logits = surgery.join(graphdef, trainable, frozen)(**inputs).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def update(trainable, state, frozen, inputs):
        gradients = jax.grad(loss)(trainable, frozen, inputs)
        updates, state = optimiser.update(gradients, state, trainable)
        return optax.apply_updates(trainable, updates), state

    held = [trainable, optimiser.init(trainable)]
    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(*held, frozen, inputs).compile()

    def run() -> None:
        held[:] = jax.block_until_ready(compiled(*held, frozen, inputs))

    kept = jax.eval_shape(lambda *given: jax.vjp(lambda t: loss(t, *given[1:]), given[0])[1], held[0], frozen, inputs)
    saved = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return Step(run, saved, temporary, surm.count_parameters(adapted).adapter, compiled.as_text)
