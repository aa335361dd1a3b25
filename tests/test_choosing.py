"""The best step: chosen by the validation split, reported on the test split, found again after a stop."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

import surm
from surm import InputError, report, train
from surm.report import inspection
from surm.rundir import checkpoint
from surm.tasks import choosing
from surm.tasks.metric import Metric
from tests import small_runs

WANDERING = {
    "model.name": "vit_micro",  # of two narrow blocks the last step would be the best, and right altogether
    "model.weights": "none",
    "model.image_size": 8,
    "optim.steps": 16,
    "eval_every_steps": 2,
    "checkpoint_every_steps": 2,
    "keep_checkpoints": 20,
    "optim.learning_rate": 0.05,
    "optim.head_learning_rate": 0.3,
    "peft.dropout": 0.2,
    "optim.ema_decay": 0.3,
}


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(workdir / "adapter" / "adapter_model.safetensors")


def measured(workdir: pathlib.Path, split: str) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["values"] for line in lines if line["split"] == split}


def cut(workdir: pathlib.Path, after: int) -> None:
    """Leaves what a run that was killed after a checkpoint leaves."""
    for folder in (workdir / "checkpoints").iterdir():
        if int(folder.name) > after:
            shutil.rmtree(folder)
    (workdir / "result.json").unlink(missing_ok=True)
    shutil.rmtree(workdir / "adapter", ignore_errors=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return small_runs.images(tmp_path_factory.mktemp("data"), counts=(20, 20, 20))


@pytest.fixture(scope="module")
def wandering(source, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "best"
    train.run(small_runs.config(source, **WANDERING, **{"eval.choose": "best"}), str(workdir))
    return workdir


def test_the_best_of_the_validation_split_is_saved_and_the_test_split_measured_once(wandering):
    result, found = json.loads((wandering / "result.json").read_text()), measured(wandering, "validation")
    best = min(step for step in found if found[step]["accuracy"] == max(v["accuracy"] for v in found.values()))
    assert [*found] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert result["chosen_step"] == best and result["validation"] == found[best]
    assert best < 16, "it tells the best from the last alone"
    assert measured(wandering, "test") == {best: result["eval"]}
    assert np.trace(result["confusion"]) / np.sum(result["confusion"]) == result["eval"]["accuracy"]
    with checkpoint.Checkpoints(wandering / "checkpoints", 20) as saved:
        state = saved.state(best)
    for name, array in arrays(wandering).items():
        np.testing.assert_array_equal(array, state["average"][name])
    shown, summed = inspection.facts_of(wandering), report.summary(result, wandering)
    assert f"step {best}, the best on the validation split: accuracy {found[best]['accuracy']:.4f}" in shown["chosen"]
    assert f"measured at step {best}, the best on the validation split" in summed
    true, taken = np.unravel_index(np.argmax(np.array(result["confusion"]) * (1 - np.eye(3))), (3, 3))
    assert shown["mistaken"].startswith(f"{true} as {taken}: {result['confusion'][true][taken]}")
    answers = surm.load_run(wandering).predict(
        np.load(json.loads((wandering / "config.json").read_text())["data"]["source"])["x_test"]
    )
    assert answers.shape == (60, 3)


@pytest.mark.parametrize("after", [pytest.param(4, marks=pytest.mark.slow), 10, 16])
def test_a_run_that_was_killed_chooses_as_if_it_had_not_been(source, wandering, tmp_path, after):
    workdir = tmp_path / "run"
    shutil.copytree(wandering, workdir)
    cut(workdir, after)
    again = train.run(small_runs.config(source, **WANDERING, **{"eval.choose": "best"}), str(workdir))
    before = json.loads((wandering / "result.json").read_text())
    for key in ("eval", "validation", "chosen_step", "confusion", "steps"):
        assert again[key] == before[key]
    assert measured(workdir, "validation") == measured(wandering, "validation")
    for name, array in arrays(wandering).items():
        np.testing.assert_array_equal(array, arrays(workdir)[name])


def test_choosing_changes_no_step(source, wandering, tmp_path):
    last = train.run(small_runs.config(source, **WANDERING), str(tmp_path / "last"))
    assert measured(tmp_path / "last", "train") == measured(wandering, "train")
    assert "chosen_step" not in last and measured(tmp_path / "last", "test")[16] == last["eval"]


@pytest.mark.slow
def test_patience_ends_a_run_and_does_so_again_after_a_stop(source, wandering, tmp_path, capsys):
    more = {"eval.choose": "least_loss", "eval.patience": 2, "keep_checkpoints": 20}
    given = small_runs.config(source, **WANDERING | more)
    first = train.run(given, str(tmp_path / "run"))
    losses = {step: values["loss"] for step, values in measured(wandering, "validation").items()}
    expected, best = None, 2
    for step in losses:
        best = step if losses[step] < losses[best] else best
        if expected is None and step - best >= 4:
            expected = step, best
    assert expected is not None and expected[0] < 16, "the loss must rise for the test to say anything"
    assert (first["steps"], first["chosen_step"]) == expected
    assert f"no better loss on the validation split in 2 evaluations: the run ends after step {expected[0]}" in (
        capsys.readouterr().out
    )
    for after in (expected[1], expected[0]):
        cut(tmp_path / "run", after)
        again = train.run(given, str(tmp_path / "run"))
        assert {key: again[key] for key in ("eval", "chosen_step", "steps")} == {
            key: first[key] for key in ("eval", "chosen_step", "steps")
        }


def test_a_kept_step_is_opened_and_one_that_is_not_names_those_that_are(source, tmp_path, capsys):
    more = {"eval.choose": "last", "keep_checkpoints": 1, "keep_best_checkpoints": 2, "optim.ema_decay": 0.0}
    train.run(small_runs.config(source, **WANDERING | more), str(tmp_path / "run"))
    found = {step: values["accuracy"] for step, values in measured(tmp_path / "run", "test").items()}
    ranked = sorted(found, key=lambda step: (-found[step], step))  # of equals the earlier
    kept = sorted(int(folder.name) for folder in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == sorted({*ranked[:2], 16})
    best = surm.load_run(tmp_path / "run", step="best")
    assert f"the best of the steps kept, {', '.join(map(str, kept))}, on the test split is {ranked[0]}" in (
        capsys.readouterr().out
    )
    images = np.load(best.config.data.source)
    answers = best.predict(images["x_test"]).argmax(1)
    assert np.mean(answers == images["y_test"]) == pytest.approx(found[ranked[0]])
    again = surm.load_run(tmp_path / "run", step=16).predict(images["x_test"])
    np.testing.assert_array_equal(again, surm.load_run(tmp_path / "run").predict(images["x_test"]))
    with pytest.raises(InputError, match=f"keeps no checkpoint of step 3, but of {', '.join(map(str, kept))}"):
        surm.load_run(tmp_path / "run", step=3)
    with pytest.raises(InputError, match="step='first', expected a number of steps, 'best' or None"):
        surm.load_run(tmp_path / "run", step="first")


def test_of_a_run_that_chose_the_best_is_its_adapter(wandering):
    result = json.loads((wandering / "result.json").read_text())
    images = np.zeros((1, 8, 8, 3), np.uint8)
    for step in ("best", result["chosen_step"]):
        np.testing.assert_array_equal(
            surm.load_run(wandering, step=step).predict(images), surm.load_run(wandering).predict(images)
        )


def test_of_equals_the_earlier_is_the_best_and_a_step_is_looked_at_once():
    best = choosing.Best(Metric("accuracy"), 2, {"a": np.zeros(1)})
    for step, value in [(2, 0.5), (4, 0.7), (4, 0.9), (6, 0.7)]:
        best.take(step, {"accuracy": value}, lambda step=step: {"a": np.full(1, step)})
    assert (best.step, best.since, best.exhausted, best.arrays["a"][0]) == (4, 1, False, 4)
    best.take(8, {"accuracy": 0.6}, dict)
    assert best.exhausted
    again = choosing.Best(Metric("accuracy"), 2, {})
    again.restore(json.loads(json.dumps(best.notes)), best.arrays)
    assert again == best
