"""Real sweeps of real, short runs, and what a careless user gets."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import sklearn.datasets

from surm import report, sweep
from surm.cli import command_line
from surm.cli.flags import SWEEP
from surm.sweeps import launchers, plan
from tests.test_train import SMALL

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = ROOT / "configs" / "vit_digits.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
SHORT = ["--config.optim.batch_size=4", "--config.log_every_steps=1", "--config.peft.targets=blocks.0.*query",
         f"--config.model.weights={SMALL}", "--config.model.image_size=16"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """A few digits, so that measuring takes no longer than training."""
    file = tmp_path_factory.mktemp("data") / "digits.npz"
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8).astype(np.uint8) * 15
    np.savez(file, x_train=images[:40], y_train=labels[:40], x_test=images[40:60], y_test=labels[40:60])
    return f"--config.data.source={file}"


def config_file(folder: pathlib.Path, body: str) -> pathlib.Path:
    """The digits' config with another `sweep()`."""
    file = folder / "mine.py"
    head = f"import runpy\nfrom surm import sweeps\nget_config = runpy.run_path({str(DIGITS)!r})['get_config']\n"
    file.write_text(head + body)
    return file


def swept(folder: pathlib.Path, returned: str) -> pathlib.Path:
    return config_file(folder, f"def sweep():\n    return {returned}")


def command(file: pathlib.Path, workdir: pathlib.Path, *more: str) -> list[str]:
    return ["surm.sweep", f"--config={file}", f"--workdir={workdir}", *SHORT, *more]


def call(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *arguments], env=ENVIRONMENT, capture_output=True, text=True)


def planned(*arguments: str) -> list[launchers.Run]:
    return plan.plan(command_line.parse([*arguments], SWEEP))


