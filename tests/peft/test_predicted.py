"""The times of a matrix that was not measured follow from those of others by a power law."""

import itertools

import numpy as np
import pytest

from surm.peft.multiply import predicted

SIZES = ((64, 64), (128, 128), (256, 64), (64, 256))
LAWS = {"branch": (1e-6, 0.7, 0.1, 0.9), "fused": (1e-7, 1.0, -0.2, 0.8)}


def time_of(law, n_out, n_in, rows) -> float:
    constant, size, aspect, vectors = law
    return constant * (n_out * n_in) ** size * max(n_out / n_in, n_in / n_out) ** aspect * rows**vectors


def point(n_out, n_in, rows, seconds=None, **parameters) -> dict:
    seconds = seconds or {path: time_of(law, n_out, n_in, rows) for path, law in LAWS.items()}
    return {"n_out": n_out, "n_in": n_in, "rows": rows, "parameters": parameters or {"c": [n_in]}, "seconds": seconds}


POINTS = [point(*sizes, rows) for sizes, rows in itertools.product(SIZES, (100, 1000))]


@pytest.mark.parametrize(("n_out", "n_in", "rows"), [(96, 200, 512), (200, 96, 50), (1024, 1024, 10**5)])
def test_times_that_follow_the_law_are_found(n_out, n_in, rows):
    found = predicted.seconds(POINTS, n_out, n_in, rows, {"c": (n_in,)})
    for path, law in LAWS.items():
        np.testing.assert_allclose(found[path], time_of(law, n_out, n_in, rows), rtol=1e-6)


def test_of_a_shape_that_was_measured_its_own_times_count():
    odd = point(64, 64, 100, {"branch": 7.0, "fused": 8.0})
    assert predicted.seconds([*POINTS[1:], odd], 64, 64, 50, {"c": (64,)}) == {"branch": 7.0, "fused": 8.0}
    assert predicted.seconds([*POINTS[1:], odd], 64, 65, 50, {"c": (65,)})["branch"] != 7.0


@pytest.mark.parametrize("few", [POINTS[:2], POINTS[:4], POINTS[::2]], ids=["one shape", "two shapes", "one batch"])
def test_too_few_measurements_leave_the_nearest_shape(few):
    nearest = [one for one in few if (one["n_out"], one["n_in"]) == (64, 64)]
    assert predicted.seconds(few, 70, 60, 100, {"c": (60,)}) == nearest[0]["seconds"]


def test_of_every_shape_the_nearest_parameters_count():
    def both(n_out, n_in, rows):
        slow = {path: 9 * seconds for path, seconds in point(n_out, n_in, rows)["seconds"].items()}
        return point(n_out, n_in, rows, a=[4, n_in]), point(n_out, n_in, rows, slow, a=[64, n_in])

    points = [one for sizes, rows in itertools.product(SIZES, (100, 1000)) for one in both(*sizes, rows)]
    for rank, times in ((4, 1), (5, 1), (40, 9)):
        found = predicted.seconds(points, 96, 200, 512, {"a": (rank, 200)})
        np.testing.assert_allclose(found["branch"], times * time_of(LAWS["branch"], 96, 200, 512), rtol=1e-6)
    odd = [point(*sizes, 100, {"branch": 5.0, "fused": 6.0}, b=[4]) for sizes in SIZES]
    found = predicted.seconds([*odd, *points], 96, 200, 512, {"a": (4, 200)})
    np.testing.assert_allclose(found["branch"], time_of(LAWS["branch"], 96, 200, 512), rtol=1e-6)
