"""`auto` goes by what was measured of the same matrix on the same device, and by nothing else of that kind."""

import concurrent.futures
import json
import logging
import os

import jax
import pytest

from surm import InputError
from surm.matrices.algebra import platforms
from surm.peft.multiply import calibrated, paths, timing
from surm.peft.multiply.calibrated import Matrix

SHAPES = {"a": (96,), "b": (96,)}
SECONDS = {"branch": 3.0, "branch_dft": 1.0, "branch_dense": 2.0}


def point(rows=1000, seconds=SECONDS, family="circulant", n=96, dtype="float32") -> dict:
    of_matrix = {"family": family, "options": {}, "n_out": n, "n_in": n, "rows": rows, "dtype": dtype}
    shapes = {name: [n] for name in SHAPES}
    return {**of_matrix, "parameters": shapes, "floor_seconds": None, "seconds": dict(seconds)}


def calibration(*points: dict, **more) -> dict:
    head = {"platform": "cpu", "device": "abacus", "versions": calibrated.versions()}
    return {**head, "points": list(points), **more}


def chosen(rows=1000, *, fusible=False, family="circulant", n=96, dtype="float32", shapes=None, platform="cpu") -> str:
    shapes = shapes or {name: (n,) for name in SHAPES}
    return paths.quickest(family, n, n, rows, shapes, dtype, platform, fusible=fusible, device="abacus")


def test_the_same_matrix_counts_and_no_other():
    with calibrated.using(None):
        assert chosen() != "branch_dft"  # so that the others can fail
    with calibrated.using(calibration(point())):
        assert chosen() == "branch_dft"
        others = [{"family": "skew_circulant"}, {"n": 97}, {"dtype": "bfloat16"}, {"shapes": {"c": (96,)}},
                  {"shapes": {"a": (96,), "b": (95,)}}, {"platform": "tpu"}]  # fmt: skip
        for other in others:
            assert chosen(**other) != "branch_dft", other


def test_the_nearest_number_of_vectors_counts_within_a_factor_of_two():
    few = point(400, {"branch": 1.0, "branch_dense": 2.0})
    with calibrated.using(calibration(point(1000), few)):
        assert [chosen(rows) for rows in (200, 400, 600, 700, 2000)] == ["branch"] * 3 + ["branch_dft"] * 2
    for rows in (0, 499, 2001, 10**6):
        with calibrated.using(calibration(point(1000))):
            by_calibration = chosen(rows)
        with calibrated.using(None):
            assert chosen(rows) == by_calibration


def test_only_allowed_paths_count_and_at_least_two_of_them():
    quick = {"fused": 1.0, "fused_dense": 2.0}
    with calibrated.using(calibration(point(seconds={**quick, **{path: 5 + SECONDS[path] for path in SECONDS}}))):
        assert chosen(fusible=True) == "fused" and chosen() == "branch_dft"
    with calibrated.using(None):
        by_rule = chosen()
    for seconds in (quick, {**quick, "branch_dft": 0.1}, {"branch_dft": 0.1, "abacus": 0.2}):
        with calibrated.using(calibration(point(seconds=seconds))):
            assert chosen() == by_rule


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("SURM_CACHE", str(tmp_path / "cache"))
    found = calibrated.made_ready("cpu", "abacus")
    assert [*found.parent.iterdir()] == [] and found.name == "cpu_abacus.json"
    return found


def test_the_file_of_a_device_is_found_and_holds_what_was_written(file):
    assert calibrated.here("cpu", "abacus") is None
    calibrated.write(file, calibration(point(), point(400)))
    assert calibrated.here("cpu", "abacus") == calibration(point(), point(400))
    assert chosen() == "branch_dft" and chosen(platform="tpu") != "branch_dft"
    assert calibrated.now("cpu", "abacus")["points"] and calibrated.now("cpu", "another") is None
    with calibrated.using(None):
        assert chosen() != "branch_dft" and calibrated.now("cpu", "abacus") is None
    assert paths.quickest("circulant", 96, 96, 1000, SHAPES, "float32", "cpu", fusible=False) != "branch_dft"


@pytest.mark.parametrize(
    ("more", "other"),
    [
        ({"device": "another"}, "on 'another'"),
        ({"versions": {**calibrated.versions(), "jax": "0.0.1"}}, "with jax 0.0.1"),
        ({"versions": {**calibrated.versions(), "surm": "0.0.9"}}, "with surm 0.0.9"),
        ({"versions": {}}, "with surm None, jax None, jaxlib None"),
    ],
)
def test_what_was_measured_elsewhere_is_not_used_which_is_said_once(file, caplog, more, other):
    calibrated.write(file, calibration(point(), **more))
    with caplog.at_level(logging.INFO):
        assert "branch_dft" not in {chosen(), chosen()}
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"path='auto' does not use {file}, which was measured {other}; `surm calibrate`")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        json.dumps(calibration(point(), points=None)),
        json.dumps(calibration({**point(), "rows": "many"})),
        json.dumps(calibration({**point(), "rows": 0})),
        json.dumps(calibration({**point(), "rows": True})),
        json.dumps(calibration({**point(), "n_in": 0})),
        json.dumps(calibration({**point(), "parameters": {"a": 96}})),
        json.dumps(calibration({**point(), "parameters": {"a": ["96"]}})),
        *(json.dumps(calibration(point(seconds={"branch": bad}))) for bad in ("slow", float("nan"), 0.0, -1.0, True)),
        json.dumps(calibration(point(seconds={"branch": float("inf")}))),
        json.dumps(calibration({name: value for name, value in point().items() if name != "parameters"})),
    ],
)
def test_a_damaged_file_is_named_with_the_way_on(file, text):
    file.write_text(text)
    with pytest.raises(InputError) as refused:
        chosen()
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)
    assert not text.startswith('{"') or "is missing or wrong" in str(refused.value)
    assert str(refused.value).endswith("; remove the file, and `surm calibrate` measures again")


