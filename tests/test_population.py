"""Runs that train together are the runs that train alone."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

import surm
from surm import train
from surm.cli import command_line
from surm.config import checked, default
from surm.machine import mesh as meshes
from surm.training import loop, members, placing, population, preparation, progress
from tests.test_text_run import material  # noqa: F401  a fixture
from tests.test_train import CONFIG, SMALL, lines, result

QUICK = [
    f"--config={CONFIG}",
    f"--config.model.weights={SMALL}",
    "--config.model.image_size=16",
    "--config.optim.batch_size=16",
    "--config.data.train_examples=64",
    "--config.log_every_steps=1",
    "--config.optim.steps=4",
    "--config.eval_every_steps=2",
]


def adapter(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "adapter" / "adapter_model.safetensors")


def train_one(folder: pathlib.Path, *arguments: str) -> int:
    return train.main(["surm.train", *arguments, f"--workdir={folder}"])


def assert_same(member: pathlib.Path, alone: pathlib.Path, tolerance: float = 2e-4):
    for one, other in zip(lines(member), lines(alone), strict=True):
        assert (one["step"], one["split"]) == (other["step"], other["split"])
        for name, value in one["values"].items():
            assert value == pytest.approx(other["values"][name], rel=tolerance, abs=1e-6), (name, one["step"])
    for path, value in adapter(alone).items():
        # A key's bias has no gradient but what rounding leaves.
        np.testing.assert_allclose(
            adapter(member)[path], value, rtol=tolerance, atol=tolerance * abs(value).max() + 1e-6
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("run") / "population"
    assert train_one(folder, *QUICK, "--config.population=seed=0|1,learning_rate=8e-3|2e-2,scale=0.5|1.0") == 0
    return folder


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("learning_rate=0.02,scale=1.0,seed=1", ["seed=1", "optim.learning_rate=2e-2"]),
        ("learning_rate=0.008,scale=0.5,seed=0", ["seed=0", "peft.scale=0.5"]),
    ],
)
def test_a_member_is_its_own_run(finished, tmp_path, name, alone):
    assert train_one(tmp_path / "alone", *QUICK, *(f"--config.{flag}" for flag in alone)) == 0
    assert_same(finished / "members" / name, tmp_path / "alone")
    of_member, of_run = result(finished / "members" / name), result(tmp_path / "alone")
    assert of_member["config"] == of_run["config"] and of_member["members"] == 8
    images = np.random.default_rng(0).integers(0, 17, (3, 8, 8), np.uint8)
    answers = [surm.load_run(folder).predict(images) for folder in (finished / "members" / name, tmp_path / "alone")]
    np.testing.assert_allclose(*answers, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_members_differ_in_all_that_they_may(tmp_path):
    lists = "schedule=cosine|constant,label_smoothing=0|0.1,gradient_clip=0.5,weight_decay=0.1,ema_decay=0.6,momentum=0"
    of_one = ["schedule=constant", "label_smoothing=0.1", "gradient_clip=0.5", "weight_decay=0.1", "ema_decay=0.6"]
    more = [*QUICK, "--config.optim.accumulation_steps=2", "--config.peft.dropout=0", "--config.eval_every_steps=0"]
    assert train_one(tmp_path / "all", *more, f"--config.population={lists}") == 0
    assert train_one(tmp_path / "alone", *more, *(f"--config.optim.{one}" for one in of_one)) == 0
    (member,) = (tmp_path / "all" / "members").glob("*label_smoothing=0.1*schedule=constant*")
    assert_same(member, tmp_path / "alone")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.population=seed=0|1", "--config.members_at_once=1", "--config.mesh.shard_members=True"],
         "config.members_at_once and config.mesh.shard_members exclude each other"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(tmp_path, capsys, more, message):
    assert train_one(tmp_path / "run", *QUICK, *more) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_resumed_population_does_without_the_adapter_it_began_with(finished, tmp_path, monkeypatch):
    (tmp_path / "adapter").symlink_to(finished / "members" / "learning_rate=0.008,scale=1.0,seed=0" / "adapter")
    more = [*QUICK, "--config.population=learning_rate=8e-3|2e-2", f"--config.init_adapter={tmp_path / 'adapter'}",
            "--config.checkpoint_every_steps=1"]  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(loop.Loop, "evaluate", lambda self, step: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert train_one(tmp_path / "run", *more) == 130
    (tmp_path / "adapter").unlink()
    assert train_one(tmp_path / "run", *more) == 0
    assert result(tmp_path / "run")["best"]


@pytest.mark.slow
def test_one_value_of_a_list_counts_too(tmp_path):
    quick = [*QUICK, "--config.optim.steps=2"]
    assert train_one(tmp_path / "one", *quick, "--config.population=scale=3") == 0
    assert train_one(tmp_path / "alone", *quick, "--config.peft.scale=3") == 0
    assert_same(tmp_path / "one" / "members" / "scale=3.0", tmp_path / "alone")


def test_the_result_sums_up(finished):
    got = result(finished)
    each = {own["member"]: own["eval"] for own in got["population"]}
    assert len(each) == 8 and len(got["settings"]) == 4
    best = max(each.values(), key=lambda values: (values["accuracy"], -values["loss"]))
    assert each[got["best"]] == got["eval"] == best
    for own in got["settings"]:
        of = [values["eval"]["loss"] for values in got["population"]
              if own["overrides"].items() <= values["overrides"].items()]  # fmt: skip
        assert len(of) == own["members"] == 2
        assert own["mean"]["loss"] == pytest.approx(np.mean(of))
        assert own["std"]["loss"] == pytest.approx(np.std(of, ddof=1))


def test_a_population_is_not_opened_as_a_run(finished):
    with pytest.raises(surm.InputError, match="holds a population; open one of its members"):
        surm.load_run(finished)


@pytest.mark.slow
def test_side_by_side_or_one_after_the_other_is_the_same(finished, tmp_path):
    assert train_one(tmp_path / "two", *QUICK, "--config.population=seed=0|1|2", "--config.members_at_once=2") == 0
    for seed in (0, 1):
        assert_same(tmp_path / "two" / "members" / f"seed={seed}",
                    finished / "members" / f"learning_rate=0.008,scale=1.0,seed={seed}")  # fmt: skip


def test_who_fails_is_left_behind(tmp_path, capsys):
    folder = tmp_path / "run"
    assert train_one(folder, *QUICK, "--config.population=learning_rate=1e36|8e-3", "--config.peft.dropout=0") == 0
    failed, went_on = result(folder)["population"]
    assert failed["eval"] is None and "no finite number" in failed["failed"]
    assert failed["failed"].startswith("step 1: ")  # the step that it happened in, not one of those that follow
    assert np.isfinite(went_on["eval"]["loss"]) and result(folder)["best"] == went_on["member"]
    assert "failed: learning_rate=1e+36: step" in capsys.readouterr().out
    assert not (folder / "members" / failed["member"] / "result.json").exists()
    assert train_one(folder / "all", *QUICK, "--config.population=learning_rate=1e36|2e36") == 3
    assert "every member has failed" in capsys.readouterr().err


def test_stopped_and_resumed_it_ends_bit_for_bit_the_same(tmp_path, monkeypatch):
    more = [*QUICK, "--config.population=seed=0|1,learning_rate=8e-3|1e36", "--config.checkpoint_every_steps=1"]
    assert train_one(tmp_path / "whole", *more) == 0
    original = progress.Progress.step

    def cut(self, step, values, *size):
        if step == 3:
            raise KeyboardInterrupt
        original(self, step, values, *size)

    with monkeypatch.context() as patched:
        patched.setattr(progress.Progress, "step", cut)
        assert train_one(tmp_path / "cut", *more) == 130
    assert train_one(tmp_path / "cut", *more) == 0
    for member in (tmp_path / "whole" / "members").iterdir():
        other = tmp_path / "cut" / "members" / member.name
        assert lines(member) == lines(other)
        if (member / "adapter").exists():
            assert (member / "adapter" / "adapter_model.safetensors").read_bytes() == (
                other / "adapter" / "adapter_model.safetensors"
            ).read_bytes()
    assert result(tmp_path / "whole")["population"] == result(tmp_path / "cut")["population"]


@pytest.mark.slow
def test_texts_of_members_are_filled_up_to_one_length(material, tmp_path):  # noqa: F811
    # A batch of one seed is longer than that of the other at the same step; everything trains, so no base differs.
    more = [*material, "--config.optim.steps=6", "--config.peft.method=full", "--config.optim.name=sgd",
            "--config.optim.learning_rate=0.1"]  # fmt: skip
    assert train_one(tmp_path / "two", *more, "--config.population=seed=0|1") == 0
    for seed in (0, 1):
        assert train_one(tmp_path / f"{seed}", *more, f"--config.seed={seed}") == 0
        assert_same(tmp_path / "two" / "members" / f"seed={seed}", tmp_path / f"{seed}", 1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sead=0|1", "members cannot differ in 'sead'; nearest: seed"),
        ("batch_size=8|16", "members cannot differ in 'batch_size'"),
        ("peft.family=circulant|toeplitz", "members cannot differ in 'peft.family'"),
        ("seed=0|x", "seed='x', expected whole numbers separated by"),
        ("learning_rate=1e-3|fast", "optim.learning_rate='fast', expected numbers separated by"),
        ("seed=0|0", "names a value of seed twice"),
        ("seed=0,seed=1", "names seed twice"),
        ("seed", "seed='', expected whole numbers separated by"),
        ("learning_rate=-1|1", "config.optim.learning_rate=-1.0, expected at least 0"),
        ("schedule=cosine|round", "config.optim.schedule='round', expected cosine or linear or constant"),
    ],
)
def test_what_is_no_population_is_refused_in_one_line(text, message, tmp_path, capsys):
    assert train_one(tmp_path / "run", *QUICK, f"--config.population={text}") == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert message in said
    assert not (tmp_path / "run").exists()


def test_members_with_other_frozen_weights_are_refused(tmp_path, capsys):
    more = ["--config.model.weights=none", "--config.model.name=vit_micro", "--config.population=seed=0|1"]
    assert train_one(tmp_path / "run", *QUICK, *more) == 2
    assert "seed=1 has another frozen base than seed=0" in capsys.readouterr().err


def test_members_are_the_product_in_order():
    config = default().unlock()
    config.population, config.optim.steps = "seed=3|4, schedule=linear|cosine", 1
    got = members.listed(checked(config))
    assert [own.overrides for own in got] == [
        {"seed": seed, "optim.schedule": schedule} for seed in (3, 4) for schedule in ("linear", "cosine")
    ]
    assert got[1].config.seed == 3 and got[1].config.population == ""
    assert len({own.name for own in got}) == 4
    assert json.dumps(got[0].overrides)
    assert command_line.parse(["x", *QUICK, "--workdir=x", "--config.population=seed=1"]).config.population == "seed=1"


def test_all_members_are_one_program_compiled_once():
    config = command_line.parse(["x", *QUICK, "--workdir=x", "--config.population=seed=0|1,learning_rate=1|2"]).config
    prepared, mesh = preparation.prepare(config), meshes.mesh_of(config)
    compiled: list[str] = []
    with jax.set_mesh(mesh):
        program = population.program(prepared, members.listed(prepared.plan), mesh)
        state, frozen = program.initial(), placing.placed(prepared, mesh)
        state, _ = program.step(state, frozen, next(program.batches))
        listening = functools.partial(lambda event, *_, **__: compiled.append(event))
        jax.monitoring.register_event_duration_secs_listener(listening)
        try:
            for _ in range(3):
                state, values = program.step(state, frozen, next(program.batches))
        finally:
            jax.monitoring.unregister_event_duration_listener(listening)
    assert values["loss"].shape == (4,)
    assert not [event for event in compiled if "compile" in event]
