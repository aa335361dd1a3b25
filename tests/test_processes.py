"""Several processes on one machine, met over loopback: one run, the same curve; whoever ends, the others end too."""

import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from surm import train
from surm.cli.flags import TRAIN
from surm.errors import InputError
from surm.machine import processes
from surm.matrices.algebra.platforms import kind_of
from surm.peft.multiply import calibrated
from tests.test_train import CONFIG, QUICK, ROOT, lines, result, values

LONG = [f"--config={CONFIG}", *QUICK, "--config.optim.steps=30", "--config.peft.dropout=0.2",
        "--config.checkpoint_every_steps=5", "--config.eval_every_steps=10"]  # fmt: skip
ADAPTER = "adapter/adapter_model.safetensors"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def started(
    workdir: pathlib.Path,
    count: int,
    *flags: str,
    of_last: tuple[str, ...] = (),
    caches: tuple[str, ...] = ("/dev/null/none", "/dev/null/none"),
    join_seconds: int = 60,
) -> list[subprocess.Popen]:
    """The processes of a run; only the first is given the folder that is looked at, the last some flags of its own."""
    meeting = meeting_of(count, join_seconds)
    running = []
    for number in range(count):
        folder = workdir if number == 0 else workdir.with_name("not_there")
        own = [f"--process_id={number}", f"--workdir={folder}", *(of_last if number == count - 1 else ())]
        running.append(process(["-m", "surm.train", *flags, *meeting, *own], caches[number > 0]))
    return running


def meeting_of(count: int, join_seconds: int = 60) -> list[str]:
    """The flags by which so many processes meet, without the number of each."""
    address = f"--coordinator_address=localhost:{free_port()}"
    return [address, f"--num_processes={count}", f"--join_seconds={join_seconds}"]


def process(arguments: list[str], cache: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "SURM_CACHE": cache}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *arguments], env=environment, text=True, **piped)


def ended(running: list[subprocess.Popen], timeout: float = 240) -> list[tuple[int, str, str]]:
    """Status, output and errors of each."""
    try:
        said = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *each) for process, each in zip(running, said, strict=True)]


def wait_for(running: list[subprocess.Popen], workdir: pathlib.Path, what: str) -> None:
    while not list(workdir.glob(what)) and all(process.poll() is None for process in running):
        time.sleep(0.01)


def assert_same_curve(one: pathlib.Path, other: pathlib.Path) -> None:
    for line, expected in zip(lines(one), lines(other), strict=True):
        assert (line["step"], line["split"]) == (expected["step"], expected["split"])
        assert line["values"] == pytest.approx(expected["values"], rel=2e-4, abs=2e-5), line


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    """A run of two processes that nobody stopped."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    first, second = ended(started(workdir, 2, *LONG))
    assert first[0] == second[0] == 0, (first, second)
    assert "held-out accuracy" in first[1] and "held-out" not in second[1]
    assert not workdir.with_name("not_there").exists()
    return workdir


def test_two_processes_train_as_one(whole, tmp_path):
    assert train.main(["surm.train", *LONG, f"--workdir={tmp_path}"]) == 0
    assert_same_curve(whole, tmp_path)
    assert result(whole)["versions"]["device"].startswith("2 ")


@pytest.mark.slow
def test_all_processes_choose_paths_by_what_was_calibrated_for_the_first(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("SURM_CACHE", str(tmp_path / "cache"))
    seconds = {path: 2.0 - (path == "branch_dft") for path in ("branch", "branch_dft", "branch_dense")}
    sizes = {"n_out": 16, "n_in": 16, "rows": 40, "parameters": {"a": [16], "b": [16]}}
    point = {"family": "circulant", "options": {}, "dtype": "float32", **sizes, "floor_seconds": None}
    head = {"platform": "cpu", "device": kind_of(), "versions": calibrated.versions()}
    file = calibrated.made_ready("cpu", kind_of())
    calibrated.write(file, {**head, "points": [{**point, "seconds": seconds}]})
    adapters = []
    for name, of_others in (("both", str(tmp_path / "cache")), ("first", "/dev/null/none")):
        workdir = tmp_path / name / "run"
        caches = (str(tmp_path / "cache"), of_others)
        first, second = ended(started(workdir, 2, *LONG, caches=caches))
        assert first[0] == second[0] == 0 and str(file) in first[1], (first, second)
        assert_same_curve(workdir, whole)
        adapters.append((workdir / ADAPTER).read_bytes())
    assert adapters[0] == adapters[1] != (whole / ADAPTER).read_bytes()


CALIBRATION = """if True:
    import sys, time
    from surm.__main__ import main
    from surm.matrices.algebra.platforms import kind_of
    from surm.peft.multiply import calibrated, timing
    enter = timing.Contest.enter
    def after_long(self, path):
        if path == "branch":
            time.sleep(40)  # longer than processes wait for each other when they connect
        return enter(self, path)
    timing.Contest.enter = after_long
    status = main(sys.argv[1:])
    print(calibrated.here("cpu", kind_of()) is not None, calibrated.now("cpu", kind_of()), flush=True)
    sys.exit(status)
