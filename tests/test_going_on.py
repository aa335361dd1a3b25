"""What a run may differ in when it goes on, key by key; and how it goes on longer."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from surm import InputError, config, train
from surm.peft import surgery
from surm.peft.surgery import reattach
from surm.rundir import going_on
from surm.rundir.workdir import Workdir
from surm.sweeps import launchers
from tests import small_runs
from tests.test_choosing import arrays, cut, measured

SAVED = {"checkpoint_every_steps": 2, "keep_checkpoints": 9, "peft.dropout": 0.2}


def held(workdir: pathlib.Path) -> dict:
    return dict(config.leaves(json.loads((workdir / "config.json").read_text())))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return small_runs.images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    train.run(small_runs.config(source, **SAVED), str(workdir))
    return workdir


@pytest.fixture
def stopped(finished, tmp_path) -> pathlib.Path:
    shutil.copytree(finished, tmp_path / "run")
    cut(tmp_path / "run", 2)
    return tmp_path / "run"


def test_a_run_of_0_1_0_whose_head_trains_and_is_adapted_goes_on(source, tmp_path, monkeypatch):
    targets = r"blocks\.0\.attention\.query|head"
    old = small_runs.config(source, **SAVED, **{"peft.targets": targets})
    arrays_of_old = [f"{name}.delta.parameters.a" for name in ("blocks.0.attention.query", "head")]
    with monkeypatch.context() as patched:
        of_old = {"saved": (*arrays_of_old, "head.base.kernel")}
        patched.setattr(surgery, "reattach", lambda *args, **_: reattach(*args, **of_old))
        train.run(old, str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    cut(tmp_path / "run", 2)
    train.run(old, str(tmp_path / "run"))
    whole, run = arrays(tmp_path / "whole"), arrays(tmp_path / "run")
    assert {*arrays_of_old, "head.base.kernel"} <= whole.keys() == run.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(run[name], array, err_msg=name)


def test_there_is_a_decision_for_every_key():
    assert going_on.DECISIONS.keys() == dict(config.leaves(config.default())).keys()


def test_a_key_that_was_not_known_decides():
    (change,) = going_on.changes({"seed": 0, "model.new": 1}, {"seed": 0})
    assert change.decision == "decides"


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, {"writers": "tensorboard"}.get(key, 3)) for key, kind in going_on.DECISIONS.items() if kind == "free"],
)
def test_what_cannot_change_the_result_may_differ(tmp_path, key, value):
    with Workdir(tmp_path / "run", config.default()).claimed():
        pass
    other = config.default()
    other.update_from_flattened_dict({key: value})
    folder = Workdir(tmp_path / "run", other)
    assert [change.key for change in folder.changes] == [key] and not folder.longer
    with folder.claimed():
        assert held(tmp_path / "run")[key] != value, "before the data was looked at nothing is written"
        folder.accept()
    assert held(tmp_path / "run")[key] == value


@pytest.mark.parametrize("choose", ["last", "best"])
def test_how_often_is_evaluated_decides_where_it_chooses(tmp_path, choose):
    before, now = config.default(), config.default()
    before.eval.choose = now.eval.choose = choose
    now.eval_every_steps = 7
    with Workdir(tmp_path / "run", before).claimed():
        pass
    if choose == "last":
        assert [str(change) for change in Workdir(tmp_path / "run", now).changes] == ["eval_every_steps 0 → 7"]
    else:
        with pytest.raises(InputError, match="eval_every_steps: 0 against 7"):
            Workdir(tmp_path / "run", now)


def test_a_run_goes_on_with_what_cannot_change_it_and_its_data_elsewhere(source, finished, stopped, tmp_path, capsys):
    moved = shutil.copy(source, tmp_path / "moved.npz")
    more = {"data.threads": 3, "checkpoint_every_steps": 3, "eval_every_steps": 3, "keep_best_checkpoints": 1}
    again = train.run(small_runs.config(str(moved), **SAVED | more), str(stopped))
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("continuing with another"))
    assert "data.threads 2 → 3" in said and f"data.source {source!r} → {str(moved)!r}" in said
    assert again["eval"] == json.loads((finished / "result.json").read_text())["eval"]
    assert held(stopped)["data.source"] == str(moved) and held(stopped)["data.threads"] == 3
    for name, array in arrays(finished).items():
        np.testing.assert_array_equal(array, arrays(stopped)[name])


def test_other_data_under_another_name_is_refused_before_anything_changes(finished, stopped, tmp_path):
    other = small_runs.images(tmp_path / "other", seed=1)
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(InputError, match=r"they differ in the examples \(data.source '.*' → '.*other.*'\); name"):
        train.run(small_runs.config(other, **SAVED), str(stopped))
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name != ".lock"}


def test_the_same_arrays_beside_another_activation_are_another_model(source, tmp_path):
    files = pathlib.Path(__file__).parent / "models" / "golden" / "vit"
    weights = [str(shutil.copytree(files, tmp_path / name)) for name in ("one", "other")]
    said = pathlib.Path(weights[1], "config.json")
    said.write_text(said.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    first, then = (small_runs.config(source, **SAVED, **{"model.name": "auto", "model.image_size": 16}) for _ in "12")
    first.model.weights, then.model.weights = weights
    train.run(first, str(tmp_path / "run"))
    cut(tmp_path / "run", 2)
    with pytest.raises(InputError, match=r"they differ in the shape of the model \(model.weights '.*one' → "):
        train.run(then, str(tmp_path / "run"))


def test_what_decides_is_refused_with_a_way_on(source, finished):
    message = rf"seed: 0 against 1; name another .*; there config.init_adapter='{finished}' starts from this run's"
    with pytest.raises(InputError, match=message):
        train.run(small_runs.config(source, **SAVED, seed=1), str(finished))


@pytest.mark.parametrize("state", [pytest.param("stopped", marks=pytest.mark.slow), "finished"])
def test_a_longer_run_ends_as_if_it_had_been_so_long_from_the_start(source, finished, tmp_path, state):
    longer = small_runs.config(source, **SAVED, **{"optim.steps": 10})
    undisturbed, workdir = train.run(longer, str(tmp_path / "undisturbed")), tmp_path / "run"
    shutil.copytree(finished, workdir)
    if state == "stopped":
        cut(workdir, 4)
    assert launchers.Run("run", {}, longer, workdir, []).result() is None
    again = train.run(longer, str(workdir))
    assert again["steps"] == 10 and again["eval"] == undisturbed["eval"]
    assert held(workdir)["optim.steps"] == 10
    assert measured(workdir, "train") == measured(tmp_path / "undisturbed", "train")
    for name, array in arrays(tmp_path / "undisturbed").items():
        np.testing.assert_array_equal(array, arrays(workdir)[name])
    with pytest.raises(InputError, match="has taken 10 steps, expected 3 or fewer"):
        train.run(small_runs.config(source, **SAVED, **{"optim.steps": 3}), str(workdir))


def test_a_longer_run_chooses_as_if_it_had_been_so_long_from_the_start(source, tmp_path):
    more = {"eval.choose": "best", "eval_every_steps": 2, "eval.patience": 2, "optim.head_learning_rate": 0.3}
    given = [small_runs.config(source, **SAVED | more | {"optim.steps": steps}) for steps in (3, 12)]
    train.run(given[0], str(tmp_path / "run"))
    assert [*measured(tmp_path / "run", "validation")] == [2, 3], "the longer run has no reason to look at step 3"
    again, undisturbed = train.run(given[1], str(tmp_path / "run")), train.run(given[1], str(tmp_path / "undisturbed"))
    assert undisturbed["steps"] < 12, "patience must end it for the test to say anything"
    assert {key: again[key] for key in ("steps", "chosen_step", "eval", "validation")} == {
        key: undisturbed[key] for key in ("steps", "chosen_step", "eval", "validation")
    }


def test_a_run_that_was_counted_in_epochs_is_the_same_counted_in_steps(source, finished, capsys):
    before = (finished / "result.json").read_bytes()
    given = small_runs.config(source, **SAVED, **{"optim.steps": 0, "optim.epochs": 1})  # 32 images are 4 steps
    with pytest.raises(InputError, match="has taken 6 steps, expected 4 or fewer"):
        train.run(given, str(finished))
    assert (finished / "result.json").read_bytes() == before


def test_a_finished_run_is_not_repeated_for_what_changes_nothing(source, finished, capsys):
    train.run(small_runs.config(source, **SAVED, **{"data.threads": 5}), str(finished))
    said = "holds the finished run of this config (except for data.threads 2 → 5; nothing was read again)"
    assert said in capsys.readouterr().out
    assert held(finished)["data.threads"] == 2


def test_a_finished_run_without_its_checkpoints_cannot_go_on(source, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(InputError, match="a finished run whose checkpoints are gone"):
        train.run(small_runs.config(source, **SAVED, **{"optim.steps": 10}), str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"optim.schedule": "cosine"}, "the cosine schedule falls to 0 at the last step"),
        ({"optim.warmup_fraction": 0.1}, "the warm-up is a fraction of the steps (config.optim.warmup_fraction=0.1)"),
        ({"optim.head_first_fraction": 0.5}, "the head trains alone for a fraction of the steps (0.5)"),
        ({"peft.family": "adalora"}, "the rank budget of adalora ends at a fraction of the steps"),
        ({"peft.rules": ".*value => family=lora2"}, "the rank budget of lora2 ends at a fraction of the steps"),
        ({"peft.method": "loko", "optim.schedule": "cosine"}, ""),
        ({"peft.method": "hadamard_adapter"}, "the head trains alone for a fraction of the steps (0.5)"),
        ({}, ""),
    ],
)
def test_what_depends_on_the_length_of_a_run(more, why):
    given = small_runs.config("x", **more)
    assert going_on.bound_to_length(config.checked(given)) == why


@pytest.mark.slow
def test_a_population_goes_on_longer_as_if_it_had_been_so_long_from_the_start(source, tmp_path):
    given = [
        small_runs.config(source, **SAVED, **{"population": "learning_rate=1e-3|4e-3", "optim.steps": steps})
        for steps in (2, 6, 6)
    ]
    train.run(given[0], str(tmp_path / "run"))
    again = train.run(given[1], str(tmp_path / "run"))
    undisturbed = train.run(given[2], str(tmp_path / "undisturbed"))
    assert again["population"] == undisturbed["population"] and again["steps"] == 6
    members = sorted((tmp_path / "run" / "members").iterdir())
    assert len(members) == 2
    for one in members:
        other = tmp_path / "undisturbed" / "members" / one.name
        for array in arrays(one):
            np.testing.assert_array_equal(arrays(one)[array], arrays(other)[array])
        assert held(one)["optim.steps"] == 6


@pytest.mark.slow
def test_a_member_of_a_population_is_asked_too(source, tmp_path):
    more = {"population": "schedule=constant|cosine", "optim.steps": 2}
    train.run(small_runs.config(source, **more), str(tmp_path / "run"))
    assert train.run(small_runs.config(source, **more), str(tmp_path / "run"))["steps"] == 2
    with pytest.raises(InputError, match="the cosine schedule falls to 0"):
        train.run(small_runs.config(source, **more | {"optim.steps": 4}), str(tmp_path / "run"))
    assert (tmp_path / "run" / "result.json").exists()


def test_another_run_is_told_by_its_data_and_weights_first_and_its_adapter_is_proposed_only_if_it_may_fit():
    photos = {"data.source": "photos", "model.weights": "vit", "data.augment": "flip", "seed": 0, "data.lengths": "1"}
    texts = {"data.source": "texts", "model.weights": "bert", "data.augment": "none", "seed": 1, "data.lengths": "2"}
    texts |= {"optim.batch_size": 1, "optim.name": "adam", "optim.momentum": 0.5}
    with pytest.raises(
        InputError, match="in data.source: 'photos' against 'texts'; model.weights: 'vit'.* and 3"
    ) as said:
        going_on.check(going_on.changes(photos, texts), config.default(), "runs/photos", adapter=True)
    assert "init_adapter" not in str(said.value)
    with pytest.raises(InputError, match="config.init_adapter='runs/photos' starts from"):
        going_on.check(going_on.changes(photos, photos | {"seed": 1}), config.default(), "runs/photos", adapter=True)
