"""What TensorBoard and Weights & Biases are given is what metrics.jsonl holds, stopped and continued or not."""

import json
import os
import pathlib
import struct
import subprocess
import sys

import pytest
import tensorboardX
import wandb
from tensorboardX.proto import event_pb2
from wandb.proto import wandb_internal_pb2

from surm import train
from surm.errors import InputError
from surm.rundir import writers
from tests.test_train import CONFIG, QUICK, ROOT, lines

RUN = [f"--config={CONFIG}", *QUICK, "--config.eval_every_steps=2", "--config.checkpoint_every_steps=2"]


def shown_by_tensorboard(workdir: pathlib.Path) -> dict[tuple[int, str], float]:
    """What it shows: of a continued run, nothing that came after the step at which it went on."""
    shown = {}
    for file in sorted((workdir / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime_ns):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.session_log.status == event.session_log.START:
                shown = {place: value for place, value in shown.items() if place[0] < event.step}
            shown |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
    return shown


def shown_by_wandb(run: pathlib.Path) -> dict[tuple[int, str], float]:
    """What an offline run will send: the records of its file, each behind a head of 7 bytes, in blocks of 32 KiB."""
    (file,) = run.glob("run-*.wandb")
    data, shown, at = file.read_bytes(), {}, 7
    while at + 7 < len(data):
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        assert kind == 1, "a record in parts: the run of the test is too long"
        record = wandb_internal_pb2.Record.FromString(data[at + 7 : at + 7 + size])
        values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        shown |= {(values["_step"], name): value for name, value in values.items() if not name.startswith("_")}
        at += 7 + size
    return shown


def expected(workdir: pathlib.Path) -> dict[tuple[int, str], float]:
    return {
        (line["step"], f"{line['split']}/{name}"): pytest.approx(value)
        for line in lines(workdir)
        for name, value in line["values"].items()
    }


def test_tensorboard_shows_the_metrics_of_a_stopped_and_continued_run(tmp_path):
    arguments = ["surm.train", *RUN, "--config.writers=tensorboard", f"--workdir={tmp_path / 'run'}"]
    assert train.main([*arguments, "--config.optim.steps=6"]) == 0
    assert shown_by_tensorboard(tmp_path / "run") == expected(tmp_path / "run")
    # As after a kill: the run goes on from step 4, and steps 5 and 6 come again; they held something else here.
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "checkpoints" / "6").rename(tmp_path / "6")
    held = (tmp_path / "run" / "metrics.jsonl").read_text()
    folder = tmp_path / "run" / "tensorboard"
    lost = tensorboardX.SummaryWriter(str(folder), filename_suffix=".lost")
    lost.add_scalar("train/gone", 99.0, 5)
    lost.close()
    assert train.main([*arguments, "--config.optim.steps=6"]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == held and len(list(folder.iterdir())) == 3
    assert shown_by_tensorboard(tmp_path / "run") == expected(tmp_path / "run")


def test_weights_and_biases_is_given_the_metrics_of_every_member(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    more = ["--config.writers=wandb", "--config.optim.steps=2", "--config.population=learning_rate=1e-3|2e-3"]
    assert train.main(["surm.train", *RUN, *more, f"--workdir={tmp_path / 'run'}"]) == 0
    wandb.teardown()  # finish() returns before the file of a run is whole
    members = list((tmp_path / "run" / "members").iterdir())
    assert len({(member / "wandb_id").read_text() for member in members}) == len(members) == 2
    for member in members:
        (run,) = (member / "wandb").glob("offline-run-*")
        assert shown_by_wandb(run) == expected(member) and run.name.endswith((member / "wandb_id").read_text())


def test_a_file_of_weights_and_biases_is_whole_with_its_last_byte(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(dir=tmp_path, reinit="create_new")
    for step in range(9):
        run.log({"text": "x" * 9000 * step}, step=step)  # records in parts: a block is 32 KiB
    file = pathlib.Path(run.settings.sync_file)
    run.finish()
    wandb.teardown()
    data, cut = file.read_bytes(), tmp_path / "cut"
    assert len(data) > 2 * 32768 and writers.is_whole(file)
    for size in [*range(0, len(data), 997), *range(len(data) - 200, len(data))]:
        cut.write_bytes(data[:size])
        assert not writers.is_whole(cut), size


@pytest.mark.slow
def test_who_is_not_let_in_is_told_in_a_line(tmp_path):
    more = ["--config.writers=wandb", "--config.optim.steps=2", f"--workdir={tmp_path / 'run'}"]
    online = {"WANDB_MODE": "online", "WANDB_API_KEY": "no key", "WANDB_ERROR_REPORTING": "false"}
    command = [sys.executable, "-m", "surm.train", *RUN, *more]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)} | online, capture_output=True, text=True)
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "set WANDB_MODE=offline" in said


@pytest.mark.parametrize(
    ("names", "said"),
    [("tensorbord", "names 'tensorbord'; nearest: tensorboard"), ("wandb", r"pip install 'surm\[wandb\]'")],
)
def test_writers_that_are_unknown_or_not_installed_are_refused(names, said, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    arguments = [
        "surm.train",
        *RUN,
        f"--config.writers={names}",
        "--config.optim.steps=2",
        f"--workdir={tmp_path / 'run'}",
    ]
    assert train.main(arguments) == 2 and not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=said):
        raise InputError(capsys.readouterr().err)


def test_every_writer_is_an_extra_of_its_name():
    extras = (ROOT / "setup.py").read_text()
    assert all(f'"{name}": ["{kind.needs}>=' in extras for name, kind in writers.WRITERS.items())