def refused(capsys, *arguments: str) -> str:
    """Runs the command, demands one line on the error stream and status 2, and returns the line."""
    assert sweep.main([*arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    return error


def wait_for(file: pathlib.Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be asked to stop"


@pytest.mark.slow
def test_five_runs_of_which_one_fails_are_mended_by_the_same_command(tmp_path, data):
    file = swept(
        tmp_path,
        "sweeps.product({'peft.method': ['update', 'adapter'], 'seed': [0, 1]})"
        f" + [{{'init_adapter': {str(tmp_path / 'adapter')!r}}}]",
    )
    arguments = command(file, tmp_path / "runs", data, "--config.optim.steps=2")
    first = call(*arguments)
    assert first.returncode == 1, first.stderr
    runs = {run.name: run for run in planned(*arguments)}
    (failed,) = [name for name in runs if name.startswith("init_adapter=")]
    assert [line for line in first.stdout.splitlines() if line.startswith("[")] == [
        *(f"[{number}/5] {name}: its output is in {run.log}" for number, (name, run) in enumerate(runs.items(), 1)),
        f"[5/5] {failed}: failed: {failed_because(runs[failed])}",
    ]
    assert first.stderr.strip() == f"failed: {failed}: {failed_because(runs[failed])}; see {runs[failed].log}"
    assert "adapter' is no folder; expected a finished run's folder, or an adapter's" in first.stderr
    rows = [line.split() for line in first.stdout.splitlines()[-6:]]
    assert rows[0] == ["rank", "method", "seed", "init_adapter", "accuracy", "loss", "trained", "seconds", "state"]
    assert [row[0] for row in rows[1:]] == ["1", "2", "3", "4", "-"]
    assert [row[-1] for row in rows[1:]] == ["finished"] * 4 + ["failed"]
    accuracies = [float(row[-5]) for row in rows[1:-1]]
    assert accuracies == sorted(accuracies, reverse=True)

    written = {name: os.stat(run.folder / "result.json").st_mtime_ns for name, run in runs.items() if name != failed}
    for name in written:
        held = json.loads((runs[name].folder / "result.json").read_text())
        common = {"data.source": data.partition("=")[2], "optim.steps": 2, "optim.batch_size": 4, "log_every_steps": 1,
                  "peft.targets": "blocks.0.*query", "model.weights": str(SMALL), "model.image_size": 16}  # fmt: skip
        assert held["overrides"] == common | runs[name].overrides
        assert held["config"]["seed"] == runs[name].overrides["seed"]

    shutil.copytree(runs["method=update,seed=0"].folder / "adapter", tmp_path / "adapter")
    second = call(*arguments)
    assert second.returncode == 0, second.stderr
    assert [line for line in second.stdout.splitlines() if line.startswith("[")] == [
        f"[1/1] {failed}: its output is in {runs[failed].log}"
    ]
    assert [line.split()[-1] for line in second.stdout.splitlines()[-5:]] == ["finished"] * 5
    assert written == {name: os.stat(runs[name].folder / "result.json").st_mtime_ns for name in written}
    results = [run.result() for run in runs.values()]
    assert {result["trainable_parameters"] for result in results} == {16 * 10 + 10 + 2 * 16, 16 * 10 + 10 + 3 * 16}

    assert sweep.main(arguments) == 0
    assert sweep.main([*arguments, "--config.peft.scale=2.0"]) == 2  # the folders hold runs of another config


def failed_because(run: launchers.Run) -> str:
    return run.log.read_text().split("error: ")[1].splitlines()[0].join(["error: ", ""])


def test_a_finished_sweep_shows_its_table_and_another_config_is_refused(tmp_path, data, capsys):
    file = swept(tmp_path, "sweeps.product(seed=[0])")
    arguments = command(file, tmp_path / "runs", data)
    (run,) = planned(*arguments, "--config.optim.steps=2")
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text(json.dumps(run.config.to_dict()))
    result = {"metric": "accuracy", "eval": {"accuracy": 0.5, "loss": 1.0}, "trainable_parameters": 7, "seconds": 2.0}
    (run.folder / "result.json").write_text(json.dumps(result))
    assert sweep.main([*arguments, "--config.optim.steps=2"]) == 0
    assert capsys.readouterr().out == report.sweep_table([{}], [result], ["finished"]) + "\n"
    assert sweep.main([*arguments, "--config.optim.steps=2", "--config.peft.scale=3.0"]) == 2
    error = capsys.readouterr().err
    assert "holds the run of another config; they differ (there against here) in peft.scale: 1.0 against 3.0" in error
    assert "seed=0" in error
    assert sweep.main([*arguments, "--config.optim.steps=3"]) == 2
    assert "holds a run of another length (optim.steps 2 → 3), and" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_asked_to_stop_saves_the_run_under_way_and_goes_on(tmp_path, data, number):
    file = swept(tmp_path, "sweeps.product(seed=[0, 1])")
    arguments = command(file, tmp_path / "runs", data, "--config.optim.steps=100")
    process = subprocess.Popen([sys.executable, "-m", *arguments], env=ENVIRONMENT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    first, second = planned(*arguments)
    wait_for(first.folder / "metrics.jsonl", process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: the run gets it too
    else:
        process.send_signal(number)
    output, error = process.communicate(timeout=240)
    assert process.returncode == 128 + number, error
    assert error == f"stopped by {number.name}; the same command goes on from there\n"
    assert output.splitlines()[-1].split()[-1] == "missing" and "failed" not in output
    last = first.log.read_text().splitlines()[-1]
    assert last.startswith("stopped by SIG") and last.endswith("; the same command goes on from there")
    assert any((first.folder / "checkpoints").iterdir()) and not second.folder.exists()
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    assert "going on after step" in first.log.read_text() and "going on after step" not in second.log.read_text()
    assert first.result()["steps"] == second.result()["steps"] == 100


@pytest.mark.slow
def test_a_printed_command_trains_its_run(tmp_path, data):
    file = swept(tmp_path, r"[{'peft.targets': r'.*\.(query|value)', 'peft.options': ''}]")
    arguments = ["surm.sweep", f"--config={file}", f"--workdir={tmp_path / 'my runs'}", data, "--config.optim.steps=1"]
    printed = call(*arguments, "--launcher=print")
    assert printed.returncode == 0, printed.stderr
    assert printed.stderr.splitlines()[-1].split()[-1] == "missing"
    done = subprocess.run(["bash", "-eu"], input=printed.stdout, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = planned(*arguments)
    assert run.result()["config"]["peft"]["targets"] == r".*\.(query|value)"
    again = call(*arguments, "--launcher=print")
    assert (again.stdout, again.returncode) == ("", 0) and again.stderr.splitlines()[-1].split()[-1] == "finished"


def test_the_sweep_itself_leaves_the_accelerator_to_its_runs(tmp_path):
    arguments = ["surm.sweep", f"--config={DIGITS}", f"--workdir={tmp_path}", "--launcher=print"]
    done = subprocess.run([sys.executable, "-m", *arguments], env=ENVIRONMENT | {"JAX_PLATFORMS": "none_of_that_name"},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6


VALUES = {
    "optim.learning_rate": [1e-05, 0.1 + 0.2, 3, None, np.float32(0.1), 1.7976931348623157e308],
    "seed": [0, 2**40, np.int64(7)],
    "model.remat": [True, False],
    "peft.options": ["", "rank=8", "rank=8,terms=2", "hadamard=False"],
    "data.source": ["it's", 'a "b"', "a b ", "$HOME `id` $(id)", "é×", "None", "--config.seed=3", "~", "a\\", "{{log}}",
                    "a;b|c&d>e<f*?[g]!#%h"],
    "peft.targets": [r".*\.(query|value)", r"^blocks\.\d+'\"\\$"],
}  # fmt: skip


@pytest.fixture
def unchecked(monkeypatch):
    """Without what looks at values together: here they only have to arrive."""
    monkeypatch.setattr(plan.configs, "check", lambda config: None)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in VALUES.items() for value in values])
def test_every_value_arrives_as_it_was_given(tmp_path, unchecked, monkeypatch, key, value):
    monkeypatch.setitem(sys.modules, "values_of_the_test", type(sys)("values_of_the_test"))
    sys.modules["values_of_the_test"].VALUE = value
    file = config_file(tmp_path, f"def sweep():\n    import values_of_the_test as v\n    return [{{{key!r}: v.VALUE}}]")
    (run,) = planned("surm.sweep", f"--config={file}", f"--workdir={tmp_path}")
    quoted = f'set -- {shlex.join(run.command)}; printf "%s\\0" "$@"'
    through_bash = subprocess.run(["bash", "-c", quoted], capture_output=True, text=True).stdout.split("\0")[:-1]
    assert through_bash == run.command
    part, _, name = key.rpartition(".")
    got = command_line.parse(["surm.train", *through_bash[3:]])
    held = (got.config[part] if part else got.config)[name]
    assert held == value and json.loads(json.dumps(got.overrides)) == {key: held}
    assert type(held) in (type(value), float, int)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return []", "yields no run"),
        ("return {'seed': 1}", "yields 'seed', expected dicts as {'seed': 1}"),
        ("return [{1: 2}]", "yields {1: 2}, expected dicts"),
        ("yield {'seed': 0}; yield {}; yield {'seed': 0}", "yields 'seed=0' twice"),
        ("return sweeps.zipped(seed=[0], log_every_steps=[1, 2])", "given 1 of seed, 2 of log_every_"),
        ("raise KeyError('seeds')", "mine.py': 'seeds'"),
        ("return [{}, {'sed': 1}]", "run 'sed=1': config has no key 'sed'; nearest: seed"),
        ("return [{'peft.famly': 'x'}]", "config has no key 'peft.famly'; nearest: peft.family"),
        ("return [{'seed': 1.5}]", "run 'seed=1.5': config.seed=1.5, expected a whole number"),
        ("return [{'seed': -1}]", "run 'seed=-1': config.seed=-1, expected at least 0"),
        ("return [{'seed': None}]", "run 'seed=None': config.seed=None, expected a whole number"),
        ("return [{'seed': [0, 1]}]", "sets seed to [0, 1], expected one number, True, False, None or"),
        ("return [{'data.source': 'a\\nb'}]", "expected one number, True, False, None or line of text"),
        ("return [{'data.source': 5}]", "sets data.source to 5, the config has '5' there"),
        ("return [{'init_adapter': None}]", "sets init_adapter to None, the config has 'None' there"),
        ("return [{'peft.options': 'rank=8'}]", "circulant has no option 'rank'"),
        ("return [{'optim.batch_size': 8}]", "--config.optim.batch_size is given, but sweep() sets it too; leave it"),
    ],
)
def test_an_unusable_sweep_is_one_line_and_nothing_is_written(tmp_path, capsys, body, message):
    assert message in refused(capsys, *command(config_file(tmp_path, f"def sweep():\n    {body}"), tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_a_config_without_a_sweep_says_how_to_write_one(tmp_path, capsys):
    error = refused(capsys, *command(config_file(tmp_path, ""), tmp_path / "runs"))
    assert "has no sweep(); an example: from surm import sweeps; def sweep(): return sweeps.product({" in error
    file = config_file(tmp_path, "sweep = 3")
    assert "3 is not a callable object" in refused(capsys, *command(file, tmp_path / "runs"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--launcher=slurn", "--launcher=slurn; nearest: slurm"),
        ("--lancher=slurm", "no flag is called --lancher; did you mean --launcher?"),
        ("--template=mine.sh", "--template=mine.sh is given, but --launcher=local takes none"),
        ("--config.sed=1", "nearest: seed"),
        ("--workdir=", "--workdir is missing: python -m surm.sweep --config=FILE --workdir=DIR"),
    ],
)
def test_a_wrong_flag_is_one_line(tmp_path, capsys, argument, message):
    given = ["surm.sweep", f"--config={DIGITS}", f"--workdir={tmp_path / 'runs'}", argument]
    assert message in refused(capsys, *given)


def test_a_sweep_that_takes_an_argument_is_given_what_stands_behind_the_colon(tmp_path):
    file = tmp_path / "mine.py"
    head = "from surm.config import default\ndef get_config(text='none'):\n    return default()\n"
    file.write_text(head + "def sweep(text='none'):\n    return [{'data.source': text}]")
    assert plan.overrides_of(f"{file}:a=b:c") == [{"data.source": "a=b:c"}]
    assert plan.overrides_of(str(file)) == [{"data.source": "none"}]
    file.write_text(head + "def sweep():\n    return [{'seed': 1}]")
    assert plan.overrides_of(f"{file}:a=b") == [{"seed": 1}]


def test_the_demos_sweep_is_three_families_with_their_rates_and_two_seeds(tmp_path):
    runs = planned("surm.sweep", f"--config={DIGITS}", f"--workdir={tmp_path}")
    assert [(run.config.peft.family, run.config.optim.learning_rate, run.config.seed) for run in runs] == [
        (family, rate, seed)
        for family, rate in (("circulant", 8e-3), ("toeplitz", None), ("kronecker", None))
        for seed in (0, 1)
    ]
    assert runs[0].name == "family=circulant,learning_rate=0.008,seed=0"


def test_a_run_that_is_killed_is_named_by_its_signal(tmp_path, data, monkeypatch):
    file = swept(tmp_path, "sweeps.product(seed=[0])")
    (run,) = planned(*command(file, tmp_path / "runs", data))
    killer = tmp_path / "killed"
    killer.write_text("#!/bin/sh\nkill -9 $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr(launchers.sys, "executable", str(killer))
    assert launchers.train_here([run]) == ({"seed=0": "killed by SIGKILL"}, [])
