"""Scripts for Slurm and xpk: what is written is what a shell runs, with Slurm and xpk played by small scripts."""

import os
import pathlib
import re
import shlex
import signal
import subprocess

import pytest

from surm import sweep
from surm.sweeps import launchers
from tests import test_sweep
from tests.test_sweep import DIGITS, ENVIRONMENT, call, command, planned, refused, swept

data = test_sweep.data  # the fixture
TEMPLATES = sorted(launchers.TEMPLATES.items())
HARD = r"[{'peft.targets': r'.*\.(query|value)'}, {'peft.targets': '.*it\'s \"$HOME\" {{log}} \\$(id)', 'seed': 3}]"


def played(folder: pathlib.Path, program: str) -> dict[str, str]:
    """The environment in which a program writes its arguments to a file instead, each ended by a zero."""
    folder.mkdir(exist_ok=True)
    script = folder / program
    script.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >>{shlex.quote(str(folder / 'arguments'))}\n")
    script.chmod(0o755)
    return ENVIRONMENT | {"PATH": f"{folder}:{os.environ['PATH']}"}


def arguments_of(folder: pathlib.Path) -> list[str]:
    return (folder / "arguments").read_text().split("\0")[:-1]


@pytest.mark.parametrize(("launcher", "template"), TEMPLATES)
def test_the_written_script_is_whole_and_says_how_it_is_started(tmp_path, capsys, launcher, template):
    workdir = tmp_path / "my runs"
    assert sweep.main(["surm.sweep", f"--config={DIGITS}", f"--workdir={workdir}", f"--launcher={launcher}"]) == 0
    *table, how = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in table] == ["state", *["missing"] * 6]
    file = workdir / template
    assert how == f"to train the missing runs: {launchers.STARTED_WITH[launcher]} {shlex.quote(str(file))}"
    assert [path.name for path in workdir.iterdir()] == [template]
    text = file.read_text()
    assert "{{" not in text and text.count("surm.train --config=") + text.count("surm.train \"'--config=") == 6
    assert subprocess.run(["bash", "-n", file]).returncode == 0


@pytest.mark.parametrize(("launcher", "template"), TEMPLATES)
def test_nothing_is_written_for_a_finished_sweep(tmp_path, capsys, monkeypatch, launcher, template):
    monkeypatch.setattr(launchers.Run, "result", lambda run: {"metric": "f1", "eval": {"f1": 1.0, "loss": 0.0},
                                                          "trainable_parameters": 1, "seconds": 1.0})  # fmt: skip
    assert sweep.main(["surm.sweep", f"--config={DIGITS}", f"--workdir={tmp_path}", f"--launcher={launcher}"]) == 0
    assert "to train" not in capsys.readouterr().out and not [*tmp_path.iterdir()]


