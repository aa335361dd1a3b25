"""A step of a decoder whose blocks are scanned: the state of one whose blocks are not, from a smaller program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import surm
from surm import config as configs
from surm.machine import mesh as meshes
from surm.models.decoder import Decoder, DecoderConfig
from surm.training import optim, placing, stacking, step
from surm.training.prepared import Run
from tests.test_task import NextToken

BATCH = {"tokens": jnp.arange(24).reshape(3, 8) % 29, "targets": jnp.arange(1, 25).reshape(3, 8) % 29}


class Loss(NextToken):
    """As much of a task as a step needs."""

    def __init__(self):
        pass

    def inputs(self, batch):
        return batch

    def sums(self, outputs, batch, label_smoothing=0.0):
        return {"loss": outputs.loss.sum(), "weight": jnp.float32(outputs.loss.size)}


def prepared(scan: str, depth: int = 3, **changes) -> Run:
    config = configs.default()
    config.update_from_flattened_dict({
        "model.scan": scan, "peft.family": "low_rank", "peft.targets": ".*down", "peft.train": "norm",
        "optim.epochs": 0, "optim.steps": 9, "optim.ema_decay": 0.9, **changes,
    })  # fmt: skip
    plan = configs.checked(config)
    model = Decoder(DecoderConfig(29, 16, depth, 2, 1, 8, 24), rngs=nnx.Rngs(0))
    model = surm.attach(model, plan.spec, nnx.Rngs(1))
    stacking.arrange(config, model)
    run = object.__new__(Run)  # a step reads no more than this of it
    vars(run).update(plan=plan, model=model, task=Loss(), total_steps=9)
    return run


def lowered(run: Run) -> tuple:
    mesh = meshes.mesh_of(run.config)
    numbers = optim.hyperparameters(run.config.optim, run.plan.spec, 9)
    with jax.set_mesh(mesh):
        state, frozen = step.initial_state(run, 0, averaged=True), placing.placed(run, mesh)
        return jax.jit(step.train_step(run)).lower(state, frozen, BATCH, numbers), (state, frozen, BATCH, numbers)


@functools.cache
def two_steps(scan: str, **changes) -> tuple:
    """The state after two steps and the metrics of the second."""
    program, (state, *others) = lowered(prepared(scan, **changes))
    compiled = program.compile()
    return compiled(compiled(state, *others)[0], *others)


def test_two_steps_are_those_without_a_scan():
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-5),
        two_steps("always"),
        two_steps("never"),
    )


def test_a_rank_budget_sees_every_array_on_its_own():
    run = prepared("always", **{"peft.family": "adalora"})
    assert run.model.runs and step.stacked_of(run) == {}


def size(jaxpr) -> int:
    """The number of equations, those of inner programs included, without the broadcasts that make empty arrays."""
    inner = [part for one in jaxpr.eqns for part in jax.core.jaxprs_in_params(one.params)]
    return sum(one.primitive.name != "broadcast_in_dim" for one in jaxpr.eqns) + sum(map(size, inner))


def test_the_packed_step_of_a_deeper_model_is_no_larger_program():
    def equations(depth: int) -> int:
        run = prepared("auto", depth)
        numbers = optim.hyperparameters(run.config.optim, run.plan.spec, 9)
        mesh = meshes.mesh_of(run.config)
        with jax.set_mesh(mesh):
            state = step.packing_of(run).pack(step.initial_state(run, 0, averaged=True))
            given = state, placing.placed(run, mesh), BATCH, numbers
            return size(jax.jit(step.packed_step(run)).trace(*given).jaxpr)

    assert equations(4) == equations(6)


@pytest.mark.parametrize("on_host", [False, True])
def test_a_packed_state_holds_all_that_the_state_by_path_does(on_host):
    run = prepared("always")
    state = step.initial_state(run, 0, averaged=True)
    state = jax.device_get(state) if on_host else state
    _, pack, unpack = step.packing_of(run)
    packed = pack(state)
    assert len(jax.tree.leaves(packed)) < len(jax.tree.leaves(state))
    back = unpack(packed)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert not on_host or all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(packed))


def test_arrays_with_rates_of_their_own_are_not_stacked(monkeypatch):
    run = prepared("always")
    assert any(len(together) == 3 for together in step.stacked_of(run).values())
    monkeypatch.setattr(
        optim, "multipliers", lambda *_: {path: number for number, path in enumerate(step.groups_of(run.model))}
    )
    assert step.stacked_of(run) == {}


def test_models_without_a_scan_say_so(small_vit):
    config = configs.default()
    config.model.scan = "always"
    with pytest.raises(surm.InputError, match="config.model.scan='always', but the blocks of a ViT cannot be scanned"):
        stacking.arrange(config, small_vit)
