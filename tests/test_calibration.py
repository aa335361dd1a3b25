"""`surm calibrate`, and runs that choose their paths by it."""

import functools
import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

import surm.__main__ as command
from surm import InputError, train
from surm.machine.stopping import Stopped
from surm.matrices.algebra.platforms import kind_of
from surm.peft.multiply import calibrated, paths
from surm.peft.multiply.calibrated import Matrix
from surm.rundir.log import RunLog
from surm.training import calibration, run
from tests import small_runs
from tests.test_train import CONFIG, QUICK

CALIBRATE = ["calibrate", f"--config={CONFIG}", *QUICK, "--config.peft.dropout=0"]
THREE_PATHS = ["--seconds=200", "--config.peft.dropout=0.1"]  # all can be measured, however slow the machine is
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SURM_CACHE", str(tmp_path / "cache"))
    return calibrated.made_ready("cpu", kind_of())


def written(file, *points: dict, **more) -> None:
    head = {"platform": "cpu", "device": kind_of(), "versions": calibrated.versions()}
    calibrated.write(file, {**head, "points": list(points), **more})


def point(matrix: Matrix, best: str) -> dict:
    """A hand-made point with one quickest path."""
    own = {name: value for name, value in matrix._asdict().items() if name != "fusible"}
    seconds = {path: 2.0 - (path == best) for path in paths.available("update", matrix.family)}
    shapes = {name: [*shape] for name, shape in matrix.parameters}
    return {**own, "options": {}, "parameters": shapes, "floor_seconds": None, "seconds": seconds}


OTHER = point(Matrix("circulant", 99, 99, 50, (("a", (99,)), ("b", (99,))), "float32", False), "branch")


def test_the_command_measures_the_matrices_of_a_run(cache, capsys):
    written(cache, OTHER)
    assert command.main([*CALIBRATE, *THREE_PATHS]) == 0
    first, head, row, end = capsys.readouterr().out.splitlines()
    assert re.match(r"measuring 1 matrix on .+ for about \d+ s$", first)
    assert head.split() == ["matrix", "vectors", "dtype", "before", "now", "milliseconds"]
    assert end == f"written to {cache}: path='auto' goes by it on this device"
    other, found = calibrated.here("cpu", kind_of())["points"]
    assert other == OTHER and found["rows"] == 16 * 5 and found["parameters"] == {"a": [16], "b": [16]}
    best = min(found["seconds"], key=found["seconds"].get)
    assert row.startswith("circulant 16×16  80 ") and row.split()[5] == best and "failed" not in found
    assert {*found["seconds"]} == {"branch", "branch_dft", "branch_dense"}
    assert all(f"{path} {1e3 * seconds:.3g}" in row for path, seconds in found["seconds"].items())


def test_a_matrix_with_fewer_than_two_paths_keeps_its_path_and_nothing_is_written(cache, capsys):
    assert command.main([*CALIBRATE, "--seconds=1e-9"]) == 0
    _, _, row, end = capsys.readouterr().out.splitlines()
    _, _, _, _, before, now, *late = row.split()
    assert (
        before == now
        and " ".join(late).startswith("not in time: ")
        and {*late[3:]} == {*paths.available("update", "circulant")}
    )
    assert end == "nothing was written: no two paths of a matrix could be measured in 1e-09 s; give more --seconds"
    assert not cache.exists()


