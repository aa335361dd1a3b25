import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surm import InputError
from surm.checkpoint import Checkpoints


@pytest.fixture
def state():
    return {
        "arrays": {"a": jnp.arange(6.0).reshape(2, 3)},
        "step": jnp.int32(4),
        "key": jax.random.key_data(jax.random.key(1)),
    }


def test_state_and_notes_come_back(tmp_path, state):
    notes = {"data": {"next_index": 17}, "seconds": 1.5}
    with Checkpoints(tmp_path / "c", 2) as saved:
        assert saved.latest_step is None
        saved.save(4, state, notes)
    with Checkpoints(tmp_path / "c", 2) as saved:
        assert saved.latest_step == 4
        restored, found = saved.restore(jax.tree.map(jnp.zeros_like, state)), saved.notes()
    assert found == notes
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
        assert saved.notes() == {"n": 3}


def test_buffers_reused_while_a_checkpoint_is_written_do_not_change_it(tmp_path):
    reuse = jax.jit(lambda x: x + 1, donate_argnums=0)
    big = {"x": jnp.zeros(4_000_000)}
    with Checkpoints(tmp_path, 1) as saved:
        saved.save(1, big, {"n": 0})
        for _ in range(20):
            big["x"] = reuse(big["x"])
        big["x"].block_until_ready()
    with Checkpoints(tmp_path, 1) as saved:
        np.testing.assert_array_equal(saved.restore(big)["x"], 0.0)


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
    for file in (tmp_path / "7" / "state").rglob("*") if damage != "another structure" else ():
        if file.is_file() and damage == "emptied":
            file.unlink()
        elif file.is_file():
            file.write_bytes(file.read_bytes()[:5])
    message = r"checkpoint '.*7' cannot be read \(.*\); remove it to go on"
    with Checkpoints(tmp_path, 2) as saved, pytest.raises(InputError, match=message) as caught:
        saved.restore(state)
    assert "\n" not in str(caught.value)
