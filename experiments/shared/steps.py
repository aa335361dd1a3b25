"""The step of a run on a model that is there already, as `surm.train` compiles it, without data and tokenizers."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

import surm
from surm import config as configs
from surm.training import stacking
from surm.training.prepared import Run

STEPS = 1000
"""Those of a whole run, for the schedule of its learning rate."""


class Scored:
    """The inputs and the loss of a step of a language model, which needs no more of a task."""

    outputs = None

    def training(self, source: Any, seed: int, share: Any = None) -> Iterator[Any]:
        """The same batch for ever."""
        del seed, share
        return itertools.repeat(source)

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """All of a batch."""
        return batch

    def sums(self, outputs: Any, batch: dict[str, Any], label_smoothing: Any = 0.0) -> dict[str, Any]:
        """The loss of all tokens alike."""
        del batch, label_smoothing
        return {"loss": outputs.loss.sum(), "weight": jnp.float32(outputs.loss.size)}


def run_of(model: nnx.Module, changes: Mapping[str, Any], batch: Mapping[str, Any]) -> Run:
    """A run that trains a language model on one batch.

    Args:
      model: the model without an adapter; its arrays are shared.
      changes: the keys of a config that differ from the defaults, among them those of the adapter.
      batch: tokens and targets.

    Returns:
      A prepared run that holds what a step reads of it, and no more.
    """
    config = configs.default()
    config.update_from_flattened_dict({"optim.epochs": 0, "optim.steps": STEPS, **changes})
    plan = configs.checked(config)
    adapted = surm.attach(model, plan.spec, nnx.Rngs(1))
    stacking.arrange(config, adapted)
    run = object.__new__(Run)
    vars(run).update(plan=plan, model=adapted, task=Scored(), total_steps=STEPS, training=batch)
    return run
