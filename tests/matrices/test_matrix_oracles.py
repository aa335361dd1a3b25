"""Every `to_dense` against numpy, scipy or a double loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from surm.matrices import FAMILIES, toeplitz

from .cases import assert_close, dense_of, two_shapes


def f_circulant(v: np.ndarray, f: int) -> np.ndarray:
    """First column v; what passes the last row comes back on top, multiplied by f."""
    n = len(v)
    dense = np.zeros((n, n))
    for column in range(n):
        for k in range(n):
            row = column + k
            dense[row % n, column] = v[k] if row < n else f * v[k]
    return dense


def vector(params: dict[str, np.ndarray]) -> np.ndarray:
    return params["c"] if "c" in params else params["a"] * params["b"]


def toeplitz_oracle(params: dict[str, np.ndarray], n_out: int, n_in: int) -> np.ndarray:
    if "b_diagonals" in params:
        corner = n_in - 1  # the place of the main diagonal in the list
        diagonals = params["b_diagonals"]
        return scipy.linalg.toeplitz(diagonals[corner:], diagonals[corner::-1])
    left = scipy.linalg.toeplitz(params["b"])
    return left @ scipy.linalg.toeplitz(params["a"]) if "a" in params else left


def block_circulant_oracle(params: dict[str, np.ndarray], n_out: int, n_in: int) -> np.ndarray:
    return np.block([[scipy.linalg.circulant(c) for c in row] for row in params["c"]])


ORACLES = {
    "circulant": lambda p, n_out, n_in: scipy.linalg.circulant(vector(p)),
    "skew_circulant": lambda p, n_out, n_in: f_circulant(vector(p), -1),
    "toeplitz": toeplitz_oracle,
    "kronecker": lambda p, n_out, n_in: sum(np.kron(b, a) for a, b in zip(p["a"], p["b"], strict=True)),
    "low_displacement_rank": lambda p, n_out, n_in: sum(
        f_circulant(g, 1) @ f_circulant(h, -1) for g, h in zip(p["g"], p["h"], strict=True)
    ),
    "low_rank": lambda p, n_out, n_in: p["b"] @ p["a"],
    "block_circulant": block_circulant_oracle,
}


@two_shapes
def test_dense_form(case, float64):
    params = case.member(float64)
    dense = dense_of(case, params)
    oracle = ORACLES[case.name](jax.tree.map(np.asarray, params), case.n_out, case.n_in)
    assert_close(dense, oracle[: case.n_out, : case.n_in], float64)


def test_the_diagonals_run_from_the_top_right_to_the_bottom_left():
    dense = toeplitz.to_dense({"b_diagonals": jnp.arange(4.0)}, 3, 2)
    assert dense.tolist() == [[1, 0], [2, 1], [3, 2]]


@pytest.mark.parametrize("name, bound", [("low_rank", 100**-0.5), ("kronecker", 10**-0.5)])
def test_kaiming_uniform_factor(name, bound):
    a = np.asarray(FAMILIES[name].init(jax.random.key(0), 100, 100, rank=10)["a"])
    assert 0.98 * bound < np.abs(a).max() <= bound
    assert abs(a.mean()) < 0.1 * bound


@pytest.mark.parametrize(
    "name, key, deviation",
    [("circulant", "a", 1.0), ("skew_circulant", "a", 1.0)]
    + [("toeplitz", "a", 0.02), ("low_displacement_rank", "h", 0.02)],
)
def test_normal_factor(name, key, deviation):
    values = np.asarray(FAMILIES[name].init(jax.random.key(0), 2000, 5)[key])
    assert abs(values.std() / deviation - 1) < 0.1
    assert abs(values.mean() / deviation) < 0.1
