"""The experiments' command lines refuse what they cannot do, and what is committed is what their scripts say."""

import functools
import json
import pathlib
import runpy
import sys

import jax
import numpy as np
import pytest
from flax import nnx

import surm

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data=None, expected the folder that holds CoLA, MRPC and SST-2"),
        (["--data=/nowhere"], "--data=/nowhere, expected the folder"),
        (["--data=/", "--tasks=mprc"], "unknown: mprc; known: mrpc, cola, sst2"),
        (["--data=/", "--methods=circulant,lora"], "unknown: lora; known: head, low_rank r=1, circulant"),
        (["--data=/", "--seeds=0"], "--seeds=0, expected at least 1"),
    ],
)
def test_glue_methods_refuses_in_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXPERIMENTS / "glue_methods" / "run.py"), run_name="__main__")
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_every_method_of_glue_has_three_rates_four_times_apart():
    script = runpy.run_path(str(EXPERIMENTS / "glue_methods" / "run.py"))
    assert script["RATES"].keys() == script["METHODS"].keys()
    for rates in script["RATES"].values():
        assert len(rates) == 3
        assert all(3 < after / before < 5 for before, after in zip(rates, rates[1:], strict=False))


RESULTS = [*(EXPERIMENTS / "glue_methods" / "results").glob("*.json")]


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_a_result_of_glue_was_tuned_at_the_rates_that_the_script_names(file):
    result, script = json.loads(file.read_text()), runpy.run_path(str(EXPERIMENTS / "glue_methods" / "run.py"))
    tuning = {float(rate): values for rate, values in result["tuning"]["validation"].items()}
    if not tuning:
        assert result["learning_rate"] == script["RATES"][result["name"]][1]
        return
    assert tuple(tuning) == script["RATES"][result["name"]]
    assert result["learning_rate"] == script["best"](tuning, result["tuning"]["chosen_by"])


def test_the_best_rate_is_that_of_the_metric_then_of_the_loss():
    script = runpy.run_path(str(EXPERIMENTS / "glue_methods" / "run.py"))
    tuning = {0.1: {"f1": 0.5, "loss": 0.2}, 0.2: {"f1": 0.5, "loss": 0.1}, 0.3: None, 0.4: {"f1": 0.4, "loss": 0.0}}
    assert script["best"](tuning, "f1") == 0.2
    with pytest.raises(script["NonFiniteError"], match="at none of the rates 0.3 did"):
        script["best"]({0.3: None}, "f1")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("speed/run.py", ["--paths=quick"], "--paths of auto, branch, branch_dft, branch_dense, fused, fused_dense"),
        ("speed/run.py", ["--methods=lora"], "--methods of circulant, toeplitz, kronecker"),
        ("speed/run.py", ["--repeats=0"], "expected --repeats and --batch of at least 1"),
        ("speed/sweep.py", ["--repeats=0"], "--repeats=0, expected at least 1"),
        ("serving/run.py", ["--methods=lora"], "--methods of circulant, toeplitz, kronecker"),
        ("serving/run.py", ["--numbers=1,none"], "expected --repeats, --batch and --numbers of at least 1"),
        ("serving/run.py", ["--numbers=48"], "--numbers=48, expected numbers that divide --batch=64 or are above it"),
        ("paths/run.py", ["--families=lora"], "--families of circulant"),
        ("paths/run.py", ["--dtypes=float16"], "--dtypes of float32, bfloat16"),
        ("population/run.py", ["--sizes=6"], "--sizes of 1, 2, 3 or multiples of 4"),
    ],
)
def test_timings_refuse_in_one_line(monkeypatch, capsys, script, arguments, message):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    monkeypatch.syspath_prepend((EXPERIMENTS / script).parent)
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXPERIMENTS / script), run_name="__main__")
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_steps_take_turns_and_one_library_after_the_other(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS / "speed")
    script, calls = runpy.run_path(str(EXPERIMENTS / "speed" / "run.py")), []
    names = ["floor", "one", "two", "HF PEFT floor", "HF PEFT C3A"]
    seconds = script["timed"]({name: functools.partial(calls.append, name) for name in names}, 4)
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys(names, 4)
    repeats = [calls[5 + 7 * index : 12 + 7 * index] for index in range(4)]
    assert all(repeat[0] == "floor" and repeat[4] == "HF PEFT floor" for repeat in repeats)
    assert all(sorted(repeat[1:4]) == ["floor", "one", "two"] for repeat in repeats)
    assert len({tuple(repeat) for repeat in repeats}) > 1


def test_a_ratio_is_the_median_of_those_within_a_repeat(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS / "speed")
    script = runpy.run_path(str(EXPERIMENTS / "speed" / "run.py"))
    seconds = {"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 1.0]}
    assert script["ratios"](seconds, "a", "b") == [2.5, 3.0, 3.5]


def test_serving_compares_ways_that_answer_alike(small_vit, images):
    script = runpy.run_path(str(EXPERIMENTS / "serving" / "run.py"))
    model = surm.attach(small_vit, surm.PeftSpec(train=("head",)), nnx.Rngs(1))
    given = model, script["stacked"](model, 3), {"images": images}, np.array([2, 0, 2])
    answers, by_adapter = script["together"](*given)(), script["apart"](*given[:3], np.array([2, 0, 1]))()
    np.testing.assert_allclose(answers[:2], np.concatenate(by_adapter)[[2, 0]], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(script["plain"](small_vit, given[2])(), jax.jit(small_vit.__call__)(images))
    different = np.abs(answers - script["plain"](small_vit, given[2])()).max(axis=1)
    assert (different > 1e-3).all()


def test_a_batch_names_as_many_adapters_as_there_are_and_all_as_often():
    named_ids = runpy.run_path(str(EXPERIMENTS / "serving" / "run.py"))["named_ids"]
    for number, often in ((1, 8), (4, 2), (8, 1), (100, 1)):
        ids, counts = np.unique(named_ids(number, 8), return_counts=True)
        assert (counts == often).all() and ids.min() >= 0 and ids.max() < number


def test_start_up_is_as_it_was_measured():
    rows = json.loads((EXPERIMENTS / "start_up" / "results" / "digits_cpu.json").read_text())["rows"]
    cold, cached = (round(row["first_step"], 1) for row in rows)
    said = (EXPERIMENTS / "README.md").read_text()
    assert f"the demo's first step {cold} seconds" in said and f"from the second run on, {cached}." in said


def test_the_ranks_that_were_drawn_meet_the_budget():
    for family in ("adalora", "dora_dynamic", "lora2"):
        result = json.loads((EXPERIMENTS / "rank_schedule" / "results" / f"{family}.json").read_text())
        ranks = result["active_ranks"].values()
        assert sum(ranks) == 4 * len(ranks) == 72 == result["active_rank"][-1]
        script = runpy.run_path(str(EXPERIMENTS / "rank_schedule" / "run.py"))
        _, left = script["after_prunings"](result)
        assert left[0] == 144 and left == sorted(left, reverse=True)