"""


@pytest.mark.slow
def test_the_first_process_calibrates_for_as_long_as_it_takes(tmp_path):
    flags = ["calibrate", *LONG, "--seconds=200", *meeting_of(2)]
    running = [process(["-c", CALIBRATION, *flags, f"--process_id={one}"], str(tmp_path)) for one in range(2)]
    first, second = ended(running)
    assert first[0] == second[0] == 0, (first, second)
    (file,) = tmp_path.rglob("*.json")
    assert f"written to {file}: path='auto' goes by it on this device\n" in first[1]
    for _, said, _ in (first, second):  # outside a run, each would read its own machine's
        assert said.endswith("True None\n")


@pytest.mark.slow
def test_processes_of_different_configs_calibrate_nothing(tmp_path):
    flags, more = ["-m", "surm", "calibrate", *LONG, *meeting_of(2)], [[], ["--config.peft.family=toeplitz"]]
    own = [[f"--process_id={number}", *more[number]] for number in range(2)]
    for status, _, error in ended([process([*flags, *one], str(tmp_path)) for one in own]):
        assert status == 2 and "process 1 has another config than process 0: peft.family='toeplitz'" in error
    assert [*tmp_path.rglob("*.*")] == []


@pytest.mark.slow
def test_asked_to_stop_in_one_process_all_stop_and_go_on(whole, tmp_path):
    running = started(tmp_path / "run", 2, *LONG)
    wait_for(running, tmp_path / "run", "checkpoints/5")
    running[1].send_signal(signal.SIGTERM)
    for status, _, error in ended(running):
        assert status == 128 + signal.SIGTERM, error
        assert "stopped by SIGTERM after step" in error
    assert not (tmp_path / "run" / "result.json").exists()
    first, second = ended(started(tmp_path / "run", 2, *LONG))
    assert first[0] == second[0] == 0 and "going on after step" in first[1], (first, second)
    assert values(tmp_path / "run") == values(whole)
    assert (tmp_path / "run" / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()


@pytest.mark.slow
def test_killed_at_random_moments_the_others_end_within_a_minute_and_all_go_on(whole, tmp_path):
    workdir, moments = tmp_path / "run", random.Random(0)
    for round_ in range(8):
        running = started(workdir, 2, *LONG, join_seconds=40)  # and the import of JAX, within the minute
        if round_ % 2:
            wait_for(running, workdir, f"checkpoints/{5 * (round_ // 2 + 1)}")
        time.sleep(moments.uniform(0, 0.5 if round_ % 2 else 6))
        killed = round_ // 2 % 2
        running[killed].kill()
        since = time.monotonic()
        status, _, error = ended(running)[1 - killed]
        assert time.monotonic() - since < 60
        if status == processes.LOST:
            assert "another process of the run has ended" in error and "Traceback" not in error
        elif status == 2:  # the other one was killed before they met
            assert "not all processes of the run met" in error and "Traceback" not in error
        else:  # while they meet, and where the one they meet at is gone, JAX may end a process before it can speak
            assert status == -signal.SIGABRT and "another task died" in error, (status, error[-2000:])
    assert all(status == 0 for status, _, _ in ended(started(workdir, 2, *LONG)))
    assert values(workdir) == values(whole)
    assert (workdir / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["--config.mesh.data=4", "--config.mesh.shard_base=True"])
def test_four_processes_train_as_one(whole, tmp_path, mesh):
    assert all(status == 0 for status, _, _ in ended(started(tmp_path / "run", 4, *LONG, mesh)))
    assert_same_curve(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [False, True])
def test_members_of_a_population_train_in_two_processes(tmp_path, spread):
    flags = [f"--config={CONFIG}", *QUICK, "--config.optim.steps=6", "--config.eval_every_steps=3",
             "--config.population=seed=0|1,learning_rate=8e-3|2e-2"]  # fmt: skip
    assert train.main(["surm.train", *flags, f"--workdir={tmp_path / 'one'}"]) == 0
    two = ended(started(tmp_path / "two", 2, *flags, f"--config.mesh.shard_members={spread}"))
    assert all(status == 0 for status, _, _ in two), two
    for member in (tmp_path / "one" / "members").iterdir():
        assert_same_curve(tmp_path / "two" / "members" / member.name, member)
        one, other = (
            result(folder / "members" / member.name)["eval"] for folder in (tmp_path / "one", tmp_path / "two")
        )
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=2e-4)


def refused(workdir: pathlib.Path, *flags: str) -> str:
    """What a run of one process says that cannot meet the others; nothing else, and no folder, is left."""
    command = [sys.executable, "-m", "surm.train", *LONG, *flags, f"--workdir={workdir}"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not workdir.exists(), done
    return done.stderr


@pytest.mark.parametrize("number", [0, 1])
def test_who_meets_nobody_stops_after_the_stated_wait(tmp_path, number):
    given = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2", f"--process_id={number}"]
    since = time.monotonic()
    assert "within 2 seconds" in refused(tmp_path / "run", *given, "--join_seconds=2")
    assert time.monotonic() - since < 30


def test_without_a_cluster_and_with_a_number_too_high_nothing_is_joined(tmp_path):
    assert "JAX knows the environments of TPU pods, Slurm" in refused(tmp_path / "run", "--distributed")
    given = ["--coordinator_address=localhost:1", "--num_processes=2", "--process_id=2"]
    assert "process_id=2" in refused(tmp_path / "run", *given)


def test_processes_of_different_configs_train_nothing(tmp_path):
    for status, _, error in ended(started(tmp_path / "run", 2, *LONG, of_last=("--config.optim.learning_rate=0.5",))):
        assert status == 2
        assert "process 1 has another config than process 0: optim.learning_rate=0.5 against 0.008" in error


def test_what_one_process_cannot_use_all_refuse(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    for status, _, error in ended(started(tmp_path / "run", 2, *LONG)):
        assert status == 2 and "cannot be read as JSON" in error
    assert not (tmp_path / "not_there").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"num_processes": "two"}, "--num_processes=two, expected a whole number"),
        ({"coordinator_address": "somewhere"}, "--coordinator_address=somewhere, expected HOST:PORT"),
        ({"num_processes": "2", "process_id": "1"}, "--coordinator_address is missing: .* go together; --distributed"),
    ],
)
def test_flags_that_are_no_numbers_and_no_addresses_are_refused(flags, said):
    with pytest.raises(InputError, match=said):
        processes.join(dict.fromkeys(TRAIN.options) | flags, distributed=False)
    processes.join(dict.fromkeys(TRAIN.options), distributed=False)
    assert processes.is_first()
