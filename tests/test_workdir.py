import json
import os

import pytest

from surm import InputError, report
from surm.config import default
from surm.rundir.workdir import Workdir


def line(step, split="train", loss=1.0):
    return {"step": step, "split": split, "values": {"loss": loss, "accuracy": 0.5}}


@pytest.fixture
def workdir(tmp_path):
    folder = Workdir(tmp_path / "run", default())
    with folder.claimed():
        pass
    for step in (1, 2, 3):
        folder.log(step, "train", {"loss": 1.0, "accuracy": 0.5})
    return folder


def test_nothing_is_written_before_it_is_claimed(tmp_path):
    Workdir(tmp_path / "run", default())
    assert not (tmp_path / "run").exists()


def test_metrics_come_back_and_rewind_drops_the_later_ones(workdir):
    assert workdir.metrics() == [line(1), line(2), line(3)]
    workdir.rewind(2)
    assert workdir.metrics() == [line(1), line(2)]


@pytest.mark.parametrize("cut", range(1, 20, 3))
def test_a_line_cut_off_by_a_crash_is_left_out(workdir, cut):
    file = workdir.path / "metrics.jsonl"
    file.write_text(file.read_text()[:-cut])
    assert workdir.metrics() == [line(1), line(2)] + ([line(3)] if cut == 1 else [])


def test_the_same_config_reopens_and_another_is_refused(workdir):
    Workdir(workdir.path, default())
    other = default()
    other.optim.batch_size = 7
    with pytest.raises(InputError, match="optim.batch_size: 64 against 7"):
        Workdir(workdir.path, other)


def test_no_partial_file_stays(workdir):
    workdir.write_json("result.json", {"a": 1})
    assert json.loads((workdir.path / "result.json").read_text()) == {"a": 1} == workdir.result()
    assert not list(workdir.path.glob("*.partial"))


def test_curves_are_drawn_for_every_split(tmp_path):
    report.draw_curves([line(1), line(2), line(2, "test")], tmp_path / "curves.png", "title")
    data = (tmp_path / "curves.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 5_000


def test_two_runs_do_not_share_a_folder(tmp_path):
    first, second = (Workdir(tmp_path / "run", default()) for _ in range(2))
    message = f"another run, process {os.getpid()}, is in it"
    with first.claimed(), pytest.raises(InputError, match=message), second.claimed():
        pass
    with second.claimed():
        pass


def test_a_busy_folder_is_refused_before_anything_is_read(tmp_path):
    message, first = f"another run, process {os.getpid()}, is in it", Workdir(tmp_path / "run", default())
    second = Workdir(tmp_path / "run", default())
    with first.claimed():
        with pytest.raises(InputError, match=message):
            second.refuse_if_busy()
        assert Workdir(tmp_path / "run", default()).result() is None  # a sweep may look
    second.refuse_if_busy()
    with Workdir(tmp_path / "run", default()).claimed():  # looking did not hold it
        pass


def test_a_folder_with_somebody_elses_result_is_refused(tmp_path):
    (tmp_path / "log.txt").touch()  # a scheduler's, say
    Workdir(tmp_path, default())
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(
        InputError, match="holds a result.json but no config.json, so it is no run of surm; name another"
    ):
        Workdir(tmp_path, default())


def test_a_run_that_came_and_went_in_between_is_noticed(tmp_path):
    other = default()
    other.optim.batch_size = 7
    waiting = Workdir(tmp_path / "run", default())
    with Workdir(tmp_path / "run", other).claimed():
        pass
    with pytest.raises(InputError, match=r"another config.*batch_size: 7 against 64"), waiting.claimed():
        pass
