"""The real command on real images: digits, and the shape the package ships, with random weights unless said."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import safetensors.numpy

import surm
from surm import train
from surm.cli import command_line
from surm.machine import mesh as meshes
from surm.peft import surgery
from surm.rundir import checkpoint
from surm.rundir.log import RunLog
from surm.rundir.workdir import Workdir
from surm.training import loop, preparation, program
from surm.training.step import initial_state
from tests.data import tfds_cifar

ROOT = pathlib.Path(__file__).parent.parent
CIFAR = ROOT.parent / "shared" / "data" / "cifar10.npz"
CONFIG = str(ROOT / "configs" / "vit_digits.py")
ON_A_FULL_DISK = os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}  # JAX's would be cut
SMALL = ROOT / "tests" / "models" / "golden" / "vit"  # two blocks of width 16: a step compiles in a third of the time
QUICK = [
    "--config.model.name=auto",
    f"--config.model.weights={SMALL}",
    "--config.model.image_size=16",
    "--config.optim.batch_size=16",
    "--config.data.train_examples=64",
    "--config.log_every_steps=1",
]
RANDOM = ["--config.model.name=vit_micro", "--config.model.weights=none", "--config.model.image_size=0"]


def arguments(workdir: pathlib.Path, *more: str) -> list[str]:
    return ["surm.train", f"--config={CONFIG}", f"--workdir={workdir}", *QUICK, *more]


def result(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


def lines(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def values(workdir: pathlib.Path) -> list[tuple]:
    return [(line["step"], line["split"], line["values"]) for line in lines(workdir)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("run") / "finished"
    assert train.main(arguments(workdir, "--config.optim.steps=8", "--config.peft.dropout=0.2",
                                "--config.checkpoint_every_steps=2", "--config.eval_every_steps=4")) == 0  # fmt: skip
    return workdir


def test_a_run_leaves_what_the_contract_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {".lock", "config.json", "metrics.jsonl", "checkpoints", "adapter", "curves.png", "result.json"}
    got = result(finished)
    assert set(got["eval"]) == {"accuracy", "loss"}
    for key in ("family", "method", "adapter_parameters", "trainable_parameters", "total_parameters", "steps",
                "seconds", "step_seconds_median", "peak_bytes", "seed", "versions", "config"):  # fmt: skip
        assert key in got, key
    assert got["steps"] == 8 and got["adapter_parameters"] == 2 * 3 * 2 * 16
    assert got["trainable_parameters"] == got["adapter_parameters"] + 16 * 10 + 10
    assert json.loads((finished / "config.json").read_text()) == got["config"]
    assert got["overrides"] == {
        "model.name": "auto", "model.weights": str(SMALL), "model.image_size": 16, "optim.batch_size": 16,
        "data.train_examples": 64, "log_every_steps": 1, "optim.steps": 8, "peft.dropout": 0.2,
        "checkpoint_every_steps": 2, "eval_every_steps": 4,
    }  # fmt: skip


def test_metrics_come_one_object_a_line_in_the_order_of_the_loop(finished):
    got = [(line["step"], line["split"]) for line in lines(finished)]
    assert got == [(s, "train") for s in range(1, 5)] + [(4, "test")] + [(s, "train") for s in range(5, 9)] + [
        (8, "test")
    ]
    assert all(set(line) == {"step", "split", "values"} for line in lines(finished))


def test_accuracy_is_a_whole_number_of_the_360_held_out_images(finished):
    correct = result(finished)["eval"]["accuracy"] * 360
    assert abs(correct - round(correct)) < 1e-9


def test_no_file_of_the_run_holds_the_base(finished):
    held = safetensors.numpy.load_file(finished / "adapter" / "adapter_model.safetensors")
    assert sum(array.size for array in held.values()) == result(finished)["trainable_parameters"]
    assert sum(path.stat().st_size for path in finished.rglob("*") if path.is_file()) < 1_500_000


def test_a_finished_run_is_not_repeated(finished, capsys):
    before = (finished / "result.json").stat().st_mtime_ns
    assert train.main(["surm.train", f"--config={CONFIG}", f"--workdir={finished}", *QUICK, "--config.optim.steps=8",
                       "--config.peft.dropout=0.2", "--config.checkpoint_every_steps=2",
                       "--config.eval_every_steps=4"]) == 0  # fmt: skip
    assert "finished" in capsys.readouterr().out
    assert (finished / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_run_asked_to_stop_saves_says_so_and_goes_on_exactly(finished, tmp_path, number):
    workdir = tmp_path / "stopped"
    # Asked at once, before compilation ends: it stops after the step that was under way, or before the first.
    command = [sys.executable, "-m", *arguments(workdir, "--config.optim.steps=8", "--config.peft.dropout=0.2",
               "--config.checkpoint_every_steps=2", "--config.eval_every_steps=4")]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("adapter "):  # the table is printed inside the claimed folder, before the first step
            break
    process.send_signal(number)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 128 + number, error
    assert f"stopped by {number.name} after step" in error and "Traceback" not in error
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert result(workdir)["eval"] == result(finished)["eval"]
    assert values(workdir) == values(finished)


SLOW_WRITER = """
import sys, time
import orbax.checkpoint as ocp
from surm import __main__
async def never(*_): time.sleep(600)  # in a thread of orbax's that is no daemon
ocp.JsonCheckpointHandler._save_fn = never
sys.exit(__main__.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_second_interrupt_ends_it_at_once_though_the_checkpoint_is_not_written(finished, tmp_path):
    options = [*arguments(tmp_path, "--config.optim.steps=8", "--config.peft.dropout=0.2",
                          "--config.eval_every_steps=4")][1:]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", SLOW_WRITER, "train", *options], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    next(line for line in process.stdout if line.startswith("adapter "))
    process.send_signal(signal.SIGINT)
    while not [*tmp_path.glob("checkpoints/*tmp*")] and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130, error
    assert "Traceback" not in error and error.endswith("the same command continues from the last checkpoint\n")
    done = subprocess.run([sys.executable, "-m", "surm", "train", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path)["eval"] == result(finished)["eval"]
    assert not [*tmp_path.glob("checkpoints/*tmp*")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_of_the_start_ends_it_in_one_line(tmp_path, number):
    code = ("import sys; from surm import train; from surm.machine import stopping; print('here', flush=True)\n"
            "with stopping.at_once(): sys.exit(train.main(sys.argv[1:]))")  # fmt: skip
    ways = set()
    for moment in np.arange(0.1, 12, 0.6):
        given = [sys.executable, "-c", code, *arguments(tmp_path / f"{moment:.1f}", "--config.optim.steps=100000")]
        process = subprocess.Popen(given, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        assert process.stdout.readline() == "here\n"
        time.sleep(moment)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 128 + number, (moment, error)
        said = [line for line in error.splitlines() if line.strip() and "ex/s" not in line]
        expected = rf"stopped by {number.name} (at once|after step) ?\d*; the same command (?:goes on|continues) .*"
        way = re.fullmatch(expected, *said)
        ways.add(way[1])
    assert ways == {"at once", "after step"}


@pytest.mark.parametrize("left", ["an empty folder", "a checkpoint of step 0"])
def test_a_run_that_starts_from_an_adapter_does_so_again_if_it_was_stopped_before_its_first_step(
    finished, tmp_path, monkeypatch, left
):
    options = ["--config.optim.steps=2", "--config.optim.learning_rate=0.0", "--config.optim.head_learning_rate=0.0",
               f"--config.init_adapter={finished / 'adapter'}", "--config.peft.dropout=0.2"]  # fmt: skip
    parsed = command_line.parse(arguments(tmp_path / "run", *options))
    if left == "an empty folder":
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    else:
        with monkeypatch.context() as patched:
            asked = contextlib.nullcontext([signal.SIGTERM])
            patched.setattr(train.stopping, "requests", lambda: asked)
            with pytest.raises(train.Stopped, match="stopped by SIGTERM after step 0"):
                train.run(parsed.config, str(tmp_path / "run"))
    train.run(parsed.config, str(tmp_path / "run"))
    given, found = (safetensors.numpy.load_file(folder / "adapter" / "adapter_model.safetensors")
                    for folder in (finished, tmp_path / "run"))  # fmt: skip
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array)


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from surm import train
sys.exit(train.main(sys.argv))
"""


def test_a_disk_that_fills_up_ends_with_one_line(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, *arguments(tmp_path / "run", "--config.optim.steps=2")[1:]]
    done = subprocess.run(command, env=ON_A_FULL_DISK, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    said = done.stderr.strip().splitlines()  # the threads of orbax may say more between
    assert any(line.startswith("warning: a checkpoint in") and "the run continues with" in line for line in said), (
        done.stderr
    )
    assert said[-1].startswith("error: ") and "File too large" in said[-1], done.stderr
    assert not (tmp_path / "run" / "result.json").exists()


FULL_FOR_A_WHILE = """
import resource, signal, sys, time
from surm import train
from surm.training import loop
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save = loop.Loop.save
def limited(self, step):
    # What was written before is finished first; then the disk is full while step 4 is saved.
    while self.saved._manager.is_saving_in_progress():
        time.sleep(0.05)
    limit = 20_000 if step == 4 else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    save(self, step)
loop.Loop.save = limited
sys.exit(train.main(sys.argv))
"""


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_no_more(finished, tmp_path):
    more = ["--config.optim.steps=8", "--config.peft.dropout=0.2", "--config.checkpoint_every_steps=2",
            "--config.eval_every_steps=4"]  # fmt: skip
    command = [sys.executable, "-c", FULL_FOR_A_WHILE, *arguments(tmp_path / "run", *more)[1:]]
    done = subprocess.run(command, env=ON_A_FULL_DISK, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning: a checkpoint in" in done.stderr and "the run continues with" in done.stderr
    assert result(tmp_path / "run")["eval"] == result(finished)["eval"]
    whole = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdecimal()}
    assert whole == {"6", "8"}


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(finished, tmp_path):
    workdir = tmp_path / "killed"
    command = [sys.executable, "-m", *arguments(workdir, "--config.optim.steps=8", "--config.peft.dropout=0.2",
               "--config.checkpoint_every_steps=2", "--config.eval_every_steps=4")]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (workdir / "checkpoints" / "4").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (workdir / "result.json").exists()
    for notes in workdir.glob("checkpoints/*/notes/metadata"):  # as if it had taken a day
        notes.write_text(json.dumps(json.loads(notes.read_text()) | {"seconds": 86400}))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 86400 < result(workdir)["seconds"] < 86400 + 240
    assert result(workdir)["eval"] == result(finished)["eval"]
    assert values(workdir) == values(finished)
    one, other = (safetensors.numpy.load_file(w / "adapter" / "adapter_model.safetensors") for w in (workdir, finished))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_a_run_starts_from_another_runs_adapter(finished, tmp_path):
    more = ("--config.optim.steps=1", "--config.peft.dropout=0.2", "--config.optim.head_learning_rate=0.0",
            "--config.optim.learning_rate=0.0", f"--config.init_adapter={finished / 'adapter'}")  # fmt: skip
    assert train.main(arguments(tmp_path / "second", *more)) == 0
    assert result(tmp_path / "second")["eval"] == result(finished)["eval"]
    assert train.main(arguments(tmp_path / "third", "--config.peft.family=toeplitz", *more)) == 2


def slow(more: list[str]):
    return pytest.param(more, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "more",
    [
        slow(["--config.peft.family=toeplitz"]),
        slow(["--config.peft.family=kronecker", "--config.peft.options=rank=16,terms=2"]),
        ["--config.peft.method=adapter", "--config.peft.family=low_displacement_rank"],
        slow(["--config.peft.method=bitfit", "--config.optim.name=sgd", "--config.optim.learning_rate=0.01"]),
        slow(["--config.peft.method=full", "--config.optim.gradient_clip=1.0", "--config.optim.weight_decay=0.1"]),
        ["--config.peft.method=head", "--config.optim.schedule=linear"],
        ["--config.model.dtype=bfloat16", "--config.data.augment=crop_flip"],
    ],
    ids=lambda more: more[0].split("=")[1],
)
def test_every_kind_of_run_lowers_its_loss(tmp_path, more):
    assert train.main(arguments(tmp_path / "run", "--config.optim.epochs=4", *more)) == 0
    losses = [line["values"]["loss"] for line in lines(tmp_path / "run") if line["split"] == "train"]
    assert len(losses) == 16
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_a_run_of_an_earlier_version_is_opened_and_not_repeated(finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for name in ("config.json", "result.json"):
        written = json.loads((workdir / name).read_text())
        del (written if name == "config.json" else written["config"])["model"]["remat"]
        (workdir / name).write_text(json.dumps(written))
    assert surm.load_run(workdir).config.model.remat is False
    given = json.loads((finished / "result.json").read_text())["config"]
    more = [f"--config.{key}={given[part][name]}" for key in ("optim.steps", "peft.dropout")
            for part, name in [key.split(".")]]  # fmt: skip
    more += ["--config.checkpoint_every_steps=2", "--config.eval_every_steps=4"]
    assert train.main(arguments(workdir, *more)) == 0
    assert "holds the finished run of this config" in capsys.readouterr().out


def test_in_half_precision_the_originals_leave_the_device_and_the_adapter_fits_them(tmp_path):
    given = arguments(tmp_path / "run", "--config.optim.steps=2", "--config.model.dtype=bfloat16")
    prepared = preparation.prepare(command_line.parse(given).config)
    folder = Workdir(tmp_path / "other", prepared.config)
    with folder.claimed(), checkpoint.Checkpoints(folder.checkpoints, 1) as saved:
        mesh = meshes.mesh_of(prepared.config)
        going = loop.Loop(prepared, folder, saved, program.of_run(prepared, mesh), RunLog(folder), mesh)
    matrices = [leaf for leaf in jax.tree.leaves(surgery.split(prepared.model)[2]) if leaf.ndim > 1]
    assert matrices and all(type(leaf) is np.ndarray and leaf.dtype == np.float32 for leaf in matrices)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(going.frozen) if leaf.ndim > 1} == {"bfloat16"}
    assert train.main(given) == 0
    assert surm.load_run(tmp_path / "run").predict(np.zeros((1, 8, 8), np.uint8)).shape == (1, 10)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    # The rate rises from 0 over 25 steps: the first step moves nothing, the second too far.
    more = ("--config.optim.steps=50", "--config.optim.head_learning_rate=1e36", "--config.optim.warmup_fraction=0.5",
            "--config.checkpoint_every_steps=1")  # fmt: skip
    workdir = tmp_path / "run"
    assert train.main(arguments(workdir, *more)) == 3
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: step 2: ") and "lower learning rate" in message
    assert not (workdir / "result.json").exists() and not (workdir / "adapter").exists()
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["1"]
    assert all(np.isfinite(line["values"]["loss"]) for line in lines(workdir))
    prepared = preparation.prepare(command_line.parse(arguments(workdir, *more)).config)
    with checkpoint.Checkpoints(workdir / "checkpoints", 1) as saved:
        _, state, _ = saved.newest(initial_state(prepared, 0, averaged=False))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["trainable"]))


def test_the_demo_learns_in_a_few_steps_of_the_real_command(tmp_path):
    command = [sys.executable, "-m", "surm.train", f"--config={CONFIG}", f"--workdir={tmp_path / 'demo'}",
               "--config.optim.steps=20"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "held-out accuracy" in done.stdout and "blocks.5.attention.value" in done.stdout
    said = r"^a step takes [\d.]+ s; 13 more will take about \d+ s, not counting evaluation$"
    assert re.search(said, done.stdout, re.M)
    assert result(tmp_path / "demo")["eval"]["accuracy"] > 0.5


def test_a_tfds_data_set_trains(tmp_path):
    if not CIFAR.is_file():
        pytest.skip(f"{CIFAR.name} is not beside the checkout")
    name = tfds_cifar.prepare(CIFAR, tmp_path, examples=64)
    more = (f"--config.data.source=tfds:{name}", f"--config.data.data_dir={tmp_path}", "--config.optim.steps=2",
            "--config.data.train_examples=20")  # fmt: skip
    assert train.main(arguments(tmp_path / "run", *more)) == 0
    assert result(tmp_path / "run")["trainable_parameters"] > 0


def test_a_checkpoint_of_other_weights_is_refused(tmp_path, capsys):
    seeded = arguments(tmp_path / "run", *RANDOM, "--config.optim.steps=2", "--config.checkpoint_every_steps=1")
    assert train.main(seeded) == 0
    file = tmp_path / "run" / "config.json"
    held = json.loads(file.read_text())
    file.write_text(json.dumps(held | {"seed": 1}))
    (tmp_path / "run" / "result.json").unlink()
    assert train.main([*seeded, "--config.seed=1"]) == 2
    assert "they differ in the weights" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], slow(["--config.population=seed=0|1"])], ids=["one run", "a population"])
def test_a_dry_run_says_what_it_takes_and_writes_nothing(tmp_path, capsys, more, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(["surm.train", f"--config={CONFIG}", "--dry_run", "--config.optim.steps=2", *more]) == 0
    said = capsys.readouterr().out.splitlines()
    assert re.match(r"1 cpu \(data 1, model 1\), float32; .*frozen 10.3 MiB on each", said[-3 if more else -4])
    assert re.match(r"path='auto' takes \w+ for circulant 192×192 with \d+ vectors in float32$", said[-2])
    assert re.match(
        r"a step on each device takes .*: arguments .* MiB, temporary .* MiB, in all .* MiB, operations .* GFLOP",
        said[-1],
    )
    assert not list(tmp_path.iterdir())


def test_a_few_steps_are_traced_and_the_numbers_stay(finished, tmp_path):
    more = ["--config.optim.steps=8", "--config.peft.dropout=0.2", "--config.checkpoint_every_steps=2",
            "--config.eval_every_steps=4", "--config.profile_steps=2"]  # fmt: skip
    assert train.main(arguments(tmp_path / "run", *more)) == 0
    assert len(list((tmp_path / "run" / "profile").rglob("*.trace.json.gz"))) == 1
    assert values(tmp_path / "run") == values(finished)
