"""Runs in object stores that are killed, started twice or swept: real commands against servers on this machine."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from surm import files
from tests import stores
from tests.test_places import bucket, place, values  # noqa: F401  fixtures
from tests.test_train import RANDOM, ROOT, arguments

MORE = ["--config.optim.steps=60", "--config.peft.dropout=0.2", "--config.optim.ema_decay=0.9",
        "--config.checkpoint_every_steps=4", "--config.eval_every_steps=20"]  # fmt: skip


def started(workdir: str, **keywords) -> subprocess.Popen:
    """The command, under way; like every process here it has the environment that finds the store."""
    command = [sys.executable, "-m", *arguments(workdir, *RANDOM, *MORE)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, **keywords)


def checkpoints(workdir: str) -> set[str]:
    folder = files.path(workdir) / "checkpoints"
    return {each.name for each in folder.iterdir()} if folder.is_dir() else set()


def killed(workdir: str, moments: random.Random) -> None:
    """Starts the run and ends it without a warning, while it trains and saves."""
    before = checkpoints(workdir)
    process = started(workdir, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and checkpoints(workdir) <= before:
        time.sleep(0.02)
    time.sleep(moments.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it ended before it could be killed: {error}"


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_as_if_nobody_had_touched_it(place, tmp_path):  # noqa: F811
    whole, cut, moments = str(tmp_path / "whole"), f"{place}/cut", random.Random(place.partition(":")[0])
    assert started(whole, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait() == 0
    for _ in range(2):
        killed(cut, moments)
        assert not (files.path(cut) / "result.json").exists()
    last = started(cut, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, error = last.communicate()
    assert last.returncode == 0, error
    assert "going on after step" in said and f"from the checkpoint in {cut}/checkpoints" in said
    name = "adapter/adapter_model.safetensors"
    assert (files.path(cut) / name).read_bytes() == (files.path(whole) / name).read_bytes()
    assert values(cut) == values(whole)
    one, other = (json.loads((files.path(folder) / "result.json").read_text()) for folder in (cut, whole))
    assert one["eval"] == other["eval"]
    assert checkpoints(cut) == {f"{step}.tar" for step in checkpoints(whole)}


@pytest.mark.slow
def test_a_second_command_is_refused_while_the_first_trains(place):  # noqa: F811
    first = started(place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while first.poll() is None and not checkpoints(place):
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # it is there, and says nothing
    try:
        second = started(place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, error = second.communicate()
        assert second.returncode == 2 and error.count("\n") == 1
        assert f"another run, process {first.pid} on " in error and "is in it" in error
    finally:
        first.send_signal(signal.SIGCONT)
        first.send_signal(signal.SIGTERM)
    assert first.wait() == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step" in first.stderr.read()


@pytest.mark.slow
def test_a_sweep_of_two_in_a_store(place, tmp_path):  # noqa: F811
    config = tmp_path / "config.py"
    config.write_text(
        "from surm import config, sweeps\n"
        "def get_config():\n"
        "    return config.default()\n"
        "def sweep():\n"
        "    return sweeps.product({'seed': [0, 1]})\n"
    )
    flags = [f"--config={config}", f"--workdir={place}", *arguments(place)[3:], "--config.optim.steps=2"]
    flags += ["--config.data.source=digits"]
    command = [sys.executable, "-m", "surm.sweep", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for number in range(2):
        swept = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert swept.returncode == 0, swept.stderr
        assert ("[1/2]" in swept.stdout) == (number == 0)  # the second time there is nothing to train
    logs = [(files.path(place) / f"seed={seed}" / "log.txt").read_text() for seed in range(2)]
    assert all(f"results in {place}/seed={seed}" in log for seed, log in enumerate(logs))
    reported = [sys.executable, "-m", "surm.report", place, "--out", str(tmp_path / "report")]
    said = subprocess.run(reported, env=environment, capture_output=True, text=True)
    assert said.returncode == 0 and "2 results" in said.stdout and stores.BUCKET in place, said.stderr
