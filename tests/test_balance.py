"""Classes that differ in number: weights of the loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.utils.class_weight

from surm import InputError, config
from surm.data.splits import ArraySplit, Dataset
from surm.peft import surgery
from surm.tasks import balance, metrics
from surm.training import optim, preparation, read_keys, step
from tests import small_runs

COUNTS = (30, 8, 2)


def data(counts=COUNTS, names=("cat", "dog", "owl")) -> Dataset:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    split = ArraySplit(np.zeros((len(labels), 2, 2, 3), np.uint8), labels)
    return Dataset(split, None, split, len(counts), class_names=names)


def weights(text: str, given: Dataset | None = None):
    asked = config.default()
    asked.optim.class_weights = text
    return balance.class_weights(asked, given or data())


def test_balanced_weights_are_those_of_scikit_learn():
    labels = data().train.labels
    expected = sklearn.utils.class_weight.compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(weights("balanced"), expected, rtol=1e-6)
    assert np.sum(weights("balanced")[labels]) == pytest.approx(len(labels))


def test_a_class_without_examples_leaves_the_others_balanced():
    found = weights("balanced", data((6, 0, 2)))
    np.testing.assert_allclose(found, [8 / 12, 1, 8 / 4])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("none", None), ("1,2.5,4", [1, 2.5, 4]), ("owl=4, dog=2.5", [1, 2.5, 4]), (" 1 , 2 , 3 ", [1, 2, 3])],
)
def test_weights_are_given_in_order_or_by_name(text, expected):
    np.testing.assert_array_equal(weights(text), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2", "lists 2 numbers, expected 3, one per class: cat, dog, owl; or 'balanced', or 'none'"),
        ("balance", "lists 1 numbers, expected 3"),
        ("owls=2", "names the class 'owls'; nearest: owl"),
        ("owl=2,owl=3", "names the class 'owl' twice"),
        ("1,0,1", "'0', expected a number above 0"),
        ("1,-2,1", "'-2', expected a number above 0"),
        ("1,nan,1", "'nan', expected a number above 0"),
        ("owl=inf", "'inf', expected a number above 0"),
        ("owl=", "'', expected a number above 0"),
    ],
)
def test_what_is_no_weight_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        weights(text)


def test_the_weights_are_told_with_the_counts():
    told = balance.told(weights("balanced"), data())
    assert told == "class weights (and training examples): cat: 0.444 (30), dog: 1.67 (8), owl: 6.67 (2)"
    many = data(tuple(range(1, 21)), tuple(f"c{number}" for number in range(20)))
    assert (
        balance.told(weights("balanced", many), many) == "class weights from c19: 0.525 (20) to c0: 10.5 (1) examples"
    )


def test_loko_and_numbers_have_no_weights():
    for kind, message in (("loko", "loko has no loss to weight"), ("update", None)):
        asked = small_runs.config("x", **{"peft.method": kind, "optim.class_weights": "balanced"})
        if message:
            with pytest.raises(InputError, match=message):
                config.check(asked)
        else:
            config.check(asked)
    for key, value in (("optim.class_weights", "balanced"), ("data.sampling", "balanced")):
        with pytest.raises(InputError, match=f"config.{key} is set, but the labels are numbers, not classes"):
            read_keys.check(small_runs.config("x", **{key: value}), dataclasses.replace(data(), regression=True))


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    """A step's loss and gradient norm, in so many parts of a batch."""
    source = small_runs.images(tmp_path_factory.mktemp("data"), counts=(20, 6, 6))

    def taken(parts: int, masked: int, **more):
        more = {
            "optim.class_weights": "0.5,2,4",
            "optim.accumulation_steps": parts,
            "optim.label_smoothing": 0.1,
            **more,
        }
        run = preparation.prepare(small_runs.config(source, **more))
        numbers = optim.hyperparameters(run.config.optim, config.spec(run.config), run.total_steps)
        state = step.initial_state(run, 0, averaged=False)
        batch = next(run.training_batches(0))
        batch["mask"] = np.arange(len(batch["mask"])) >= masked
        frozen = surgery.split(run.model)[2]
        values = jax.jit(step.train_step(run))(state, frozen, batch, numbers)[1]
        model = surgery.join(surgery.split(run.model)[0], state["trainable"], frozen)
        return values, model(**run.inputs(batch)), batch

    return taken


@pytest.mark.parametrize("masked", [0, 3])
def test_the_loss_of_a_step_is_the_weighted_mean_whatever_the_parts(taken, masked):
    whole, outputs, batch = taken(1, masked)
    w = jnp.array([0.5, 2, 4])
    real, label = batch["mask"], batch["label"]
    each = metrics.losses(outputs, jnp.asarray(label), label_smoothing=0.1, class_weights=w)
    expected = jnp.sum(each[real]) / jnp.sum(w[label[real]])
    assert float(whole["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(whole["accuracy"]) == pytest.approx(np.mean(outputs.argmax(1)[real] == label[real]))
    parts, _, _ = taken(4, masked)
    for name in ("loss", "gradient_norm", "accuracy"):
        np.testing.assert_allclose(whole[name], parts[name], rtol=2e-5)
    assert "weight" not in whole
