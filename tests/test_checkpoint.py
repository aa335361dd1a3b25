import io
import pathlib
import resource
import signal
import tarfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surm import InputError
from surm.machine import mesh as meshes
from surm.machine.stopping import Stopped
from surm.rundir import checkpoint_files
from surm.rundir.checkpoint import Checkpoints


@pytest.fixture
def state():
    return {
        "arrays": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "step": np.array(4, np.int32),
        "key": np.asarray(jax.random.key_data(jax.random.key(1))),
    }


def test_state_and_notes_come_back(tmp_path, state):
    notes = {"data": {"next_index": 17}, "seconds": 1.5}
    with Checkpoints(tmp_path / "c", 2) as saved:
        assert saved.latest_step is None and saved.newest(state) is None
        saved.save(4, state, notes)
    with Checkpoints(tmp_path / "c", 2) as saved:
        assert saved.latest_step == 4
        step, restored, found = saved.newest(jax.tree.map(jnp.zeros_like, state))
    assert step == 4 and found == notes
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_the_newest_are_kept_and_a_step_is_written_once(tmp_path, state):
    with Checkpoints(tmp_path, 2) as saved:
        for step in (1, 2, 3):
            saved.save(step, state, {"n": step})
        saved.save(3, state, {"n": "again"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    with Checkpoints(tmp_path, 2) as saved:
        assert saved.newest(state)[2] == {"n": 3}


def test_buffers_reused_while_a_checkpoint_is_written_do_not_change_it(tmp_path):
    reuse = jax.jit(lambda x: x + 1, donate_argnums=0)
    mesh = jax.make_mesh((1, 1), meshes.AXES)
    big = meshes.put_everywhere(mesh, {"x": jnp.zeros(4_000_000)})
    with Checkpoints(tmp_path, 1) as saved:
        saved.save(1, meshes.take(mesh, big), {"n": 0})
        for _ in range(20):
            big["x"] = reuse(big["x"])
        big["x"].block_until_ready()
    with Checkpoints(tmp_path, 1) as saved:
        np.testing.assert_array_equal(saved.newest(big)[1]["x"], 0.0)


def test_what_an_interrupted_write_left_is_passed_over_and_removed_by_the_next(tmp_path, state):
    with Checkpoints(tmp_path, 2) as saved:
        saved.save(1, state, {"n": 0})
    left = tmp_path / "9.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "half").write_bytes(b"x" * 1000)
    with Checkpoints(tmp_path, 2) as saved:
        assert saved.latest_step == 1
        saved.save(2, state, {"n": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("damage", ["emptied", "cut", "another structure"])
def test_a_checkpoint_that_cannot_be_read_is_one_line_with_a_remedy(tmp_path, state, damage):
    with Checkpoints(tmp_path, 2) as saved:
        saved.save(7, state, {"n": 0})
    if damage == "another structure":
        state = {**state, "step": jnp.zeros((3, 3))}
    else:
        do_damage(tmp_path / "7" / "state", damage)
    message = r"checkpoint '.*7' cannot be read \(.*\), nor any before it; remove '"
    with Checkpoints(tmp_path, 2) as saved, pytest.raises(InputError, match=message) as caught:
        saved.newest(state)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "7").is_dir()


def do_damage(folder: pathlib.Path, how: str):
    for file in folder.rglob("*"):
        if file.is_file() and how == "emptied":
            file.unlink()
        elif file.is_file():
            file.write_bytes(file.read_bytes()[: 5 if how == "cut" else file.stat().st_size // 2])


@pytest.mark.parametrize("part", ["state", "notes"])
@pytest.mark.parametrize("damage", ["emptied", "cut", "halved"])
def test_a_damaged_newest_is_set_aside_and_the_one_before_serves(tmp_path, state, damage, part, capsys):
    with Checkpoints(tmp_path, 3) as saved:
        for step in (1, 2, 3):
            saved.save(step, {**state, "step": jnp.int32(step)}, {"n": step})
    do_damage(tmp_path / "3" / part, damage)
    with Checkpoints(tmp_path, 3) as saved:
        step, found, notes = saved.newest(state)
        assert (step, int(found["step"]), notes) == (2, 2, {"n": 2})
        said = capsys.readouterr().err
        assert said.startswith("warning: the checkpoint of step 3 cannot be read (") and "damaged_3 now" in said
        saved.save(3, {**state, "step": jnp.int32(33)}, {"n": 33})
    with Checkpoints(tmp_path, 3) as saved:
        assert saved.newest(state)[2] == {"n": 33}
    assert capsys.readouterr().err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3", "damaged_3"]


def test_the_best_are_kept_beside_the_newest(tmp_path, state):
    for some in ([0.1, 0.9, None], [0.3, 0.8], [0.2, None]):  # stopped and resumed between
        with Checkpoints(tmp_path, 1, keep_best=2) as saved:
            for step, metric in enumerate(some, start=(saved.latest_step or 0) + 1):
                saved.save(step, state, {"n": step}, metric=metric)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", "7"]


@pytest.fixture
def full_disk():
    """Makes every write beyond 20 kB fail until it is called again, or the test ends."""
    before, limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda full: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000 if full else limit[0], limit[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, before)


def test_a_write_that_fails_is_said_and_the_next_one_succeeds(tmp_path, state, capfd, full_disk):
    state["arrays"]["a"] = jax.random.normal(jax.random.key(0), (100_000,))
    with Checkpoints(tmp_path, 3) as saved:
        saved.save(1, state, {"n": 1})
        wait(saved)
        full_disk(True)
        saved.save(2, state, {"n": 2})
        wait(saved)
        full_disk(False)
        saved.save(3, state, {"n": 3})
    said = capfd.readouterr().err
    assert "warning: a checkpoint in" in said and "the run continues with the earlier checkpoints" in said
    with Checkpoints(tmp_path, 3) as saved:
        assert saved.newest(state)[0] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def wait(saved: Checkpoints):
    while saved._manager.is_saving_in_progress():
        time.sleep(0.05)


@pytest.mark.parametrize("end", [Stopped(signal.SIGTERM, 4), KeyboardInterrupt()], ids=["stopped", "another end"])
def test_a_run_that_was_asked_to_stop_and_cannot_save_does_not_say_it_had(tmp_path, state, end, capfd, full_disk):
    state["arrays"]["a"] = jax.random.normal(jax.random.key(0), (100_000,))
    with pytest.raises((OSError, KeyboardInterrupt)) as raised, Checkpoints(tmp_path, 2) as saved:
        full_disk(True)
        saved.save(4, state, {})
        raise end
    stopped = isinstance(end, Stopped)
    assert raised.type is (OSError if stopped else KeyboardInterrupt)
    assert f"a checkpoint in {tmp_path} failed: " in (str(raised.value) if stopped else capfd.readouterr().err)


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> tarfile.TarFile:
    """An archive with these members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    file.seek(0)
    return tarfile.open(fileobj=file)


def test_an_archive_is_unpacked_below_its_folder_alone(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "inner" / "empty").mkdir(parents=True)
    (source / "inner" / "file").write_bytes(bytes(range(256)) * 300)
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        archive.add(source, arcname="")
    target.mkdir()
    with tarfile.open(tmp_path / "one.tar") as archive:
        checkpoint_files._unpack(archive, target)
    assert (target / "inner" / "file").read_bytes() == (source / "inner" / "file").read_bytes()
    assert {each.relative_to(target) for each in target.rglob("*")} == {
        each.relative_to(source) for each in source.rglob("*")
    }
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "inner"
    for member in (tarfile.TarInfo("../beside"), tarfile.TarInfo(str(tmp_path / "beside")), link):
        with pytest.raises(tarfile.TarError, match="is no file or folder below the archive's own"):
            checkpoint_files._unpack(packed((member, b"")), target)
        assert not (tmp_path / "beside").exists() and not (target / "link").is_symlink()
