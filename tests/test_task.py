"""What is asked of a model: sums that add, rows of zeros that weigh nothing, and a task without a number of outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import surm
from surm import config as configs
from surm.data.splits import ArraySplit, Dataset
from surm.errors import InputError
from surm.models.processor import plain
from surm.peft import surgery
from surm.tasks import metrics
from surm.tasks.images import LabelledImages
from surm.tasks.labels import Labels, Targets
from surm.tasks.metric import Metric
from surm.tasks.task import with_outputs
from surm.training import optim, step
from surm.training.prepared import Run

WEIGHTS = np.array([0.5, 2.0, 4.0], np.float32)
TARGETS = {
    "classes": Targets(3),
    "weighted": Targets(3, class_weights=WEIGHTS),
    "numbers": Targets(1, ("spearman",), regression=True),
}


def labelled(name: str, count: int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Outputs and a batch of so many examples."""
    rng = np.random.default_rng(0)
    labels = rng.normal(size=count).astype(np.float32) if name == "numbers" else np.arange(count, dtype=np.int32) % 3
    outputs = rng.normal(size=(count, TARGETS[name].outputs)).astype(np.float32)
    return jnp.asarray(outputs), {"label": jnp.asarray(labels), "mask": jnp.ones(count, bool)}


def filled(batch: dict[str, jax.Array], rows: int) -> dict[str, jax.Array]:
    """A batch with rows of zeros behind it."""
    return {name: jnp.concatenate([one, jnp.zeros((rows, *one.shape[1:]), one.dtype)]) for name, one in batch.items()}


@pytest.mark.parametrize("name", TARGETS)
def test_a_row_of_zeros_weighs_nothing(name):
    task, (outputs, batch) = Labels(TARGETS[name]), labelled(name, 6)
    whatever = jnp.concatenate([outputs, 100 * outputs[:2]])  # a model answers something to a row of zeros, too
    whole, more = task.sums(outputs, batch), task.sums(whatever, filled(batch, 2))
    assert {one: float(total) for one, total in whole.items()} == pytest.approx(
        {one: float(total) for one, total in more.items()}, rel=1e-6
    )
    nothing = task.sums(outputs, filled({key: one[:0] for key, one in batch.items()}, 6))
    assert all(float(total) == 0 for total in nothing.values())


@pytest.mark.parametrize("name", TARGETS)
def test_sums_add_over_parts(name):
    task, (outputs, batch) = Labels(TARGETS[name]), labelled(name, 7)
    parts = [slice(0, 4), slice(4, 7)]
    found = [task.sums(outputs[part], {key: one[part] for key, one in batch.items()}) for part in parts]
    whole = task.sums(outputs, batch)
    for key, total in jax.tree.map(jnp.add, *found).items():
        assert float(total) == pytest.approx(float(whole[key]), rel=1e-6), key
    weight = WEIGHTS[batch["label"]].sum() if name == "weighted" else 7
    assert float(whole["weight"]) == pytest.approx(weight) and ("count" in whole) == (name == "weighted")


@pytest.mark.parametrize("name", TARGETS)
def test_labels_know_their_metrics_and_their_outputs(name):
    task = LabelledImages(configs.default(), TARGETS[name], plain(0.5, 0.5, side=8, channels=3))
    assert with_outputs(task, "anything") is task and task.outputs == TARGETS[name].outputs
    assert task.metrics[0].better == "more" and task.metrics[-1].name == "loss" and task.metrics[-1].better == "less"


def test_less_is_better_of_a_loss():
    assert Metric("loss", "less", "nats").goodness(0.5) == -0.5 and Metric("accuracy").goodness(0.5) == 0.5


