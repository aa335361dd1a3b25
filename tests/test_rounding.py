"""Rounding to bfloat16 with a dither: neighbours, no error on average, nothing for what bfloat16 has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surm.ops.rounding import dithered

DRAWN = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    """The distance from one bfloat16 to the next at x."""
    return 2.0 ** (np.floor(np.log2(np.abs(x))) - 7)


def test_what_bfloat16_has_stays_as_it_is():
    kept = np.asarray(jnp.asarray(DRAWN, jnp.bfloat16), np.float32)
    kept[0, :6] = [0.0, -0.0, np.inf, -np.inf, 1e-40, 3e38]
    kept = np.asarray(jnp.asarray(kept, jnp.bfloat16), np.float32)
    found = np.asarray(dithered(jnp.asarray(kept)), np.float32)
    np.testing.assert_array_equal(found, kept)
    not_numbers = np.array([[0x7FC00000, 0x7FFFFFFF], [0xFFFFFFFF, 0x7F800001]], np.uint32).view(np.float32)
    assert np.isnan(np.asarray(jax.jit(dithered)(not_numbers), np.float32)).all()


def test_its_derivative_is_that_of_the_identity():
    x, direction = jnp.asarray(DRAWN), jnp.asarray(DRAWN[::-1].copy())
    _, tangent = jax.jvp(dithered, (x,), (direction,))
    np.testing.assert_array_equal(tangent, direction.astype(jnp.bfloat16))


def test_an_entry_becomes_one_of_its_neighbours_without_an_error_on_average():
    found = np.asarray(dithered(jnp.asarray(DRAWN)), np.float32)
    errors = (found - DRAWN) / unit(DRAWN)
    assert np.abs(errors).max() < 1 and 0.3 < errors.std() < 0.5
    assert abs(errors.mean()) < 4 * errors.std() / 256
    assert abs((errors * np.sign(DRAWN)).mean()) < 4 * errors.std() / 256  # nor towards 0


@pytest.mark.parametrize("share", [0.01, 0.1, 0.4, 0.9])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_change_of_less_than_a_unit_moves_its_share_of_the_entries(share, sign):
    kernel = np.asarray(jnp.asarray(0.5 + 0.4 * np.abs(np.sin(DRAWN)), jnp.bfloat16), np.float32)
    inside = np.log2(kernel) % 1 > 0.05  # a power of two has another unit below it
    moved = np.asarray(dithered(jnp.asarray(kernel + sign * share * unit(kernel))), np.float32) - kernel
    assert {*np.unique(moved[inside] / unit(kernel)[inside])} <= {0.0, float(sign)}
    assert (moved[inside] != 0).mean() == pytest.approx(share, abs=4 * 0.5 / 256)
    if share < 0.5:
        nearest = jnp.asarray(kernel + sign * share * unit(kernel), jnp.bfloat16)
        np.testing.assert_array_equal(np.asarray(nearest, np.float32)[inside], kernel[inside])  # all of it is lost


def test_the_dither_is_white_and_the_same_for_every_matrix_of_a_stack():
    half = jnp.full((2, 256, 256), 1 + 2**-8)  # halfway between two neighbours
    found = np.asarray(dithered(half), np.float32)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], np.asarray(jax.jit(dithered)(half[0]), np.float32))
    up = np.where(found[0] > 1, 1.0, -1.0)
    assert np.linalg.norm(up, 2) < 2.2 * 256**0.5  # 2 √n for independent signs
    assert np.abs(up.mean(0)).max() < 5 / 16 and np.abs(up.mean(1)).max() < 5 / 16