def test_what_another_version_measured_is_measured_anew_which_is_said(cache, capsys):
    written(cache, OTHER, versions=calibrated.versions() | {"jax": "0.0.1", "jaxlib": "0.0.1"})
    assert command.main([*CALIBRATE, *THREE_PATHS]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (f"'{cache}' was measured with jax 0.0.1, jaxlib 0.0.1: it is replaced, and holds this run's "
                       "matrices alone afterwards")  # fmt: skip
    assert len(said) == 5 and OTHER not in calibrated.here("cpu", kind_of())["points"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seconds=0"], "--seconds=0, expected a finite number above 0"),
        (["--seconds=soon"], "--seconds=soon, expected a finite number above 0"),
        (["--seconds=inf"], "--seconds=inf, expected a finite number above 0"),
        (["--seconds="], "--seconds=, expected a finite number above 0"),
        (["--workdir=x"], "no flag is called --workdir"),
        (["--config.peft.method=head"], "config.peft.method='head' trains no structured matrix, so there is nothing"),
        slow(["--config.peft.method=full"], "config.peft.method='full' trains no structured matrix"),
        (["--config.peft.path=branch"], "config.peft.path='branch' names the path, so there is nothing to calibrate"),
    ],
)
def test_a_line_says_what_cannot_be_calibrated(cache, capsys, more, said):
    assert command.main([*CALIBRATE, *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}") and not cache.exists()


def test_the_config_is_needed(capsys):
    assert command.main(["calibrate", "--seconds=1"]) == 2
    assert capsys.readouterr().err == "error: --config is missing: surm calibrate --config=FILE\n"


def test_a_damaged_file_and_a_folder_that_cannot_be_written_are_said_before_anything_is_measured(
    cache, capsys, monkeypatch
):
    cache.write_text('{"points": ')
    for given in (CALIBRATE, ["train", *CALIBRATE[1:], "--config.optim.steps=1", f"--workdir={cache.parent / 'run'}"]):
        assert command.main(given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: '{cache}' cannot be read as JSON") and line.endswith("measures again")
    assert cache.read_text() == '{"points": '
    monkeypatch.setenv("SURM_CACHE", str(cache))  # a file
    assert command.main(CALIBRATE) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the cache folder '{cache}' cannot be written (")


SMALL = Matrix("circulant", 16, 16, 8, (("a", (16,)), ("b", (16,))), "float32", False)


def test_what_the_device_cannot_hold_is_said_and_the_rest_is_measured(cache):
    large = SMALL._replace(rows=2**50)
    options = {calibration._form_of(point(one, "branch")): {} for one in (SMALL, large)}
    found = calibration.measured([large, SMALL], options, "cpu", 200)
    assert {*found[SMALL]["seconds"]} == {*paths.allowed("circulant", fusible=False)} and "failed" not in found[SMALL]
    assert found[large]["seconds"] == {} and {*found[large]["failed"]} == {*found[SMALL]["seconds"], "without update"}
    row = calibration._row(large, "branch", "branch", found[large], [*found[SMALL]["seconds"]])[-1]
    assert " and without update failed (" in row and "ut of memory allocating" in row and "not in time" not in row
    written(cache, *found.values())
    assert calibrated.here("cpu", kind_of())["points"] == [found[large], found[SMALL]]


def test_a_path_that_fails_in_a_later_round_keeps_what_was_measured_before():
    failed = {}

    def refused():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out\nof memory")

    assert calibration._tried(lambda: 2.0, "branch", failed) == 2.0 and failed == {}
    assert calibration._tried(refused, "a round", failed) is None
    assert failed == {"a round": "RESOURCE_EXHAUSTED: out of memory"}
    with pytest.raises(ValueError, match="a fault"):
        calibration._tried(lambda: exec("raise ValueError('a fault')"), "branch", failed)


def test_of_two_measurements_of_a_matrix_the_newer_counts_unless_it_has_fewer_paths():
    whole, newer = point(SMALL, "branch"), point(SMALL, "branch_dft")
    assert calibrated.together([OTHER, whole], [newer]) == [OTHER, newer]
    fewer = {**newer, "seconds": {path: newer["seconds"][path] for path in ("branch", "branch_dft")}}
    assert calibrated.together([whole, OTHER], [fewer]) == [whole, OTHER]
    assert calibrated.together([OTHER], [fewer]) == [OTHER, fewer]
    refused = {**fewer, "failed": dict.fromkeys(whole["seconds"].keys() - fewer["seconds"].keys(), "no memory")}
    assert calibrated.together([whole, OTHER], [refused]) == [OTHER, refused]


def test_what_another_process_writes_meanwhile_stays(cache, monkeypatch):
    prepared, every, mesh = run._outlined(run.configs.checked(small_runs.config(small_runs.images(cache.parent))))
    measured = calibration.measured
    monkeypatch.setattr(calibration, "measured", lambda *given: written(cache, OTHER) or measured(*given))
    form, options = next(iter(calibration._forms(prepared.model).items()))
    matrix = Matrix(*form[:3], 8, form[3], "float32", False)
    said = calibration.made([matrix], prepared.model, 200)
    assert said.splitlines()[-1].startswith("written to") and len(said.splitlines()) == 3
    other, own = calibrated.here("cpu", kind_of())["points"]
    assert other == OTHER and own["n_out"] == matrix.n_out and own["options"] == dict(options)


def test_while_matrices_are_listed_or_ranked_nothing_is_said_of_what_is_not_measured(caplog):
    odd = SMALL._replace(dtype="odd")
    candidates = calibration._candidates(odd, "gpu")
    assert calibration.choices([odd], "gpu", "abacus", None) == candidates[:1] and not caplog.records
    paths.ranked(odd._replace(fusible=False), "gpu")
    assert "circulant in odd on a gpu has not been measured" in caplog.text  # so that the first line can fail


@pytest.mark.parametrize("fusible", [True, False])
def test_on_a_tpu_no_path_with_ffts_is_measured(fusible):
    candidates = {
        platform: {*calibration._candidates(SMALL._replace(fusible=fusible), platform)} for platform in ("tpu", "gpu")
    }
    assert candidates["gpu"] == {*paths.allowed("circulant", fusible=fusible)}
    assert candidates["gpu"] - candidates["tpu"] == ({"branch", "fused"} if fusible else {"branch"})


@pytest.mark.slow
def test_an_interrupt_leaves_nothing(tmp_path):
    program = """if True:
        import os, signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from surm.peft.multiply import timing
        from surm.__main__ import main
        enter = timing.Contest.enter
        def interrupted(self, path):
            if len(self._runs) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return enter(self, path)
        timing.Contest.enter = interrupted
        main(sys.argv[1:])
    """
    environment = os.environ | {"SURM_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program, *CALIBRATE], capture_output=True, text=True, env=environment)
    assert done.returncode == 128 + signal.SIGINT and done.stderr == (
        "stopped by SIGINT at once; the file of measurements is as it was before, or complete\n"
    )
    assert [*(tmp_path / "cache").rglob("*.*")] == []


class Runs:
    """Runs of six steps, whose matrices were measured so that `auto` takes an unusual path."""

    def __init__(self, folder, cache, monkeypatch):
        self.folder, self.cache, self.monkeypatch = folder, cache, monkeypatch
        self.config = small_runs.config(small_runs.images(folder), checkpoint_every_steps=2)
        prepared, every, mesh = run._outlined(run.configs.checked(self.config))
        with jax.set_mesh(mesh), calibrated.using(None), calibrated.asked() as asked:
            program, state, frozen = run._described(prepared, every, mesh)
            program.trace(state, frozen, next(program.batches))
        (self.matrix,) = calibration._distinct(asked)

    def calibrate(self) -> None:
        written(self.cache, point(self.matrix, "branch_dft"), OTHER)

    def forget(self) -> None:
        self.cache.unlink()

    def trained(self, name: str) -> dict[str, np.ndarray]:
        train.run(self.config, str(self.folder / name))
        return safetensors.numpy.load_file(self.folder / name / "adapter" / "adapter_model.safetensors")

    def stopped(self, name: str, step: int = 3) -> None:
        take = RunLog.take

        def stopping(log, at, *given, **more):
            if at == step:
                signal.raise_signal(signal.SIGTERM)
            return take(log, at, *given, **more)

        with self.monkeypatch.context() as patched, pytest.raises(Stopped):
            patched.setattr(RunLog, "take", stopping)
            train.run(self.config, str(self.folder / name))

    def record(self, name: str, file: str = "calibration.json") -> dict | None:
        file = self.folder / name / file
        return json.loads(file.read_text()) if file.is_file() else None


@pytest.fixture
def runs(tmp_path, cache, monkeypatch):
    return Runs(tmp_path, cache, monkeypatch)


def test_a_target_goes_by_no_calibration_and_a_dry_run_does(tmp_path, cache, monkeypatch):
    written(cache, OTHER)
    config = small_runs.config(small_runs.images(tmp_path))

    def told(*_):
        raise InputError(f"goes by {calibrated.now('cpu', kind_of())}")

    monkeypatch.setattr(run.targets, "devices_of", lambda target: jax.devices())
    monkeypatch.setattr(run.pods, "step_of", told)
    monkeypatch.setattr(run.estimate, "of_step", told)
    with pytest.raises(InputError, match="^goes by None$"):
        run.on_target(config, run.targets.parse("gpu:h100:1"))
    with pytest.raises(InputError, match="'n_out': 99"):
        run.dry_run(config)


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one.keys() | other.keys())


def test_a_continued_run_keeps_the_measurements_that_it_began_with(runs):
    by_rule = runs.trained("by_rule")
    assert runs.record("by_rule") is None and "calibrated" not in runs.record("by_rule", "result.json")
    runs.calibrate()
    calibrated_run = runs.trained("calibrated")
    assert not equal(calibrated_run, by_rule)  # another path rounds otherwise, so that the rest can fail
    runs.stopped("stopped")
    assert runs.record("stopped")["points"] == [point(runs.matrix, "branch_dft")]
    runs.forget()
    assert equal(runs.trained("stopped"), calibrated_run)
    for name in ("calibrated", "stopped"):
        told = runs.record(name, "result.json")["calibrated"]
        assert told == {"device": kind_of(), "versions": calibrated.versions()}


@pytest.mark.parametrize("more", [{"peft_path": "branch"}, {"peft_method": "head"}, {"model_dtype": "bfloat16"}])
def test_a_run_that_asks_for_none_of_them_neither_records_nor_uses_measurements(runs, more, capsys):
    runs.calibrate()
    if "model_dtype" not in more:
        runs.cache.write_text("{")  # nor reads them
    keys = {name.replace("_", ".", 1): value for name, value in more.items()}
    runs.config.update_from_flattened_dict({"optim.steps": 1, **keys})
    assert "calibrated" not in train.run(runs.config, str(runs.folder / "run"))
    assert runs.record("run") is None and "surm calibrate has measured" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_began_without_measurements_goes_on_without(runs):
    by_rule = runs.trained("by_rule")
    runs.stopped("stopped")
    runs.calibrate()
    assert equal(runs.trained("stopped"), by_rule) and runs.record("stopped") is None


@pytest.mark.slow
def test_a_run_without_a_checkpoint_begins_anew_and_a_damaged_record_is_refused(runs, capsys):
    runs.calibrate()
    runs.stopped("stopped", step=1)
    for checkpoint in (runs.folder / "stopped" / "checkpoints").iterdir():
        subprocess.run(["rm", "-r", str(checkpoint)], check=True)
    runs.forget()
    runs.stopped("stopped", step=1)
    assert runs.record("stopped") is None
    (runs.folder / "stopped" / "calibration.json").write_text("{}")
    with pytest.raises(InputError, match="calibration.json' is damaged .*; remove the workdir or name another"):
        runs.trained("stopped")
