"""A training step of surm on random weights and data, compiled, and what JAX and XLA say of its memory."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import surm
from experiments.shared import methods, models
from surm.peft import surgery
from surm.training import estimate
from surm.training.placing import narrowed

SHAPES = ("bert_base", "vit_b16", "bert_tiny")
LENGTH = 128
"""The tokens of a text; images have 224 pixels a side."""
TARGETS = r".*\.(query|value)"
FLOORS = {
    "floor": dict.fromkeys(SHAPES, r"embed\.norm\.bias") | {"vit_b16": r"embed\.position"},
    "floor to the first query and value": dict.fromkeys(SHAPES, r"blocks\.0\..*\.(query|value)\.bias"),
}
"""Small parameters that train beside the head where nothing is adapted, so that the gradient flows that far: at the
first floor the gradient of every activation is taken, at the second of those alone that an adapted model asks for."""


class Setting(NamedTuple):
    """A model's shape, a batch, and the dtype of the base and its activations; trained parameters are float32."""

    shape: str
    batch: int
    dtype: str


class Step(NamedTuple):
    """A step: `run` takes one and waits for it, `known` goes into the result, `program` gives its compiled text."""

    run: Callable[[], None]
    known: dict[str, int]
    program: Callable[[], str] | None = None


def spec_of(setting: Setting, method: str, path: str = "auto") -> surm.PeftSpec:
    """What a method, or one of the floors, adapts and trains."""
    if method in FLOORS:
        return surm.PeftSpec(method="full", targets=(FLOORS[method][setting.shape],), train=("head",))
    return methods.spec(method, targets=TARGETS, train=("head",), path=path)


def step(setting: Setting, method: str, path: str = "auto") -> Step:
    """Builds the step of a method or floor: forward, backward, AdamW on the trained parameters."""
    model, inputs = models.random(setting.shape, 2, setting.batch, LENGTH, setting.dtype)
    adapted = surm.attach(model, spec_of(setting, method, path), nnx.Rngs(1))
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
    known = {
        "trained_parameters": surm.count_parameters(adapted).adapter,
        "saved_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "program_bytes": estimate.in_all(compiled.memory_analysis()),
    }
    return Step(run, known, compiled.as_text)
