"""One training step: in parts and at once, with an average and without, as one of many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surm import config as configs
from surm.cli import command_line
from surm.peft import surgery
from surm.training import optim, preparation, step
from tests.test_train import arguments


def prepared(tmp_path, *more: str) -> preparation.Run:
    given = arguments(tmp_path, "--config.optim.steps=4", "--config.peft.dropout=0.0", *more)
    return preparation.prepare(command_line.parse(given).config)


def taken(run: preparation.Run, steps: int, masked: int = 0) -> list[dict]:
    """The states after every step."""
    config = run.config
    numbers = optim.hyperparameters(config.optim, configs.spec(config), run.total_steps)
    state = step.initial_state(run, config.seed, averaged=bool(config.optim.ema_decay))
    one, frozen = jax.jit(step.train_step(run)), surgery.split(run.model)[2]
    states, batches = [], run.training_batches(config.seed)
    for _ in range(steps):
        batch = next(batches)
        batch["mask"] = np.arange(len(batch["mask"])) >= masked
        state, values = one(state, frozen, batch, numbers)
        states.append(state | {"values": values})
    return states


@pytest.mark.parametrize("masked", [0, 5])
def test_in_parts_it_is_the_same_step(tmp_path, masked):
    whole, parts = (
        taken(prepared(tmp_path, f"--config.optim.accumulation_steps={number}", "--config.optim.name=sgd"), 2, masked)
        for number in (1, 4)
    )
    for one, other in zip(whole, parts, strict=True):
        for name in ("loss", "accuracy", "gradient_norm", "update_norm"):
            np.testing.assert_allclose(one["values"][name], other["values"][name], rtol=2e-5)
        for path, value in one["trainable"].items():
            np.testing.assert_allclose(value, other["trainable"][path], rtol=1e-4, atol=1e-6)


def test_in_parts_every_example_counts_once(tmp_path):
    # Of 16 examples in 8 parts 13 are filling: some parts hold one real example, the others none.
    whole, parts = (taken(prepared(tmp_path, f"--config.optim.accumulation_steps={n}"), 1, 13)[0] for n in (1, 8))
    np.testing.assert_allclose(whole["values"]["loss"], parts["values"]["loss"], rtol=1e-5)
    np.testing.assert_allclose(whole["values"]["gradient_norm"], parts["values"]["gradient_norm"], rtol=1e-4)


def test_an_average_is_kept_and_answers(tmp_path):
    states = taken(prepared(tmp_path, "--config.optim.ema_decay=0.6"), 4)
    expected: dict[str, jax.Array] = {}
    for number, state in enumerate(states):
        weight = 1 - min(0.6, number / (number + 1))
        for path, value in state["trainable"].items():
            before = expected.get(path, jnp.zeros_like(value))
            expected[path] = before + weight * (value - before)
    for path, value in step.answering(states[-1]).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-7)
    plain = taken(prepared(tmp_path), 4)[-1]
    assert "average" not in plain and step.answering(plain) is plain["trainable"]
    jax.tree.map(np.testing.assert_array_equal, plain["trainable"], states[-1]["trainable"])


def test_memory_shrinks_with_the_parts(tmp_path):
    def temporary(number: int) -> int:
        run = prepared(tmp_path, f"--config.optim.accumulation_steps={number}", "--config.optim.batch_size=64")
        numbers = optim.hyperparameters(run.config.optim, configs.spec(run.config), run.total_steps)
        state = step.initial_state(run, 0, averaged=False)
        batch, frozen = next(run.training_batches(0)), surgery.split(run.model)[2]
        compiled = jax.jit(step.train_step(run)).lower(state, frozen, batch, numbers).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(8) < temporary(1) / 2
