"""Killed at twenty random moments, politely and not, a run ends as if nobody had touched it."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.test_train import CONFIG, QUICK, RANDOM, ROOT, lines, result

KILLS = 20


def command(workdir: pathlib.Path) -> list[str]:
    more = ["--config.optim.steps=400", "--config.peft.dropout=0.2", "--config.optim.ema_decay=0.9",
            "--config.checkpoint_every_steps=2", "--config.eval_every_steps=100"]  # fmt: skip
    return [sys.executable, "-m", "surm.train", f"--config={CONFIG}", f"--workdir={workdir}", *QUICK, *RANDOM, *more]


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    subprocess.run(command(tmp_path / "whole"), env=environment, check=True, capture_output=True)
    workdir, moments, statuses = tmp_path / "cut", random.Random(0), []
    while len(statuses) < KILLS:
        number = moments.choice([signal.SIGKILL, signal.SIGTERM])
        process = subprocess.Popen(command(workdir), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if len(statuses) % 2:  # while it trains and saves, every other step
            before = set((workdir / "checkpoints").glob("*"))
            while process.poll() is None and set((workdir / "checkpoints").glob("*")) == before:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.5))
        else:  # or while it starts
            time.sleep(moments.uniform(1, 12))
        process.send_signal(number)
        _, error = process.communicate(timeout=240)
        statuses.append(process.returncode)
        # A signal that comes before Python listens ends the process at once; both leave the folder fit to go on.
        assert process.returncode in (-number, 128 + number), error.decode()[-2000:]
    assert {-signal.SIGKILL, 128 + signal.SIGTERM} <= {*statuses}
    subprocess.run(command(workdir), env=environment, check=True, capture_output=True)
    assert result(workdir)["eval"] == result(tmp_path / "whole")["eval"]
    assert [(line["step"], line["values"]) for line in lines(workdir)] == [
        (line["step"], line["values"]) for line in lines(tmp_path / "whole")
    ]
    name = "adapter/adapter_model.safetensors"
    assert (workdir / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
