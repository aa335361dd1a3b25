import jax.numpy as jnp
import pytest

from surm.config import default
from surm.rundir.log import NonFiniteError, RunLog, check_finite
from surm.rundir.workdir import Workdir
from surm.training import progress


@pytest.mark.parametrize(
    ("seconds", "steps", "said"),
    [(0.1, 100, "10 s"), (0.1, 1360, "2 min"), (1.0, 5401, "1.5 h"), (2.0, 36000, "20.0 h")],
)
def test_what_is_left_is_said_in_a_unit_that_fits(seconds, steps, said):
    assert progress._expected(seconds, steps).endswith(
        f"{steps:,} more will take about {said}, not counting evaluation"
    )


def test_tokens_are_counted_where_batches_differ_in_them(tmp_path, capsys):
    counted = progress.Progress(RunLog(Workdir(tmp_path, default())), default(), 2, 12, "tokens")
    with counted:
        for step in range(3, 13):
            counted.before()
            counted.step(step, {"loss": jnp.ones(())}, 100 * step)
        counted.flush()
        assert counted._bar.total == counted._bar.n == 100 * sum(range(3, 13))
    said = capsys.readouterr()
    assert "tokens a second); 3 more will take about" in said.out + said.err and "tok/s" in said.err


@pytest.mark.parametrize("counts", ["examples", "tokens"])
def test_the_time_left_is_estimated_from_the_steps_after_those_that_compile(tmp_path, monkeypatch, counts):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "time", lambda: now[0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with progress.Progress(RunLog(Workdir(tmp_path, default())), default(), 0, 50, counts) as counted:
        counted._bar._time = lambda: now[0]
        counted._bar.mininterval = 0
        size = default().optim.batch_size
        for step in range(1, 11):
            counted.before()
            counted.step(step, {"loss": jnp.ones(())}, size)
            now[0] += 60.0 if step <= 2 else 0.5
        shown = counted._bar.format_dict
        assert shown["rate"] == pytest.approx(size / 0.5, rel=0.01)
        assert shown["n"] == size * 9 and shown["total"] == size * 50
        counted.flush()


def test_an_evaluation_that_was_written_before_a_kill_is_not_written_twice(tmp_path):
    folder = Workdir(tmp_path, default())
    for _ in range(2):
        log = RunLog(folder)
        log.take(3, "train", {"loss": 1.0})
        log.take(3, "test", {"loss": 2.0})
    assert [line["split"] for line in folder.metrics()] == ["train", "test", "train"]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_finite_number_is_named_with_its_step(wrong):
    check_finite(7, {"loss": 1.5, "gradient_norm": 0.0})
    with pytest.raises(NonFiniteError, match=rf"step 7: loss is {wrong}, no finite number \(gradient_norm 2\)"):
        check_finite(7, {"loss": wrong, "gradient_norm": 2.0})
