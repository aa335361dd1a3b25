"""The experiments' command lines refuse what they cannot do, and what is committed is what their scripts say."""

import functools
import importlib
import itertools
import json
import pathlib
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx

import surm
from experiments.shared import command, methods, processes, results, tables, turns
from experiments.shared.tuning import best, try_rates_and_beyond
from surm.machine.status import status_of
from surm.machine.stopping import Stopped
from surm.report import figures
from surm.report.collect import Result
from surm.report.compare import Row, Table
from surm.rundir.log import NonFiniteError

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"


def script(name: str) -> types.ModuleType:
    """A script under experiments/ as a module."""
    return importlib.import_module(f"experiments.{name.removesuffix('.py').replace('/', '.')}")


def refused(monkeypatch, capsys, name: str, arguments: list[str]) -> str:
    """The one line that a script says of arguments that it cannot use."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    assert command.status(script(name).main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data=None, expected the folder that holds CoLA, MRPC and SST-2"),
        (["--data=/nowhere"], "--data=/nowhere, expected the folder"),
        (["--data=/", "--tasks=mprc"], "--tasks must be of mrpc, cola, sst2, got mprc"),
        (["--data=/", "--methods=circulant,lora"], "--methods must be of head, low_rank r=1, circulant, toeplitz,"),
        (["--data=/", "--seeds=0"], "--seeds must be a whole number of at least 1, got 0"),
    ],
)
def test_glue_methods_refuses_in_one_line(monkeypatch, capsys, arguments, message):
    assert message in refused(monkeypatch, capsys, "glue_methods/run.py", arguments)


def test_every_method_of_glue_has_three_rates_four_times_apart():
    module = script("glue_methods/run")
    assert module.RATES.keys() == {*module.METHODS}
    for rates in module.RATES.values():
        assert len(rates) == 3
        assert all(3 < after / before < 5 for before, after in zip(rates, rates[1:], strict=False))


RESULTS = [*(EXPERIMENTS / "glue_methods" / "results").glob("*.json")]


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_a_result_of_glue_was_tuned_at_the_rates_that_the_script_names(file):
    result, module = json.loads(file.read_text()), script("glue_methods/run")
    tuning = {float(rate): values for rate, values in result["tuning"]["validation"].items()}
    if not tuning:
        assert result["learning_rate"] == module.RATES[result["name"]][1]
        return
    assert tuple(tuning) == module.RATES[result["name"]]
    assert result["learning_rate"] == best(tuning, result["tuning"]["chosen_by"])


def test_the_best_rate_is_that_of_the_metric_then_of_the_loss():
    tuning = {0.1: {"f1": 0.5, "loss": 0.2}, 0.2: {"f1": 0.5, "loss": 0.1}, 0.3: None, 0.4: {"f1": 0.4, "loss": 0.0}}
    assert best(tuning, "f1") == 0.2 and best(tuning) == 0.4
    with pytest.raises(NonFiniteError, match="at none of the rates 0.3 did"):
        best({0.3: None}, "f1")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("speed/run.py", ["--paths=quick"], "--paths must be of auto, branch, branch_dft, branch_dense, fused, "),
        ("speed/run.py", ["--methods=lora"], "--methods must be of circulant, toeplitz, kronecker"),
        ("speed/run.py", ["--repeats=0"], "--repeats must be a whole number of at least 1, got 0"),
        ("speed/run.py", ["--batch=0"], "--batch must be a whole number of at least 1, got 0"),
        ("speed/sweep.py", ["--repeats=0"], "--repeats must be a whole number of at least 1, got 0"),
        ("serving/run.py", ["--methods=lora"], "--methods must be of circulant, toeplitz, kronecker"),
        ("serving/run.py", ["--numbers=1,none"], "--numbers must be a whole number of at least 1, got none"),
        ("serving/run.py", ["--numbers=48"], "--numbers must divide --batch=64 or be above it, got 48"),
        ("paths/run.py", ["--families=lora"], "--families must be of circulant"),
        ("paths/run.py", ["--dtypes=float16"], "--dtypes must be of float32, bfloat16, got float16"),
        ("paths/run.py", ["--shapes=768"], "--shapes must be of 128x128, 384x384"),
        ("calibration/run.py", ["--points=0"], "--points must be a whole number of at least 1, got 0"),
        ("population/run.py", ["--sizes=6"], "--sizes must be of 1, 2, 3 or multiples of 4, got 6"),
    ],
)
def test_timings_refuse_in_one_line(monkeypatch, capsys, name, arguments, message):
    assert message in refused(monkeypatch, capsys, name, arguments)


def test_steps_take_turns_and_one_library_after_the_other():
    calls = []
    names = ["floor", "one", "two", "HF PEFT floor", "HF PEFT C3A"]
    seconds = turns.timed({name: functools.partial(calls.append, name) for name in names}, 4, names[3:])
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys(names, 4)
    repeats = [calls[5 + 7 * index : 12 + 7 * index] for index in range(4)]
    assert all(repeat[0] == "floor" and repeat[4] == "HF PEFT floor" for repeat in repeats)
    assert all(sorted(repeat[1:4]) == ["floor", "one", "two"] for repeat in repeats)
    assert len({tuple(repeat) for repeat in repeats}) > 1


def test_a_ratio_is_the_median_of_those_within_a_repeat():
    assert turns.ratios([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == [2.5, 3.0, 3.5]
    assert turns.ratios([3.0], [2.0]) == [1.5, 1.5, 1.5]


def test_serving_compares_ways_that_answer_alike(small_vit, images):
    module = script("serving/run")
    model = surm.attach(small_vit, surm.PeftSpec(train=("head",)), nnx.Rngs(1))
    given = model, module.stacked(model, 3), {"images": images}, np.array([2, 0, 2])
    answers, by_adapter = module.together(*given)(), module.apart(*given[:3], np.array([2, 0, 1]))()
    np.testing.assert_allclose(answers[:2], np.concatenate(by_adapter)[[2, 0]], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(module.plain(small_vit, given[2])(), jax.jit(small_vit.__call__)(images))
    different = np.abs(answers - module.plain(small_vit, given[2])()).max(axis=1)
    assert (different > 1e-3).all()


def test_a_batch_names_as_many_adapters_as_there_are_and_all_as_often():
    named_ids = script("serving/run").named_ids
    for number, often in ((1, 8), (4, 2), (8, 1), (100, 1)):
        ids, counts = np.unique(named_ids(number, 8), return_counts=True)
        assert (counts == often).all() and ids.min() >= 0 and ids.max() < number


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pareto/run.py", ["--source=/nowhere"], "--source=/nowhere, expected a .npz of CIFAR-10"),
        ("pareto/run.py", ["--source=/nowhere", "--methods=lora"], "--methods must be of head, circulant"),
        ("pareto/run.py", ["--source=/nowhere", "--images=11"], "--images must be of 10, 50, 200, got 11"),
        ("weight_movement/run.py", [], "expected --cifar10, --glue or both"),
        ("weight_movement/run.py", ["--glue=/nowhere"], "there is no /nowhere"),
        ("weight_movement/run.py", ["--glue=/", "--methods=svd"], "--methods must be of circulant"),
        ("approximation/run.py", ["--targets=weight"], "--targets must be of random, weights, updates, got weight"),
        ("approximation/run.py", ["--targets=updates", "--runs=/nowhere"], "there is no /nowhere/cifar10/full/"),
        ("all.py", ["--only=pinwheels"], "--only must be of start_up, image_folder, paths"),
        ("all.py", ["--only=pareto"], "--data=None holds no cifar10.npz; expected a folder with cifar10.npz"),
        ("all.py", ["--data=/nowhere"], "--data='/nowhere' holds no cifar10.npz"),
        ("all.py", ["--data="], "--data='' holds no cifar10.npz"),
        ("same_numbers/run.py", ["--before=/nowhere"], "there is no /nowhere"),
        ("same_numbers/run.py", ["--before=/", "--runs=demos"], "--runs must be of demo, continued, population"),
    ],
)
def test_the_paper_s_experiments_refuse_in_one_line(monkeypatch, capsys, name, arguments, message):
    assert message in refused(monkeypatch, capsys, name, arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("gradient_share", ["--source=nope"]), ("vit_families", ["--dataset=cifar10", "--source=nope", "--methods=head"])],
)
def test_data_that_is_not_there_is_one_line(monkeypatch, capsys, name, arguments):
    said = refused(monkeypatch, capsys, f"{name}/run.py", arguments)
    assert said.startswith("error: data.source=") and "nope" in said


def test_all_experiments_are_run_by_one_command(capsys, monkeypatch):
    module = script("all")
    scripts = {step.script for step in module.STEPS}
    assert all((EXPERIMENTS / name).is_file() for name in scripts)
    there = {path.parent.name for path in EXPERIMENTS.glob("*/run.py")}
    assert {name.split("/")[0] for name in scripts} == there - {"same_numbers"}  # which compares two versions
    monkeypatch.setattr(sys, "argv", ["all.py", "--list", "--only=pinwheel"])
    assert module.main() == 0
    assert " 0.3 h  python experiments/pinwheel/run.py\n" in capsys.readouterr().out


def test_what_fails_is_named_and_the_others_run(capsys, monkeypatch):
    called = []

    def call(words, **_):
        called.append(words[1])
        return subprocess.CompletedProcess(words, int("sweep" in words[1]))

    monkeypatch.setattr(subprocess, "run", call)
    monkeypatch.setattr(sys, "argv", ["all.py", "--only=speed"])
    assert command.status(script("all").main) == 1
    assert called == [*(f"experiments/speed/{name}.py" for name in ("run", "run", "breakdown", "sweep")),
                      "experiments/pareto/run.py", "scripts/write_tables.py"]  # fmt: skip
    assert capsys.readouterr().err == "failed: experiments/speed/sweep.py\n"


def test_every_method_of_glue_is_run_by_the_command_for_all_and_a_folder_may_have_spaces():
    every, glue = script("all"), script("glue_methods/run")
    asked = [word for step in every.STEPS for word in every.words_of(step, "") if word.startswith("--methods=head,")]
    assert f"--methods={','.join(glue.OWN)}" in asked and not {*glue.OWN} & {*glue.RELATED}
    step = next(step for step in every.STEPS if "--untuned" in step.arguments)
    assert every.words_of(step, "/my data")[2:] == [
        "--data=/my data/glue", "--tasks=mrpc", "--untuned", f"--methods={','.join(glue.RELATED)}"
    ]  # fmt: skip


FIGURES = {
    "approximation/results/approximation.png": ["approximation/results/*.json"],
    "pareto/results/pareto.png": [
        "pareto/results/*.json", "vit_families/results/cifar10_*.json", "glue_methods/results/mrpc_*.json"
    ],
    "pinwheel/results/pinwheel.png": ["pinwheel/results/*.json"],
    "rank_schedule/results/schedule.png": ["rank_schedule/results/*.json"],
    "speed/results/sweep.png": ["speed/results/sweep.json"],
    "weight_movement/results/movement.png": ["weight_movement/results/*.json"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("experiment", "file"), [("pinwheel", "pinwheel"), ("approximation", "random"), ("weight_movement", "cifar10")]
)
def test_a_damaged_result_is_one_line(monkeypatch, tmp_path, experiment, file):
    module = script(f"{experiment}/run")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    (tmp_path / f"{file}.json").write_text('{"rows": [')
    with pytest.raises(surm.InputError, match=f"{file}.json' cannot be read as JSON") as raised:
        module.committed()
    assert "\n" not in str(raised.value)


def test_a_damaged_result_is_not_left_out_of_the_pareto_plot(monkeypatch, tmp_path):
    module = script("pareto/run")
    good = EXPERIMENTS / "vit_families" / "results" / "cifar10_head.json"
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(good.read_text()[: None if name == "one" else 99])
    monkeypatch.setattr(module, "PANELS", {"title": (tmp_path, "*.json", "accuracy")})
    with pytest.raises(surm.InputError, match="two.json' cannot be read"):
        module.panels()


def test_every_figure_is_drawn_from_the_committed_results():
    assert {str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.rglob("*.png")} == FIGURES.keys()
    for figure, patterns in FIGURES.items():
        sources = [path for pattern in patterns for path in EXPERIMENTS.glob(pattern)]
        assert figures.drawn_from(EXPERIMENTS / figure) == figures.digest(sources), f"{figure}: draw it again"


WISHART = {  # relative Frobenius errors of the closed forms, worked out with numpy from ten other draws
    ("low rank", 64): 0.947, ("low rank", 100): 0.963, ("low rank", 144): 0.974,
    ("Kronecker", 64): 0.696, ("Kronecker", 100): 0.700, ("Kronecker", 144): 0.704,
    ("circulant", 64): 0.702, ("circulant", 100): 0.704, ("circulant", 144): 0.707,
    ("Toeplitz", 64): 0.697, ("Toeplitz", 100): 0.700, ("Toeplitz", 144): 0.705,
}  # fmt: skip


def approximations() -> list[dict]:
    return script("approximation/run").committed()


def test_the_approximation_of_a_wishart_matrix_is_as_known():
    rows = [row for row in approximations() if row["target"] == "wishart"]
    for (line, n), known in WISHART.items():
        row = next(row for row in rows if row["line"] == line and row["n"] == n)
        assert row["mean"] == pytest.approx(known, abs=0.005), (line, n)
        assert len(row["errors"]) == 10 and row["std"] < 0.02


def test_which_family_is_near_hangs_on_the_target():
    def error(target: str, line: str, place: int = 0) -> float:
        found = [row for row in rows if row["target"] == target and row["line"] == line and row["n"] == 144]
        return found[place]["mean"]

    rows = approximations()
    full_rank = ("W(G,H)", "Toeplitz", "Kronecker")  # of 2n parameters, as low rank of 1
    for target in ("wishart", "displacement2"):
        assert all(error(target, "low rank") > error(target, line) + 0.05 for line in full_rank)
    assert all(error("noncentred", "low rank") < error("noncentred", line) for line in full_rank)
    assert error("rank4", "low rank", 2) < 0.1 < 0.6 < error("rank4", "W(G,H)", 2)  # both of rank 4
    assert error("displacement2", "W(G,H)", 1) < 0.1 < 0.7 < error("displacement2", "low rank", 4)
    assert all(0.98 < error("gaussian", line) < 1 for line in ("low rank", *full_rank))  # 2n of n² dimensions


def test_the_nearest_members_are_found_by_the_script():
    module = script("approximation/run")
    matrix = jax.random.normal(jax.random.key(0), (1, 8, 8))
    target = module.Target("gaussian", matrix, matrix)
    values = np.linalg.svd(matrix[0], compute_uv=False)
    expected = float(np.sqrt(np.sum(values[2:] ** 2) / np.sum(values**2)))
    assert module.errors(target, "low_rank", {"rank": 2}) == pytest.approx([expected], rel=1e-4)
    assert module.errors(target, "svft", {}) == pytest.approx([0.0], abs=1e-5)  # the weight itself


def test_the_pinwheel_shows_where_low_rank_stops():
    module = script("pinwheel/run")
    results = {(row["family"], row["setting"]): row for row in module.committed()}
    assert {name for name, _ in results} == {*module.NAMES} and len(results) == 3 * len(module.NAMES)
    for (name, setting), row in results.items():
        assert len(row["log_loss"]) == 10 and len(row["log_loss"][0]) == len(row["steps"]) == 40
        assert row["parameters"] in ((127, 128) if name != "dense" else (64 * 64,))
        low_rank = name in ("low_rank r=1", "melora r=1") and setting != "deep"
        low, high = (0.7, 1.0) if low_rank else (0.0, 0.3)
        assert low < row["end"]["mean"] < high, (name, setting)
        assert (row["accuracy"] < 0.41) == low_rank  # two of five spokes
    said = " ".join((EXPERIMENTS / "README.md").read_text().split())
    frozen = results["low_rank r=1", "frozen"]
    mean = f"{frozen['end']['mean']:.2f}"
    assert f"{mean} to {max(frozen['tuning'].values()):.2f} at the six rates" in said and len(frozen["tuning"]) == 6
    assert f"a log-loss of {mean} where" in (EXPERIMENTS.parent / "README.md").read_text()


def test_a_pinwheel_net_learns(monkeypatch):
    module = script("pinwheel/run")
    for name, value in {"STEPS": 20, "EVERY": 10, "POINTS": 200, "BATCH": 50, "RATES": (1e-2,)}.items():
        monkeypatch.setattr(module, name, value)
    result = module.measure("circulant", "frozen", 2)
    assert result["parameters"] == 128 and np.shape(result["log_loss"]) == (2, 2)
    assert all(end < start < np.log(5) for start, end in result["log_loss"])
    assert module.measure("circulant", "trained", 2)["log_loss"] != result["log_loss"]
    points, spokes = module.pinwheel(jax.random.key(0))
    assert points.shape == (200, 2) and [*np.bincount(spokes)] == [40] * 5


def test_cka_and_movement_are_as_defined():
    module = script("weight_movement/run")
    x, y = np.random.default_rng(0).normal(size=(2, 7, 3))
    turned = 3 * x @ np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0] + 7
    assert module.linear_cka(x, turned) == pytest.approx(1, abs=1e-8)
    k, m, found = x @ x.T, y @ y.T, 0.0  # the mean over quadruples of different examples, as it is defined
    quadruples = list(itertools.permutations(range(7), 4))
    for i, j, q, r in quadruples:
        found += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
    assert module.hsic(k, m) / (7 * 4) == pytest.approx(found / len(quadruples), rel=1e-9)
    x, y = np.random.default_rng(2).normal(size=(2, 200, 190))
    assert abs(module.linear_cka(x, y)) < 0.03  # unrelated; the biased estimate says 0.49


def test_a_model_moves_by_the_angle_between_its_weights(small_vit):
    module = script("weight_movement/run")
    after = nnx.clone(small_vit)
    kernel = after.blocks[0].attention.query.kernel
    before = np.asarray(kernel[...], np.float64)
    across = np.roll(before, 1)
    across -= before * np.vdot(before, across) / np.vdot(before, before)
    across *= np.linalg.norm(before) / np.linalg.norm(across)
    kernel[...] = before + across  # at 45 degrees
    found = module.moved(after, small_vit)
    assert found["blocks.0.attention.query"]["movement"] == pytest.approx(1 - np.sqrt(0.5), abs=1e-5)
    assert found["blocks.0.attention.query"]["size"] == pytest.approx(1, abs=1e-5)
    assert found["blocks.0.attention.value"]["movement"] == pytest.approx(0, abs=1e-6)
    assert len(found) == 6


def test_the_pareto_front_is_what_nothing_smaller_surpasses():
    module = script("pareto/run")
    rows = [
        Row(name, (Result(EXPERIMENTS, {"adapter_parameters": size}, {"accuracy": values}, []),), {})
        for name, size, values in (
            ("a", 0, [0.5, 0.5]), ("b", 10, [0.4, 0.5]), ("worse", 20, [0.6, 0.6]), ("c", 20, [0.6, 0.8]),
            ("one seed", 30, [0.9]), ("d", 30, [0.7, 0.7]),
        )
    ]  # fmt: skip
    assert [row.label for row in module.front(Table("", ("accuracy",), tuple(rows), ()))] == ["a", "c"]


def test_the_pareto_plot_has_a_dozen_methods_in_every_full_panel():
    panels = script("pareto/run").panels()
    for title in ("CIFAR-10, 10,000 images: accuracy", "MRPC: F1"):
        assert len(panels[title].rows) >= 12
    module = script("pareto/run")
    assert [row.label for row in module.front(panels["MRPC: F1"])] == [
        "head", "adapter low_displacement_rank r=1", "bottleneck 16"
    ]  # fmt: skip
    assert not module.front(panels["CIFAR-10, 10,000 images: accuracy"])  # one seed
    for images in module.STEPS:
        rows = panels[f"CIFAR-10, {images} images a class: accuracy"].rows
        assert {row.label for row in rows} == {*module.METHODS}
        assert all(len(row.values("accuracy")) == 3 for row in rows)


def test_what_is_said_of_few_images_is_as_it_was_measured():
    module = script("pareto/run")
    panels = [module.panels()[f"CIFAR-10, {images} images a class: accuracy"] for images in module.STEPS]
    means = [{row.label: 100 * row.mean("accuracy") for row in panel.rows} for panel in panels]
    said = " ".join((EXPERIMENTS / "README.md").read_text().split())
    heads = "{:.1f}, {:.1f} and {:.1f}".format(*(found["head"] for found in means))
    gains = "{:.1f}, {:.1f} and {:.1f}".format(*(found["full"] - found["head"] for found in means))
    assert f"the head alone reaches {heads}, full fine-tuning {gains} more" in said
    far = [label for found in means for label in found if round(abs(found[label] - found["head"]), 1) > 1.2]
    assert far == ["lora2"]
    assert f"one seed that fell to {100 * min(panels[2].rows[-3].values('accuracy')):.1f}" in said


def test_what_is_said_of_a_gpu_is_as_it_was_measured():
    rows = json.loads((EXPERIMENTS / "speed" / "results" / "bert_base_gpu_bfloat16_64.json").read_text())["rows"]
    said = (EXPERIMENTS / "README.md").read_text().split("On an H100")[1].split("The peak")[0].replace("\n", " ")
    over = {label: f"{row['over_own_floor']:.2f}" for label, row in rows.items()}
    for label, name in {
        "low_rank r=8, auto": "LoRA of rank 8 takes", "kronecker, auto": "Kronecker", "circulant, auto": "circulant",
        "low_displacement_rank r=1, auto": "W(G,H)", "toeplitz, auto": "Toeplitz", "HF PEFT LoRA r=8": "PEFT's LoRA",
        "HF PEFT FourierFT": "FourierFT", "HF PEFT LoKr": "LoKr", "HF PEFT C3A": "C3A",
    }.items():  # fmt: skip
        assert f"{name} {over[label]}" in said
    of_c3a = sorted(row["over_c3a"] for label, row in rows.items() if label.endswith(", auto"))
    assert f"that is {of_c3a[0]:.2f} to {of_c3a[-2]:.2f}, but for Toeplitz, {of_c3a[-1]:.2f}." in said
    seconds = [f"{1000 * rows[label]['median_seconds']:.1f}" for label in ("floor", "HF PEFT floor")]
    assert f"takes {seconds[0]} ms, PyTorch's {seconds[1]}." in said
    page = (EXPERIMENTS.parent / "docs" / "choosing.md").read_text()
    advice = page.split("**On a GPU or TPU.**")[1].replace("\n", " ")
    kronecker, circulant, of_displacement, toeplitz, low_rank = (
        f"{rows[f'{name}, auto']['over_own_floor']:.1f}"
        for name in ("kronecker", "circulant", "low_displacement_rank r=1", "toeplitz", "low_rank r=8")
    )
    assert (
        f"Kronecker {kronecker}, of circulant {circulant}, of W(G,H) {of_displacement} and of Toeplitz {toeplitz} "
        in advice
    )
    assert f"LoRA of rank 8 {low_rank} times" in advice


def test_what_is_said_of_how_far_weights_moved_is_as_it_was_measured():
    rows = script("weight_movement/run").committed()
    moved = {
        (task, method): f"{np.mean([layer['movement'] for layer in row['layers'].values()]):.3f}"
        for task, of_task in rows.items()
        for method, row in of_task.items()
        if "layers" in row
    }
    both = {method: (moved["cifar10", method], moved["mrpc", method]) for _, method in moved}
    said = " ".join((EXPERIMENTS / "README.md").read_text().split("Circulant turns")[1].split("\n## ")[0].split())
    assert "the kernels by {} on CIFAR-10 and by {} on MRPC".format(*both["circulant"]) in said
    assert "W(G,H) by {} and {}".format(*both["low_displacement_rank r=1"]) in said
    assert "LoRA of rank 8 by {} and {}".format(*both["low_rank r=8"]) in said
    assert f"LoRA of rank 1 moves by {both['low_rank r=1'][0]}" in said
    before = [np.mean(rows[task]["before"]["cka"]) for task in ("cifar10", "mrpc")]
    assert "before ({:.3f} on CIFAR-10, {:.3f} on MRPC".format(*before) in said
    assert all(np.mean(row["cka"]) >= np.mean(of_task["before"]["cka"]) for of_task in rows.values()
               for row in of_task.values())  # fmt: skip


def test_start_up_is_as_it_was_measured():
    rows = json.loads((EXPERIMENTS / "start_up" / "results" / "digits_cpu.json").read_text())["rows"]
    cold, cached = (round(row["first_step"], 1) for row in rows)
    said = (EXPERIMENTS / "README.md").read_text()
    said = " ".join(said.split())
    assert f"the demo's first step {cold} seconds" in said and f"from the second run on, {cached}." in said


def test_the_ranks_that_were_drawn_meet_the_budget():
    for family in ("adalora", "dora_dynamic", "lora2"):
        result = json.loads((EXPERIMENTS / "rank_schedule" / "results" / f"{family}.json").read_text())
        ranks = result["active_ranks"].values()
        assert sum(ranks) == 4 * len(ranks) == 72 == result["active_rank"][-1]
        module = script("rank_schedule/run")
        _, left = module.after_prunings(result)
        assert left[0] == 144 and left == sorted(left, reverse=True)


def test_a_folder_of_images_trains_nearly_as_fast_as_the_same_pixels_in_an_npz():
    result = json.loads((EXPERIMENTS / "image_folder" / "results" / "cpu.json").read_text())
    assert result["files"] == 5000 and result["threads"] == 2 and result["model"] == "vit_ti16"
    assert min(result["ratio"], result["ratio_of_processors"]) >= 0.8


def test_a_result_names_its_command_and_its_versions_and_has_numbers_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(EXPERIMENTS / "speed" / "sweep.py"), "--repeats=2", "--methods=a b"])
    file = tmp_path / "results" / "one.json"
    results.write(file, {"rows": [{"each": [1.5, None, 2e-9], "name": "[ 1,"}]})
    written = results.read(file)
    assert written["command"] == "python experiments/speed/sweep.py --repeats=2 '--methods=a b'"
    assert written["versions"]["surm"] == surm.__version__ and "machine" in written["versions"]
    assert written["rows"] == [{"each": [1.5, None, 2e-9], "name": "[ 1,"}]
    assert file.read_text().endswith('  "rows": [\n    {\n      "each": [1.5, null, 2e-09],\n      "name": "[ 1,"\n'
                                     "    }\n  ]\n}\n")  # fmt: skip
    results.write(file, {"command": "another"})
    assert results.read(file)["command"] == "another"


def test_rows_replace_those_of_the_same_name_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["run.py"])
    file = tmp_path / "table.json"
    put = functools.partial(results.put, file, "rows", name=lambda row: row["of"])
    put([{"of": "b", "x": 1}, {"of": "b", "x": 2}, {"of": "a", "x": 3}], {"a": {"by": 1}, "b": {"by": 1}})
    put([{"of": "b", "x": 4}], {"b": {"by": 2}})
    table = results.read(file)
    assert table["rows"] == [{"of": "a", "x": 3}, {"of": "b", "x": 4}] and len(file.read_text().splitlines()) == 5
    assert table["made"] == {"a": {"command": "python run.py", "by": 1}, "b": {"command": "python run.py", "by": 2}}


def test_a_table_is_markdown_with_numbers_flush_right():
    rows = [("one", tables.percent([0.5])), ("two", tables.percent([0.25, 0.75]))]
    assert tables.markdown(("", "n"), rows) == "|  | n |\n|---|---:|\n| one | 50.0 |\n| two | 50.0 ± 35.4 |"
    assert "\n| --- | ---: |\n" in tables.markdown(("", "n"), rows, rule=tables.SPACED)


def test_a_script_that_fails_ends_in_one_line_and_a_status(capsys):
    def fails(error: BaseException):
        raise error

    for error, status in (
        (surm.InputError("x must be 1"), 2), (OSError(28, "No space left", "x"), 2), (NonFiniteError("loss is nan"), 3),
        (Stopped(15, 7), 143), (ModuleNotFoundError(name="peft"), 2),
        (subprocess.CalledProcessError(3, [], "", "a"), 2),
    ):  # fmt: skip
        assert command.status(functools.partial(fails, error)) == status
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert command.status(lambda: None) == 0


def test_a_run_in_a_process_of_its_own_is_watched_and_what_it_says_last_is_told():
    with processes.Training(["--config=/nowhere.py"]) as run:
        with pytest.raises(surm.InputError, match="the run ended before step 1: error: .*nowhere"):
            run.wait_for_step(1)
        with pytest.raises(surm.InputError, match="the run failed: error: .*nowhere"):
            run.result()
    assert not run.folder.parent.exists()


def test_no_script_runs_another_as_a_file():
    for file in [*EXPERIMENTS.rglob("*.py"), *(EXPERIMENTS.parent / "scripts").glob("*.py")]:
        assert "runpy" not in file.read_text(), file


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("draw_patterns", [], "expected python scripts/draw_patterns.py FILE.png"),
        ("draw_why", [], "expected python scripts/draw_why.py FOLDER"),
        ("export_backbone", ["runs/pretrain"], "expected python scripts/export_backbone.py RUN NAME"),
        ("export_backbone", ["/nowhere", "vit_micro"], "'/nowhere/result.json' cannot be read"),
        ("prepare_tiny_imagenet", ["/nowhere", "x"], "'/nowhere': No such file"),
    ],
)
def test_other_scripts_refuse_in_one_line(monkeypatch, capsys, name, arguments, message):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    assert status_of(importlib.import_module(f"scripts.{name}").command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_smollm2_answers_as_in_transformers():
    """The figures that the issue of decoders asks for."""
    found = json.loads((EXPERIMENTS / "smollm2_parity" / "results" / "smollm2.json").read_text())
    module = script("smollm2_parity/run")
    assert found["weights"]["equal"] == found["weights"]["arrays"] == 272
    assert found["largest_logit_difference"] <= module.LOGITS and found["prompts_with_equal_tokens"] == 20
    equal = [answer["surm"] is None for answer in found["answers"]]
    assert sum(equal) == found["equal_answers"] >= module.EQUAL
    assert len(equal) == len(module.CHATS) + len(module.TEXTS)


def test_a_step_of_a_decoder_costs_what_is_said_of_it():
    of = EXPERIMENTS / "decoder_speed" / "results"
    rows = json.loads((of / "training_cpu_float32.json").read_text())["rows"]
    ours = [row for label, row in rows.items() if "floor" not in label and "PEFT" not in label]
    assert len(ours) == 6 and all(row["over_peft_lora"][1] < 1 and row["over_peft_c3a"][1] <= 0.45 for row in ours)
    assert rows["low_rank r=8"]["over_peft_lora"][1] <= 0.85
    said = " ".join((EXPERIMENTS.parent / "docs" / "language_models.md").read_text().split())
    adds = {name: 100 * (row["over_own_floor"][1] - 1) for name, row in rows.items()}
    rest = sorted(adds[name] for name in ("circulant", "toeplitz", "low_displacement_rank r=1"))
    assert (
        f"LoRA adds {adds['low_rank r=1']:.0f} % at rank 1 and {adds['low_rank r=8']:.0f} % at rank 8, Kronecker "
        in said
    )
    assert (
        f"Kronecker {adds['kronecker']:.0f} %, and circulant, W(G,H) and Toeplitz {rest[0]:.0f} to {rest[-1]:.0f} %"
        in said
    )
    rows = json.loads((of / "writing_cpu.json").read_text())["rows"]
    own, theirs = (f"{rows[label]['tokens_a_second']:.0f}" for label in ("surm", "llama.cpp, 4-bit blocks"))
    assert f"written at {own} tokens a second" in said and f"of the file as they are, writes {theirs}." in said
    over = [row["ours_over_it"][1] for label, row in rows.items() if label.startswith("transformers")]
    assert min(over) >= 1.5 and f"{min(over):.1f} times as fast as by transformers with the faster" in said


def test_a_population_of_a_decoder_costs_what_is_said_of_it():
    (row,) = json.loads((EXPERIMENTS / "population" / "results" / "smollm2_cpu.json").read_text())["rows"]
    said = " ".join((EXPERIMENTS.parent / "docs" / "language_models.md").read_text().split())
    assert row["members"] == 16 and row["over_alone"] <= 1.15
    assert f"takes {row['over_alone']:.2f} times as long as 16 runs of their own" in said
    assert f"and {row['peak_over_alone']:.2f} times the memory of one" in said


def test_small_memory_is_as_it_was_measured():
    of = EXPERIMENTS / "small_memory" / "results"
    read = lambda name: json.loads((of / f"{name}.json").read_text())  # noqa: E731
    assert read("compile")["ratio"] <= 1.5 and read("base")["ratio"] <= 0.3
    memory = read("memory")
    said = " ".join((EXPERIMENTS.parent / "docs" / "language_models.md").read_text().split())
    peak = memory["peak_bytes"]["bfloat16"] / 2**30
    assert memory["ratio"] <= 0.7 and f"takes {peak:.1f} GiB at its peak, loading included." in said
    assert f"That is {memory['ratio']:.2f} times what PEFT takes" in said


@pytest.mark.parametrize(
    ("losses", "tried"),
    [
        ({1.0: 3, 3.0: 1, 9.0: 2}, [1, 3, 9]),
        ({1.0: 3, 3.0: 2, 9.0: 1, 27.0: 4}, [1, 3, 9, 27]),
        ({1.0: 1, 3.0: 2, 9.0: 3, 0.33: 0}, [1, 3, 9, 0.33]),
    ],
)
def test_a_fourth_rate_is_tried_beyond_the_best_if_that_is_the_first_or_the_last(losses, tried):
    def train(rate):
        if losses[rate] == 4:
            raise NonFiniteError("the loss is nan")
        return {"eval": {"loss": losses[rate]}}

    found = try_rates_and_beyond((1.0, 3.0, 9.0), train)
    assert [*found] == tried and (found.get(27.0, "not tried") is None) == (27 in tried)


def test_a_step_on_a_pod_sends_gradients_of_what_trains_and_a_base_in_parts():
    """As docs/pods.md says of the table."""
    module = script("pods/run")
    files = [file for file in map(module.file_of, module.TARGETS) if file.is_file()]  # compiling takes its time
    rows = [row for file in files for row in results.read(file)["rows"]]
    assert {row["model"] for row in rows} == {*module.ENCODERS, *module.DECODERS}
    for row in rows:
        assert row["fits"] and row["unknown"] >= 0 and row["target"] in module.TARGETS
        sent = {kind: one["size"] for kind, one in row["collectives"].items()}
        looked_up = sent.pop("reduce-scatter", 0)
        if row["model"] in module.DECODERS and row["target"].startswith("tpu"):
            looked_up = 2 * row["rows"] * 4096 * 4  # the words of all rows, which a TPU adds up
        assert sent.pop("all-reduce") <= 1.01 * 2 * row["trained"] / 3 + looked_up  # AdamW keeps two moments
        assert {*sent} == ({"all-gather"} if row["model"] in module.DECODERS else set())
        assert sent.get("all-gather", 0) <= 3.3 * row["base"] * row["devices"]  # forward, again, and backward


ANSWERS = [*(EXPERIMENTS / "written_answers" / "results").glob("*.json")]


@pytest.mark.parametrize("file", ANSWERS, ids=lambda file: file.stem)
def test_written_answers_were_tuned_at_the_rates_that_the_script_names(file):
    result, module = json.loads(file.read_text()), script("written_answers/run")
    assert file.stem == f"{result['task']}_{methods.file_name(result['name'])}" and result["task"] in module.TASKS
    if result["name"] == module.UNTRAINED:
        assert "learning_rate" not in result
        return
    tuning = {float(rate): values for rate, values in result["tuning"]["validation"].items()}
    first = module.RATES[result["name"].removesuffix(module.INT4)]
    of_first = {rate: tuning[rate] for rate in first}
    assert [*tuning][:3] == [*first] and result["learning_rate"] == best(tuning)
    assert len(tuning) == (4 if best(of_first) in (first[0], first[-1]) else 3)
    assert result["config"]["optim"]["epochs"] == module.TASKS[result["task"]].settings["optim.epochs"]


def test_a_shape_that_is_not_in_the_table_gets_a_good_path_nearly_always():
    module = script("calibration/run")
    found = module.of_table(json.loads((module.MEASURED / "cpu.json").read_text())["points"])
    assert found == json.loads((module.RESULTS / "cpu.json").read_text())["held_out"]
    assert found["close"] >= 0.95 and max(found["by_one_path"].values()) < 0.7 and found["worst"] < 1.5


def test_a_calibration_is_compared_with_a_longer_measurement():
    module = script("calibration/run")
    for row in json.loads((module.RESULTS / "cpu.json").read_text())["calibrated"]:
        long, best = row["seconds"], min(row["seconds"].values())
        assert row["over"] == {"table": long[row["by_table"]] / best, "calibrated": long[row["calibrated"]] / best}
        assert row["calibrated"] == min(row["brief_seconds"], key=row["brief_seconds"].get)


def test_every_committed_result_names_a_script_that_is_there_and_no_folder_of_a_machine():
    for file in EXPERIMENTS.rglob("results/*.json"):
        told = re.findall(r'"command": "([^"]*)"', file.read_text())
        for one in told:
            scripts = [word for word in one.split() if word.startswith("experiments") and word.endswith(".py")]
            assert all("{" in name or (EXPERIMENTS.parent / name).is_file() for name in scripts), (file, one)
            assert not re.search(r"[= ]/(?!tmp/)", one), (file, one)
