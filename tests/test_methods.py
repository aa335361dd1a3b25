"""The related methods through the real command line: budgets, penalties, stages, the Kalman filter, rules."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import surm
from surm import PeftSpec, matrices, report, train
from surm import config as configs
from surm.peft import surgery
from surm.peft.schedules import penalty, rank_budget
from surm.training import loko, optim
from surm.training import step as training
from tests.test_step import prepared, taken
from tests.test_train import arguments, lines, result

ADALORA = (
    "--config.peft.family=adalora",
    "--config.peft.options=rank=2,initial_rank=4,begin=0.25,end=0.75,every_steps=2",
)


@pytest.fixture(scope="module")
def run_of_adalora(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("adalora") / "run"
    more = ("--config.optim.steps=16", "--config.log_every_steps=1", "--config.checkpoint_every_steps=0")
    assert train.main(arguments(workdir, *ADALORA, *more)) == 0
    return workdir


def test_the_budget_is_met_exactly_and_approached_as_the_paper_says(run_of_adalora):
    found = result(run_of_adalora)
    ranks = found["active_ranks"]
    assert sum(ranks.values()) == 2 * len(ranks)
    initial, target = 4 * len(ranks), 2 * len(ranks)
    logged = {line["step"]: line["values"]["active_rank"] for line in lines(run_of_adalora) if line["split"] == "train"}
    for step in (4, 6, 8, 10, 12):
        assert logged[step] == target + round((1 - (step - 4) / 8) ** 3 * (initial - target))
    assert [logged[step] for step in (13, 14, 15, 16)] == [target] * 4
    assert all(line["values"]["penalty"] > 0 for line in lines(run_of_adalora) if line["split"] == "train")
    saved = surm.load_run(run_of_adalora).model
    assert sum(rank_budget.active_ranks(surgery.split(saved)[1], rank_budget.budgets_of(saved, 16)).values()) == target


def test_a_run_stopped_in_the_middle_of_the_schedule_ends_the_same(run_of_adalora, tmp_path, monkeypatch):
    more = ("--config.optim.steps=16", "--config.log_every_steps=1", "--config.checkpoint_every_steps=0")
    given, asked = arguments(tmp_path / "run", *ADALORA, *more), []

    def signal(request):
        asked.append(None)
        return 15 if len(asked) == 8 else 0

    monkeypatch.setattr("surm.machine.processes.StopRequest.signal", signal)
    assert train.main(given) == 143
    monkeypatch.undo()
    assert train.main(given) == 0
    assert result(tmp_path / "run")["active_ranks"] == result(run_of_adalora)["active_ranks"]
    of_both = [{line["step"]: line["values"] for line in lines(folder) if line["split"] == "train"}
               for folder in (tmp_path / "run", run_of_adalora)]  # fmt: skip
    for step in (7, 8, 12, 16):
        assert of_both[0][step]["loss"] == of_both[1][step]["loss"]


@pytest.mark.slow
def test_an_average_of_steps_forgets_what_was_switched_off_too(tmp_path):
    more = ("--config.optim.steps=8", "--config.optim.ema_decay=0.9", "--config.population=learning_rate=1e-3|2e-3")
    assert train.main(arguments(tmp_path / "run", *ADALORA, *more)) == 0
    for member in (tmp_path / "run" / "members").iterdir():
        ranks = result(member)["active_ranks"]
        assert sum(ranks.values()) == 2 * len(ranks)


@pytest.mark.parametrize("family", ["adalora", "dora_dynamic", "lora2"])
def test_a_budget_against_numpy(small_vit, family):
    """A few steps of plain gradient descent with the scores and masks written out."""
    spec = PeftSpec(family=family, options="rank=1,initial_rank=3,begin=0.2,end=0.8,every_steps=1", train="head")
    model = surm.attach(small_vit, spec, nnx.Rngs(0))
    (budget,), steps = rank_budget.budgets_of(model, 5), 5
    tx = budget.around(optax.sgd(0.1))
    params = surgery.split(model)[1]
    draw = np.random.default_rng(0)
    params = {path: jnp.asarray(draw.standard_normal(value.shape), jnp.float32) for path, value in params.items()}
    ours = {path: np.asarray(value, np.float64) for path, value in params.items()}
    state, scores, update = tx.init(params), NumpyScores(family, len(budget.gated)), jax.jit(tx.update)
    layers, initial = [one.paths for one in budget.gated], 3 * len(budget.gated)
    for step in range(1, steps + 1):
        gradients = {path: draw.standard_normal(value.shape).astype(np.float32) for path, value in params.items()}
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        ours = {path: value - 0.1 * gradients[path] for path, value in ours.items()}
        found = [scores.of(n, {k: ours[p] for k, p in paths.items()}, {k: gradients[p] for k, p in paths.items()})
                 for n, paths in enumerate(layers)]  # fmt: skip
        progress = np.clip((step - 1) / 3, 0, 1)
        surplus = 1 - progress**3 if family == "dora_dynamic" else (1 - progress) ** 3
        kept = len(layers) + round(surplus * (initial - len(layers)))
        if step <= 4:
            threshold = np.sort(np.concatenate(found))[::-1][kept - 1]
            on = [found_of >= threshold for found_of in found]
        for paths, mask in zip(layers, on, strict=True):
            ours[paths["e"]] = np.where(mask, ours[paths["e"]], 0)
        for path, value in params.items():
            np.testing.assert_allclose(value, ours[path], atol=1e-5, err_msg=f"{path} after step {step}")
    assert sum(np.count_nonzero(ours[paths["e"]]) for paths in layers) == len(layers)


class NumpyScores:
    """Importance as the papers define it."""

    def __init__(self, family: str, layers: int):
        self.family, self.average, self.spread = family, [{} for _ in range(layers)], [{} for _ in range(layers)]

    def of(self, layer: int, params: dict, gradients: dict) -> np.ndarray:
        if self.family == "dora_dynamic":
            terms = [e * np.outer(b, a) for e, b, a in zip(params["e"], params["b"].T, params["a"], strict=True)]
            share = np.array([np.linalg.norm(term) for term in terms]) / np.linalg.norm(sum(terms))
            self.average[layer] = 0.9 * self.average[layer] + 0.1 * share if len(self.average[layer]) else 0.1 * share
            return self.average[layer]
        importance = {}
        for name in params:
            now = np.abs(params[name] * gradients[name])
            smoothed = 0.85 * self.average[layer].get(name, 0) + 0.15 * now
            spread = 0.85 * self.spread[layer].get(name, 0) + 0.15 * np.abs(now - smoothed)
            self.average[layer][name], self.spread[layer][name] = smoothed, spread
            importance[name] = smoothed * spread
        rows, columns = ("a", "b") if self.family == "adalora" else ("a_out", "b_in")
        return importance["e"] + importance[rows].mean(1) + importance[columns].mean(0)


def not_orthonormal(m: np.ndarray) -> float:
    """Of the rows or the columns, whichever are fewer."""
    rows = m if len(m) <= m.shape[1] else m.T
    return np.linalg.norm(rows @ rows.T - np.eye(len(rows)))


NUMPY_PENALTIES = {
    "adalora": lambda p: not_orthonormal(p["a"]) + not_orthonormal(p["b"]),
    "dora_dynamic": lambda p: np.mean(p["a"].var(1) + p["b"].var(0)),
    "lora2": lambda p: sum(not_orthonormal(p[name]) for name in ("a_out", "a_in", "b_out", "b_in")),
}


@pytest.mark.parametrize("family", NUMPY_PENALTIES)
def test_penalties_against_numpy(small_vit, family):
    model = surm.attach(small_vit, PeftSpec(family=family, options="rank=2", train="head"), nnx.Rngs(0))
    deltas = [layer.delta.values() for _, layer in surgery.wrapped_layers(model)]
    each = [NUMPY_PENALTIES[family](jax.tree.map(lambda x: np.asarray(x, np.float64), delta)) for delta in deltas]
    assert float(penalty.penalty(model, 0.4)) == pytest.approx(0.1 * np.mean(each), rel=1e-5)
    assert (float(penalty.penalty(model, 0.6)) > 0) == (family != "dora_dynamic")


def test_a_family_without_a_penalty_adds_none(small_vit):
    assert not penalty.penalised(surm.attach(small_vit, PeftSpec(family="low_rank"), nnx.Rngs(0)))


def test_the_kalman_filter_against_its_equations():
    """One step of a batch of two, three outputs each, with every matrix of the filter written out."""
    draw = np.random.default_rng(0)
    params = {"a": draw.standard_normal(4), "b": draw.standard_normal((2, 3))}
    variances, jacobian = {"a": 0.1, "b": 0.2}, draw.standard_normal((2, 3, 10))
    residuals = draw.standard_normal((2, 3))
    pieces = {"a": jacobian[:, :, :4], "b": jacobian[:, :, 4:].reshape(2, 3, 2, 3)}
    with jax.enable_x64(True):
        params, pieces, measured = jax.tree.map(jnp.asarray, (params, pieces, residuals))
        tx = loko.kalman(variances, outputs=3)
        state, p = tx.init(params), np.r_[np.full(4, 0.1), np.full(6, 0.2)]
        h, noise, weight = jacobian.reshape(6, 10), 0.0, 0.0
        for _ in range(3):
            updates, state = tx.update(params, state, params, residuals=measured, jacobians=pieces, examples=2)
            spread = h @ np.diag(p) @ h.T
            now = residuals.T @ residuals / 2 + (spread[:3, :3] + spread[3:, 3:]) / 2
            noise, weight = 0.95 * noise + 0.05 * now, 0.95 * weight + 0.05
            s = spread + np.kron(np.eye(2), noise / weight)
            gain = np.diag(p) @ h.T @ np.linalg.inv(s)
            step, p = gain @ residuals.ravel(), p - np.diag(gain @ h @ np.diag(p))
            np.testing.assert_allclose(np.r_[updates["a"], updates["b"].ravel()], step, rtol=1e-3)
            left = np.r_[0.1 * state.shares["a"], 0.2 * state.shares["b"].ravel()]
            np.testing.assert_allclose(left, p, rtol=1e-4)


def test_what_fills_a_batch_up_is_not_measured():
    draw = np.random.default_rng(0)
    params, jacobian, residual = {"a": jnp.ones(4)}, draw.standard_normal((1, 3, 4)), draw.standard_normal((1, 3))
    tx, found = loko.kalman({"a": 0.1}, outputs=3), []
    for filling in (0, 3):
        padded = {"residuals": jnp.pad(residual, ((0, filling), (0, 0))), "examples": 1}
        pieces = {"a": jnp.pad(jacobian, ((0, filling), (0, 0), (0, 0)))}
        found.append(tx.update(params, tx.init(params), params, jacobians=pieces, **padded))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


LOKO = ("--config.peft.method=loko", "--config.peft.family=low_rank", "--config.peft.options=rank=1")


def test_the_kalman_filter_sees_residuals_and_derivatives_of_the_probabilities(tmp_path):
    run = prepared(tmp_path, *LOKO, "--config.optim.batch_size=8", "--config.optim.label_smoothing=0.1")
    graphdef, trainable, frozen = surgery.split(run.model)
    draw = np.random.default_rng(0)
    trainable = {path: value + 0.1 * jnp.asarray(draw.standard_normal(value.shape), jnp.float32)
                 for path, value in trainable.items()}  # fmt: skip
    batch = next(run.training_batches(0))
    batch["mask"] = np.arange(8) >= 3
    now = optim.hyperparameters(run.config.optim, configs.spec(run.config), run.total_steps).at(0)
    found = training._measurements(run, run.task, graphdef)(trainable, frozen, batch, jax.random.key(0), now)

    def probabilities(trainable):
        logits = surgery.join(graphdef, trainable, frozen)(**run.inputs(batch))
        return np.asarray(jax.nn.softmax(logits), np.float64)

    wanted = 0.9 * np.eye(10)[batch["label"]] + 0.01
    expected = np.where(batch["mask"][:, None], wanted - probabilities(trainable), 0)
    np.testing.assert_allclose(found["residuals"], expected, atol=1e-5)
    assert found["examples"] == 5
    for path in ("head.kernel", next(path for path in trainable if path.endswith(".b"))):
        way = draw.standard_normal(trainable[path].shape)
        up, down = (probabilities(trainable | {path: trainable[path] + h * way}) for h in (1e-2, -1e-2))
        slopes = np.tensordot(found["jacobians"][path], way, axes=way.ndim)
        expected = np.where(batch["mask"][:, None], (up - down) / 2e-2, 0)
        np.testing.assert_allclose(slopes, expected, atol=1e-2 * np.abs(expected).max())


def test_the_kalman_filter_drops_from_every_example_something_else(tmp_path):
    run = prepared(tmp_path, *LOKO, "--config.peft.dropout=0.5", "--config.optim.batch_size=8")
    run.model.train()
    graphdef, trainable, frozen = surgery.split(run.model)
    trainable = {path: value + 0.3 for path, value in trainable.items()}
    batch = jax.tree.map(lambda x: np.repeat(x[:1], 8, axis=0), next(run.training_batches(0)))  # one image, eight times
    now = optim.hyperparameters(run.config.optim, configs.spec(run.config), run.total_steps).at(0)
    found = training._measurements(run, run.task, graphdef)(trainable, frozen, batch, jax.random.key(0), now)
    assert np.ptp(np.asarray(found["residuals"]), axis=0).max() > 1e-3


def test_first_the_head_alone_then_the_adapter_alone(tmp_path):
    run = prepared(tmp_path, "--config.peft.method=hadamard_adapter")
    states = [step["trainable"] for step in taken(run, 4)]
    kinds = {path: "head" if path.startswith("head") else "adapter" for path in states[0]}
    assert {"adapter", "head"} == {*kinds.values()} and any("norm2" in path for path in kinds)
    first = surgery.split(run.model)[1]
    for path, kind in kinds.items():
        after_half, at_end = (np.asarray(states[index][path]) for index in (1, 3))
        assert np.array_equal(after_half, first[path]) == (kind == "adapter"), path
        assert np.array_equal(at_end, after_half) == (kind == "head"), path


@pytest.mark.parametrize("fraction", ["0.3", "0.0"])
def test_the_command_line_sets_the_stages(tmp_path, fraction):
    run = prepared(tmp_path, "--config.peft.method=hadamard_adapter", "--config.peft.options=norm=''",
                   f"--config.optim.head_first_fraction={fraction}")  # fmt: skip
    assert run.config.optim.head_first_fraction == float(fraction)


def test_a_budget_waits_for_the_adapter_and_is_met_however_late(small_vit):
    spec = PeftSpec(family="dora_dynamic", options="rank=1,initial_rank=2,begin=0.5,end=1.0", train="head")
    model = surm.attach(small_vit, spec, nnx.Rngs(0))
    (late,) = rank_budget.budgets_of(model, 10, first=6)
    assert [int(late.kept(step)) for step in (0, 6, 8, 10)] == [12, 12, 12, 6]
    spec = PeftSpec(family="adalora", options="rank=1,initial_rank=2,begin=0.96,end=1.0", train="head")
    (budget,) = rank_budget.budgets_of(surm.attach(small_vit, spec, nnx.Rngs(0)), 10)
    assert int(budget.kept(10)) == 6


def test_the_rates_of_two_stages():
    chosen = configs.default()
    chosen.optim.schedule, chosen.optim.warmup_fraction, chosen.optim.learning_rate = "linear", 0.0, 1.0
    chosen.optim.head_learning_rate, chosen.optim.head_first_fraction = 2.0, 0.4
    numbers = optim.hyperparameters(chosen.optim, PeftSpec(), 10)
    np.testing.assert_allclose(numbers.head_rate, [2, 1.5, 1, 0.5, 0, 0, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(numbers.adapter_rate, [0, 0, 0, 0, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6], atol=1e-6)


RELATED = [*matrices.FAMILIES][7:]  # after those of the house
SLOW = [
    *([f"--config.peft.family={name}"] for name in RELATED),
    ["--config.peft.method=loko", "--config.peft.family=low_rank", "--config.optim.learning_rate=1e-4",
     "--config.optim.head_learning_rate=1e-3"],
    ["--config.peft.magnitude=True"],
    ["--config.peft.rules=.*value => family=low_rank, rank=2; .*up => family=kronecker, scale=0.5; .*key => off"],
]  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        ["--config.peft.method=hadamard_adapter"],
        *(pytest.param(more, marks=pytest.mark.slow) for more in SLOW),
    ],
    ids=lambda more: more[0].split("=")[1][:20],
)
def test_every_method_lowers_its_loss_and_is_opened_again(tmp_path, more):
    given = arguments(tmp_path / "run", "--config.optim.epochs=3", *more)
    assert train.main(given) == 0
    losses = [line["values"]["loss"] for line in lines(tmp_path / "run") if line["split"] == "train"]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    opened = surm.load_run(tmp_path / "run")
    if "rules" in more[0]:
        found = result(tmp_path / "run")
        families = {path.rpartition(".")[2]: one["family"] for path, one in found["layers"].items()}
        assert families == {"value": "low_rank", "up": "kronecker"}
        assert found["family"] == "low_rank+kronecker" and "low_rank+kronecker" in report.summary(found, "")
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8), np.uint8)
    merged = surm.merge(opened.model)
    batch = opened.task.inputs(next(iter(opened.task.evaluation(opened.task.ready(opened._split(images))))))
    np.testing.assert_allclose(merged(**batch), opened.model(**batch), atol=2e-4)


BAD = [
    (["--config.peft.family=adalora", "--config.peft.options=rank=8,initial_rank=4"],
     "rank must be at most initial_rank; given rank=8, initial_rank=4"),
    (["--config.peft.family=adalora", "--config.peft.options=begin=0.8,end=0.5"],
     "expected shares of the training with 0 <= begin < end <= 1"),
    (["--config.peft.family=hadamard_adapter"], "(hadamard_adapter is a method: method='hadamard_adapter')"),
    (["--config.peft.method=vera"], "(vera is a family: family='vera')"),
    (["--config.peft.rules=.*value => family=vara"], "no family is called 'vara'; nearest: vera"),
    (["--config.peft.rules=.*value"], "'.*value' is not PATTERN => NAME=VALUE, ... or PATTERN => off"),
    (["--config.peft.rules=.*value => scale=2; .*(value|key) => scale=3"], "is claimed by two rules"),
    (["--config.peft.rules=.*valeu => off"], "pattern '.*valeu', a regular expression, matches no linear layer"),
    (["--config.peft.exclude=.*(query|key|value)"], "leaves no layer"),
    (["--config.peft.method=loko", "--config.optim.name=sgd"], "config.peft.method='loko' trains by loko"),
    (["--config.optim.name=loko", "--config.optim.gradient_clip=1.0"], "loko, which does not support it"),
    (["--config.optim.name=loko", "--config.peft.family=adalora"], "expected config.peft.options=penalty=0"),
    (["--config.optim.head_first_fraction=0.5", "--config.peft.train=", "--config.peft.targets=.*query"],
     "the head trains alone for 0.5 of the steps"),
    (["--config.population=scale=1|3", "--config.peft.rules=.*value => scale=2"], "'.*value' gives a scale of its own"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_what_does_not_fit_ends_in_one_line(tmp_path, capsys, more, message):
    assert train.main(arguments(tmp_path / "run", *more)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and message in said[0], said
    assert not (tmp_path / "run" / "result.json").exists()


def test_every_name_a_config_takes_is_listed():
    asked = {"adalora", "dora_dynamic", "lora_xs", "melora", "lora2", "lorta", "aurora", "hadamard_adapter", "loko",
             "c3a", "vera"}  # fmt: skip
    assert asked <= surm.METHODS.keys()
    for name, key in surm.METHODS.items():
        PeftSpec(**{key.removeprefix("peft."): name})
    json.dumps(surm.METHODS)
