"""The script for a borrowed GPU: its bars, its grid, and all of it tried on a CPU at small sizes."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import jax
import pytest

from experiments.gpu import bars, grid, run, steps
from experiments.paths import run as paths
from experiments.shared import command, methods, turns

ROOT = pathlib.Path(__file__).parent.parent


def row(lora: float, c3a: float, size: int = 100) -> dict:
    return {"over_own_lora": [0.0, lora, 9.0], "over_peft_c3a": [0.0, c3a, 9.0], "program_bytes": size}


def found(folder: pathlib.Path, **results: dict) -> dict[tuple[str, str], bars.Bar]:
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps(result))
    return {(bar.model, bar.name): bar for bar in bars.of(folder)}


def test_the_bars_are_those_of_every_family(tmp_path):
    rows = {name: row(1.0 + number / 50, 0.3, 90 + number) for number, name in enumerate(bars.OVER_LORA)}
    every = found(tmp_path, bert_base={"rows": {**rows, bars.LORA: row(1.0, 0.3, 95)}})
    own = {name: bar for (model, name), bar in every.items() if model == "BERT-base"}
    assert [own[f"{family}, step over our LoRA r=8"].met for family, _ in bars.OVER_LORA.values()] == [
        True, True, True, True, False, True
    ]  # fmt: skip
    assert own["every family, step over PEFT's C3A"].found == 0.3 and own["every family, step over PEFT's C3A"].met
    memory = own["every family, memory over our LoRA r=8"]
    assert memory.found == 95 / 95 and memory.met and memory.detail == "diagonal circulant, by XLA"
    assert all(bar.found is None and bar.met is None for (model, _), bar in every.items() if model != "BERT-base")


def test_a_bar_for_every_family_is_not_met_while_one_is_missing_but_may_be_missed(tmp_path):
    rows = {name: row(1.0, 0.3) for name in bars.OVER_LORA if name != "monarch"} | {bars.LORA: row(1.0, 0.4)}
    key = ("BERT-base", "every family, step over PEFT's C3A")
    bar = found(tmp_path, bert_base={"rows": rows})[key]
    assert bar.met is None and bar.detail.endswith("; without monarch")
    bar = found(tmp_path, bert_base={"rows": rows | {"toeplitz": row(1.0, 0.6)}})[key]
    assert bar.met is False and bar.found == 0.6 and bar.detail.startswith("Toeplitz")


def test_peaks_of_the_device_count_more_than_what_xla_says_and_a_faster_path_is_told(tmp_path):
    rows = {name: row(1.2, 0.3, 200) for name in bars.OVER_LORA} | {bars.LORA: row(1.0, 0.3, 100)}
    again = {"circulant, branch_dft": row(1.1, 0.3), "toeplitz, branch": row(3.0, 0.3) | {"median_seconds": 4.0}}
    again["toeplitz"] = row(1.2, 0.3) | {"median_seconds": 1.0}
    peaks = dict.fromkeys(rows, 10) | {"monarch": 11}
    every = found(tmp_path, bert_base={"rows": rows}, bert_base_again={"rows": again}, peaks={"bert_base": peaks})
    memory = every["BERT-base", "every family, memory over our LoRA r=8"]
    assert (memory.found, memory.detail) == (1.1, "monarch, measured")
    assert every["BERT-base", "circulant, step over our LoRA r=8"].detail == "1.100 by branch_dft"
    assert every["BERT-base", "Toeplitz, step over our LoRA r=8"].detail == ""
    assert every["BERT-base", "Toeplitz, step over that by FFTs"].met  # 0.25


def test_the_chosen_path_may_be_a_tenth_slower_than_the_best(tmp_path):
    points = [{"seconds": {"branch": 1.0, "fused": seconds}, "chosen": "fused"} for seconds in (0.9, 1.05, 1.2, 1.09)]
    (bar,) = [bar for (model, _), bar in found(tmp_path, paths={"points": points}).items() if model == bars.LAYERS]
    assert bar.found == 0.75 and not bar.met


def test_without_results_the_table_says_so(tmp_path):
    *lines, last = bars.table(tmp_path).splitlines()[2:]
    assert len(lines) == 8 and all(line.endswith("| not measured | not measured |  |") for line in lines)
    assert last.endswith("| at least 0.95 |  |  | not measured |")


def test_the_table_says_what_is_met_missed_and_unknown(tmp_path):
    rows = {"kronecker": row(1.02, 0.3), "circulant": row(1.2, 0.3), bars.LORA: row(1.0, 0.3)}
    found(tmp_path, bert_base={"rows": rows})
    text = bars.table(tmp_path)
    assert "| Kronecker, step over our LoRA r=8 | at most 1.05 | 1.020, met | not measured |  |" in text
    assert "| circulant, step over our LoRA r=8 | at most 1.10 | 1.200, missed | not measured |  |" in text
    assert "| at most 0.50 | 0.300 (Kronecker; without Toeplitz, W(G,H), monarch, diagonal circulant) |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--small"], "--small needs --results=DIR"),
        (["--minutes=0"], "--minutes must be above 0, got 0"),
        (["--parts=bert"], "--parts must be of bert_base, llama3_2_1b, paths"),
    ],
)
def test_it_refuses_in_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    assert command.status(run.main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_first_waves_hold_every_method_once_and_the_others_none():
    first = [point for wave in grid.WAVES[:3] for point in grid.points(wave)]
    sizes = {(point.n_out, point.n_in) for point in first}
    assert len(first) == len(methods.ON_ACCELERATORS) * len(sizes) and {768, 576, 1536} <= {n for n, _ in sizes}
    assert {point.rows for point in first} == {8192} and {point.dtype for point in first} == {"bfloat16"}
    for method in methods.ON_ACCELERATORS:
        assert sum(grid.is_of(point, method) for point in first) == len(sizes)
    others = [point for wave in grid.WAVES if wave.others for point in grid.points(wave)]
    assert others and not any(map(grid.is_of_a_method, others))


def test_layers_of_one_program_share_no_product():
    point = grid.Point("kronecker", {}, 8, 8, 16, "bfloat16")
    passes, arguments = grid.layers_of(point, None)
    dots = re.findall(r" (?:dot|custom-call)\(", jax.jit(passes).lower(*arguments).compile().as_text())
    assert len(dots) == 2 * grid.LAYERS  # forward, and the gradient of x


def test_a_path_that_cannot_be_compiled_is_named_and_costs_only_its_point():
    good = grid.Point("kronecker", {}, 8, 8, 16, "bfloat16")
    failed: dict[str, str] = {}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        bad = dataclasses.replace(good, options={"terms": 0})
        ready = grid.compiled([good, bad], pool, time.time() + 60, failed)
    assert [point for point, _ in ready] == [good] and {*ready[0][1]} == {*paths.names_of(good)}
    assert failed and all("'terms', 0" in key and "InputError" in said for key, said in failed.items())


def test_what_is_not_ready_in_time_is_named():
    slow, quick = threading.Event(), lambda: steps.Step(lambda: None, {})
    ready, failed = steps.built(
        [{"slow": slow.wait, "quick": quick}, {"HF PEFT LoKr": lambda: 1 / 0}], time.time() + 0.2
    )
    slow.set()
    assert {*ready} == {"quick"} and failed.pop("slow") == "not ready in time"
    assert failed == {"HF PEFT LoKr": "ZeroDivisionError: division by zero"}


def test_rounds_end_when_the_time_is_over_but_there_are_three():
    assert len(turns.timed({"one": lambda: None}, 9, within=0.0)["one"]) == 3
    assert len(turns.timed({"one": lambda: None}, 9, within=60.0)["one"]) == 9


def test_bert_runs_again_by_the_paths_that_were_faster(tmp_path):
    point = dataclasses.asdict(grid.Point("circulant", {}, 768, 768, 8192, "bfloat16"))
    rows = [
        {**point, "seconds": {"branch": 2.0, "fused": 1.0}, "chosen": "branch"},
        {**point, "rows": 128, "seconds": {"branch": 1.0, "fused": 2.0}, "chosen": "fused"},
        {**point, "family": "kronecker", "seconds": {"branch": 1.0, "fused": 2.0}, "chosen": "branch"},
    ]
    (tmp_path / "paths.json").write_text(json.dumps({"points": rows}))
    always = [("low_rank r=8", "auto"), ("toeplitz", "auto"), ("toeplitz", "branch")]
    assert run.others(tmp_path / "paths.json", small=False) == [*always, ("circulant", "fused")]
    assert run.others(tmp_path / "nothing.json", small=False) == always


@pytest.mark.slow
def test_the_command_tells_what_fails_and_goes_on(tmp_path):
    torch, folder = tmp_path / "torch", tmp_path / "results"
    torch.mkdir()
    (torch / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    (folder / "waves.json").mkdir(parents=True)  # so that the part `paths` fails
    words = [sys.executable, "experiments/gpu/run.py", "--small", "--minutes=8", f"--results={folder}"]
    searched = f"{ROOT}:{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": searched, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    said = done.stdout.splitlines()
    peers = "HF PEFT C3A, HF PEFT LoRA r=8, HF PEFT LoKr, HF PEFT floor"
    assert said.count(f"  without {peers}: ModuleNotFoundError: No module named 'torch'") == 2
    assert "paths: failed with status 2" in said and "waves.json" in done.stderr
    for model in bars.MODELS:
        rows = json.loads((folder / f"{model}.json").read_text())["rows"]
        assert {*rows} == {"low_rank r=8", "kronecker", "floor"}
        assert rows["kronecker"]["over_own_lora"][1] > 0 and rows["kronecker"]["program_bytes"] > 0
        assert json.loads((folder / "peaks.json").read_text())[model]["low_rank r=8"] > 0
    assert json.loads((folder / "bert_base_again.json").read_text())["rows"].keys() == {
        "low_rank r=8", "kronecker, branch"
    }  # fmt: skip
    assert said[-1].startswith("| share of products") and "not measured" in said[-1]


@pytest.mark.slow
def test_with_too_little_time_it_says_what_was_not_reached(tmp_path):
    words = [sys.executable, "experiments/gpu/run.py", "--small", "--minutes=0.3", f"--results={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "JAX_PLATFORMS": "cpu"}
    began = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and time.monotonic() - began < 60, done.stderr
    assert "bert_base: not started: 4 s were left" in done.stdout.splitlines(), done.stdout
    assert re.search(r"not reached|not ready in time", done.stdout), done.stdout
    assert done.stdout.splitlines()[-1].startswith("| share of products")