class Speaker(nnx.Module):
    """The smallest model that answers with a token at every place."""

    def __init__(self, rngs: nnx.Rngs):
        self.table = nnx.Embed(11, 8, rngs=rngs)
        self.mix = nnx.Linear(8, 8, rngs=rngs)
        self.last = nnx.Linear(8, 11, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.last(jax.nn.relu(self.mix(self.table(tokens))))


class NextToken:
    """A task without a fixed number of outputs for an example, and without a base class."""

    name, outputs, default_train, counts = "next_token", None, (), "tokens"
    metrics = (Metric("perplexity", "less", ""), Metric("loss", "less", "nats"))

    def inputs(self, batch):
        return {"tokens": batch["tokens"]}

    def sums(self, outputs, batch, *, label_smoothing=0.0):
        rows = outputs.reshape(-1, outputs.shape[-1])
        losses = metrics.losses(rows, batch["targets"].reshape(-1), label_smoothing=label_smoothing)
        weight = batch["weight"].reshape(-1)
        return {"loss": jnp.sum(weight * losses), "weight": jnp.sum(weight)}

    def _not_asked(self, *given, **named):
        raise AssertionError("a step asks for inputs and sums alone")

    ready = training = evaluation = answers = known = measured = counted = _not_asked


BATCH = {
    "tokens": jnp.asarray(np.random.default_rng(0).integers(0, 11, (8, 8))),  # as many places as rows
    "targets": jnp.asarray(np.random.default_rng(1).integers(0, 11, (8, 8))),
    "weight": (np.arange(8)[:, None] > np.arange(8)).astype(np.float32),  # of the first row no token counts
}


def spoken(**settings: object) -> Run:
    """A run of the smallest model, for a step or two."""
    config = configs.default()
    config.update_from_flattened_dict({"peft.train": "", "peft.targets": "mix", "optim.name": "sgd", **settings})
    spec = surm.PeftSpec(family="low_rank", options={"rank": 2}, targets="mix", train=())
    model = surm.attach(Speaker(nnx.Rngs(0)), spec, nnx.Rngs(1))
    optimizer = configs.optimizer_name(config.optim, configs.spec(config))
    nothing = ArraySplit(np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, np.int32))
    return Run(
        plan=configs.Plan(config, spec, optimizer, head_first_fraction=0.0, metrics=(), lengths=()),
        model=model,
        data=Dataset(nothing, None, nothing, 0),
        task=NextToken(),
        total_steps=4,
        resumed=False,
        training=None,
        held_out={},
    )


def stepped(run: Run) -> tuple[dict, dict]:
    """What trains after a step, and its metrics."""
    numbers = optim.hyperparameters(run.config.optim, configs.spec(run.config), run.total_steps)
    state = step.initial_state(run, 0, averaged=False)
    after, values = jax.jit(step.train_step(run))(state, surgery.split(run.model)[2], BATCH, numbers)
    return after["trainable"], values


def test_a_task_of_tokens_trains_and_its_parts_weigh_what_they_hold():
    settings = {"optim.warmup_fraction": 0.0, "optim.label_smoothing": 0.0}
    (whole, values), (parts, in_parts) = (
        stepped(spoken(**settings, **{"optim.accumulation_steps": number})) for number in (1, 4)
    )
    logits = Speaker(nnx.Rngs(0))(BATCH["tokens"])
    each = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(BATCH["targets"])[..., None], -1)[
        ..., 0
    ]
    expected = np.sum(each * BATCH["weight"]) / BATCH["weight"].sum()
    assert float(values["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(in_parts["loss"]) == pytest.approx(expected, rel=1e-5) and "accuracy" not in values
    assert float(in_parts["gradient_norm"]) == pytest.approx(float(values["gradient_norm"]), rel=1e-5)
    assert any(np.any(np.asarray(value) != 0) for value in whole.values())
    for path, value in whole.items():
        np.testing.assert_allclose(parts[path], value, rtol=1e-4, atol=1e-7)


def test_loko_refuses_a_task_without_a_number_of_outputs():
    said = r"config.peft.method='loko' needs a task with a fixed number of outputs, such as 'labels'; got 'next_token'"
    with pytest.raises(InputError, match=said):
        step.train_step(spoken(**{"peft.method": "loko"}))