def test_each_task_of_the_slurm_array_gets_the_command_of_its_run(tmp_path, monkeypatch):
    arguments = ["surm.sweep", f"--config={swept(tmp_path, HARD)}", f"--workdir={tmp_path / 'a 100% run'}"]
    environment = played(tmp_path / "bin", "python that writes down")
    monkeypatch.setattr(launchers.sys, "executable", str(tmp_path / "bin" / "python that writes down"))
    runs = planned(*arguments)
    file = launchers.script("slurm", runs, tmp_path / "a 100% run", None)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)", file.read_text(), re.MULTILINE))
    assert options["array"] == "0-1"
    assert shlex.split(options["output"]) == [str(tmp_path / "a 100%% run" / "slurm-%A_%a.out")]
    for index, run in enumerate(runs):
        (tmp_path / "bin" / "arguments").unlink(missing_ok=True)
        done = subprocess.run(["bash", file], env=environment | {"SLURM_ARRAY_TASK_ID": str(index)})
        assert done.returncode == 0 and run.log.exists()
        assert arguments_of(tmp_path / "bin") == ["-m", "surm.train", *run.flags]
    assert subprocess.run(["bash", file], env=environment | {"SLURM_ARRAY_TASK_ID": "2"}).returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_slurm_task_whose_time_is_up_saves_and_queues_again(tmp_path, data, number):
    arguments = command(swept(tmp_path, "sweeps.product(seed=[0, 1])"), tmp_path / "runs", data,
                        "--config.optim.steps=300")  # fmt: skip
    assert sweep.main([*arguments, "--launcher=slurm"]) == 0
    environment = played(tmp_path / "bin", "scontrol") | {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    _, run = planned(*arguments)
    task = ["bash", str(tmp_path / "runs" / "slurm_array.sh")]
    process = subprocess.Popen(task, env=environment, start_new_session=True)
    test_sweep.wait_for(run.folder / "metrics.jsonl", process)
    if number == signal.SIGTERM:
        os.killpg(process.pid, number)  # everything is cancelled, the run is told twice
    else:
        process.send_signal(number)  # the script alone is told
    assert process.wait(timeout=240) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert "; the same command goes on from there" in run.log.read_text().splitlines()[-1]
    if number == signal.SIGTERM:
        assert not (tmp_path / "bin" / "arguments").exists()  # whoever cancels does not want it queued again
        return
    assert arguments_of(tmp_path / "bin") == ["requeue", "7_1"]
    assert subprocess.run(task, env=environment).returncode == 0
    assert run.result()["steps"] == 300 and "going on after step" in run.log.read_text()


def test_every_xpk_workload_gets_the_command_of_its_run_as_one_argument(tmp_path):
    arguments = ["surm.sweep", f"--config={swept(tmp_path, HARD)}", f"--workdir={tmp_path / 'my runs'}"]
    assert call(*arguments, "--launcher=xpk").returncode == 0
    environment = played(tmp_path / "bin", "xpk")
    script = ["bash", tmp_path / "my runs" / "xpk_workloads.sh"]
    unnamed = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert unnamed.returncode != 0 and "CLUSTER: the name of the cluster" in unnamed.stderr
    done = subprocess.run(script, env=environment | {"CLUSTER": "my-cluster", "IMAGE": "registry/image:1"})
    assert done.returncode == 0
    got = arguments_of(tmp_path / "bin")
    each = len(got) // 2
    for run, given in zip(planned(*arguments), (got[:each], got[each:]), strict=True):
        assert given[:2] == ["workload", "create"]
        options = dict(argument.removeprefix("--").split("=", 1) for argument in given[2:])
        assert options["cluster"] == "my-cluster" and options["docker-image"] == "registry/image:1"
        assert options["workload"] == launchers.workload_name(run)
        words = subprocess.run(["bash", "-c", "exec() { printf '%s\\0' \"$@\"; }\n" + options["command"]],
                               capture_output=True, text=True).stdout.split("\0")[:-1]  # fmt: skip
        assert words == ["python", "-m", "surm.train", *run.flags]


def test_names_of_workloads_are_labels_that_xpk_takes(tmp_path):
    body = "sweeps.product({'peft.targets': ['.*Query', '.*query', '.*' + 'x' * 200]}, {'seed': [0, 1]}) + [{}]"
    file = swept(tmp_path, body)
    runs = [run for part in "ab" for run in planned("surm.sweep", f"--config={file}", f"--workdir={tmp_path / part}")]
    names = [launchers.workload_name(run) for run in runs]
    assert len(set(names)) == len(names) == 14
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 40 for name in names), names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            None,
            "can be read; the templates are in scripts/ of a clone (pip install -e .), or name your own with --temp",
        ),
        ("# every run\n{{comand}}\n# end\n", "names {{comand}}; "),
        ("{{flags}}\n# every run\n{{flags}}\n# end\n", "names {{flags}}; "),
        ("{{array}}\n", "has 0 parts from '# every run' to '# end', expected one"),
        ("# every run\na\n# end\n# every run\nb\n# end\n", "has 2 parts from '# every run'"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(tmp_path, capsys, text, message):
    mine = tmp_path / "mine.sh"
    if text is not None:
        mine.write_text(text)
    given = ["surm.sweep", f"--config={DIGITS}", f"--workdir={tmp_path / 'runs'}", "--launcher=slurm"]
    assert message in refused(capsys, *given, f"--template={mine}")
    assert not (tmp_path / "runs").exists()


def test_without_the_scripts_a_template_of_ones_own_serves(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launchers, "SCRIPTS", tmp_path / "scripts")
    mine = tmp_path / "mine.sh"
    mine.write_text("cd {{directory}}\n# every run\nbsub -J {{workload}} {{python}} -m surm.train {{flags}}\n# end\n")
    given = ["surm.sweep", f"--config={DIGITS}", f"--workdir={tmp_path / 'runs'}", "--launcher=slurm"]
    assert "the templates are in scripts/ of a clone" in refused(capsys, *given)
    assert sweep.main([*given, f"--template={mine}"]) == 0
    head, *lines = (tmp_path / "runs" / "slurm_array.sh").read_text().splitlines()
    assert head == f"cd {shlex.quote(os.getcwd())}"
    runs = planned(*given)
    assert [shlex.split(line)[3:] for line in lines] == [run.command for run in runs]
