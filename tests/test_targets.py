"""Names of hardware that is only described, and what is refused."""

import ast
import importlib.resources
import pathlib
import re

import pytest

from surm import sweep, train
from surm.errors import InputError
from surm.machine import targets
from surm.machine.chips import CHIPS
from surm.machine.targets import parse
from tests.test_train import CONFIG, RANDOM

TPUS = ["tpu:v5e:4x4", "tpu:v4:2x2x1", "tpu:v5p:2x2x1", "tpu:v6e:2x4"]
NONE = {"coordinator_address": None, "num_processes": None, "process_id": None}


@pytest.mark.parametrize(
    ("text", "chips", "grid"),
    [
        ("tpu:v5e:4x4", 16, (4, 4)),
        ("tpu:v4:2x2x2", 8, (2, 2, 2)),
        ("gpu:h100:8", 8, (8, 1)),
        ("gpu:a100:8x4", 32, (8, 4)),
    ],
)
def test_a_target_is_read(text, chips, grid):
    target = parse(text)
    assert (target.text, target.chips, target.grid) == (text, chips, grid)
    assert target.chip.platform == text[:3] and target.chip.kind == text.split(":")[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("npu:x:1", "no platform is called 'npu'; examples are tpu:v5e:4x4 and gpu:h100:8"),
        ("tpu", "expected a kind of chip; an example is tpu:v5e:4x4"),
        ("tpu:v5:4x4", "no tpu is called 'v5'; nearest: v5p, v5e"),
        ("gpu:v5e:4", "no gpu is called 'v5e'; known: a100, h100, h200"),
        ("gpu:h20:8", "no gpu is called 'h20'; nearest: h200"),
        ("tpu:v5e", "the size is ''; expected such as tpu:v5e:4x4"),
        ("tpu:v5e:16", "the size is '16'; expected such as tpu:v5e:4x4"),
        ("tpu:v5e:0x4", "the size is '0x4'"),
        ("tpu:v5e:4x4:2", "the size is '4x4:2'"),
        ("gpu:h100:8x4x2", "the size is '8x4x2'; expected such as gpu:h100:8, or gpu:h100:8x4 for four hosts"),
        ("gpu:h100:16", "16 chips, but a host has at most 8"),
        ("tpu:v5e:32x32", "1024 chips, but the largest pod has 256"),
    ],
)
def test_an_unknown_target_is_refused_with_what_there_is(text, message):
    with pytest.raises(InputError, match=f"^--target={re.escape(text)}: .*{re.escape(message)}"):
        parse(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target=tpu:v5e:4x4", "--workdir=x"], "is hardware to compile for, not to train on; add --dry_run"),
        (["--target=tpu:v9:4x4", "--dry_run"], "no tpu is called 'v9'; nearest: v"),
        (["--dry_run", "--json"], "--json goes with --dry_run --target=..."),
        (["--target=gpu:h100:8", "--dry_run", "--distributed"], "describes all hosts; leave out --distributed"),
        (["--target=gpu:h100:8", "--dry_run", "--num_processes=2"], "describes all hosts"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_in_one_line(capsys, flags, message):
    assert train.main(["surm.train", f"--config={CONFIG}", *RANDOM, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_sweep_is_refused_in_the_same_way(capsys, tmp_path):
    given = ["surm.sweep", f"--config={CONFIG}"]
    for flags, message in (
        (["--dry_run"], "--dry_run of a sweep compiles for a target: add one, such as --target=tpu:v5e:4x4"),
        ([f"--workdir={tmp_path}", "--target=gpu:h100:8"], "not to train on; add --dry_run"),
    ):
        assert sweep.main([*given, *flags]) == 2
        assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("platform", "text"), [("tpu", "tpu:v5e:4x4"), ("gpu", "gpu:h100:8")])
def test_a_compiler_that_is_missing_is_named_with_the_command(monkeypatch, capsys, platform, text):
    monkeypatch.setattr(targets, "_installed", lambda name: False)
    monkeypatch.setattr(targets, "only_described", lambda: None)  # which is for the rest of a process
    assert train.main(["surm.train", f"--config={CONFIG}", *RANDOM, "--dry_run", f"--target={text}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --target={text} needs the compiler for {platform.upper()}s (not installed: ")
    assert line.endswith(f"): pip install 'surm[aot-{platform}]'")


def test_what_is_installed_is_found_and_what_is_not_is_not():
    assert targets._installed("jax.numpy") and not targets._installed("nowhere.at_all")


@pytest.mark.parametrize("text", TPUS)
def test_a_slice_is_described_as_it_is_sold(text):
    """One device a chip, and hosts of four chips but where a machine has eight or one."""
    described = targets._tpu(parse(text))
    assert described["topology_name"] == text.removeprefix("tpu:")
    assert described.get("chip_config_name") == ("megacore" if ":v4:" in text else None)
    assert described.get("chips_per_host_bounds") == ((2, 4, 1) if text == "tpu:v6e:2x4" else None)
    assert targets._tpu(parse("tpu:v5e:1x1"))["chips_per_host_bounds"] == (1, 1, 1)


def test_hosts_of_gpus_are_described():
    described = targets._gpu(parse("gpu:h100:8x4"))
    assert described["topology"] == "1x4x8" and 'name: "NVIDIA H100' in described["target_config"]


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.kind)
def test_figures_of_chips_hang_together(chip):
    assert chip.source.startswith("https://") and chip.kind in chip.source
    assert chip.peak["bfloat16"] >= chip.peak["float32"] > 1e14 and 4e11 < chip.bandwidth < 5e12
    assert 100e9 < chip.links < chip.bandwidth < chip.peak["bfloat16"]
    if chip.platform == "gpu":
        text = (importlib.resources.files("surm.machine") / "cards" / f"{chip.kind}.textproto").read_text()
        said = {name: float(value) for name, value in re.findall(r"(\w+): ([\d.]+)\n", text)}
        assert said["memory_bandwidth"] == pytest.approx(chip.bandwidth, rel=0.01)
        assert said["device_memory_size"] == pytest.approx(chip.memory, rel=0.08)
        cores = said["core_count"] * said["clock_rate_ghz"] * 1e9  # a tensor core does so many operations at a time
        assert chip.peak["bfloat16"] / cores == pytest.approx(2048 if chip.kind == "a100" else 4096, rel=0.09)


def test_the_table_is_that_of_the_data_sheets():
    gibibytes = {kind: chip.memory / 2**30 for kind, chip in CHIPS.items() if chip.platform == "tpu"}
    assert gibibytes == {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
    gigabytes = {kind: chip.memory / 1e9 for kind, chip in CHIPS.items() if chip.platform == "gpu"}
    assert gigabytes == {"a100": 80, "h100": 80, "h200": 141}


def test_extras_are_spelled_as_metadata_have_them():
    """pip before 23.3 leaves an extra with an underscore out, with a warning (findings/pip_leaves_out_extras_...)."""
    tree = ast.parse((pathlib.Path(__file__).parents[1] / "setup.py").read_text())
    (extras,) = (
        node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "extras_require"
    )
    names = [key.value for key in extras.keys]
    assert {"aot-tpu", "aot-gpu"} <= {*names} and all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