def test_a_file_is_read_again_when_it_has_changed_and_not_before(file, monkeypatch):
    read, times = calibrated.read, []
    monkeypatch.setattr(calibrated, "read", lambda file: times.append(file) or read(file))
    for count, seconds in ((1, {"branch": 2.0, "branch_dft": 1.0}), (2, {"branch": 1.0, "branch_dft": 2.0})):
        calibrated.write(file, calibration(point(seconds=seconds)))
        assert {chosen(), chosen(), chosen()} == {min(seconds, key=seconds.get)} and len(times) == count
    file.unlink()
    assert calibrated.here("cpu", "abacus") is None


def test_whole_seconds_are_numbers_too(file):
    calibrated.write(file, calibration(point(seconds={"branch": 2, "branch_dft": 1})))
    assert chosen() == "branch_dft"


def test_several_make_the_folder_ready_at_the_same_time(file):
    with concurrent.futures.ThreadPoolExecutor(8) as several:
        assert {*several.map(lambda _: calibrated.made_ready("cpu", "abacus"), range(400))} == {file}
    assert [*file.parent.iterdir()] == []


def test_a_device_without_a_name_is_refused(file):
    with pytest.raises(InputError, match="^the tpu does not say what kind of device it is"):
        calibrated.made_ready("tpu", "")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot tell")
def test_the_kind_of_a_cpu_has_the_cores_that_the_process_may_use():
    every = os.sched_getaffinity(0)
    before = platforms.kind_of()
    try:
        os.sched_setaffinity(0, {min(every)})
        assert platforms.kind_of() == f"{platforms.processor()}, 1 cores"
    finally:
        os.sched_setaffinity(0, every)
    assert before == platforms.kind_of() == f"{platforms.processor()}, {len(every)} cores"


def test_the_folder_must_be_a_local_one_that_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SURM_CACHE", "gs://bucket/cache")
    with pytest.raises(InputError, match="SURM_CACHE='gs://bucket/cache', expected a local folder"):
        calibrated.here("cpu", "abacus")
    (tmp_path / "file").touch()
    monkeypatch.setenv("SURM_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="file' cannot be written .*; let SURM_CACHE name another"):
        calibrated.made_ready("cpu", "abacus")
    monkeypatch.delenv("SURM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert str(calibrated.file_of("cpu", "A b")) == str(tmp_path / "surm" / "calibrated" / "cpu_A_b.json")


def test_the_kind_is_that_of_the_described_device():
    described = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=described)
    with jax.sharding.use_abstract_mesh(mesh):
        assert platforms.kind_of() == "TPU v5 lite"
    assert platforms.kind_of() == platforms.kind_of(jax.numpy.ones(3)) and platforms.processor() in platforms.kind_of()


def test_every_matrix_that_auto_is_asked_for_is_listed():
    with calibrated.using(None), calibrated.asked() as asked:
        chosen(7)
        chosen(8, fusible=True)
    chosen()
    one = Matrix("circulant", 96, 96, 7, (("a", (96,)), ("b", (96,))), "float32", False)
    both = one, one._replace(rows=8, fusible=True)
    assert asked == dict.fromkeys(both, "branch") and [*asked] == [*both]


def test_without_measurements_the_rule_comes_first_and_ffts_come_last():
    given = Matrix("circulant", 96, 96, 8192, (("a", (96,)), ("b", (96,))), "float32", True)
    without = given._replace(fusible=False)
    assert paths.ranked(given, "tpu") == ["fused_dense", "fused_dft", "branch_dense", "branch_dft", "fused", "branch"]
    assert paths.ranked(without, "tpu") == ["branch_dense", "branch_dft", "branch"]
    measured = paths.ranked(given, "cpu")
    assert {*measured, "fused_dft"} == {*paths.available("update", "circulant")}
    assert measured[0] == paths.quickest("circulant", 96, 96, 8192, SHAPES, "float32", "cpu", fusible=True)


def test_a_point_is_timed_path_by_path():
    contest = timing.Contest(timing.Point("low_rank", {"rank": 2}, 8, 4, 16, "float32"))
    assert contest.enter("branch") >= timing.FILLED_SECONDS and contest.medians == {}
    contest.enter(timing.FLOOR)
    for _ in range(2):
        contest.round()
    found = contest.measured()
    assert found["parameters"] == {"a": [2, 4], "b": [8, 2]} and found["options"] == {"rank": 2}
    assert found["floor_seconds"] > 0 and [*found["seconds"]] == ["branch"] and found["seconds"]["branch"] > 0
