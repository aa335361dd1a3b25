"""Every `to_dense` against numpy, scipy or a double loop."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from surm.matrices import FAMILIES, lora_xs, toeplitz, vera

from .cases import TWO_SHAPES, assert_close, dense_of


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


def c3a_oracle(params: dict[str, np.ndarray], n_out: int, n_in: int) -> np.ndarray:
    return np.block([[scipy.linalg.circulant(c).T for c in row] for row in params["c"]]) / n_in


def lorta_oracle(params: dict[str, np.ndarray], n_out: int, n_in: int) -> np.ndarray:
    mixed = params["c_layer"] * params["c_kind"]
    return np.concatenate([params["b"] @ np.diag(mixed * c) @ params["a"] for c in params["c_head"]])


def aurora_oracle(params: dict[str, np.ndarray], n_out: int, n_in: int) -> np.ndarray:
    core = sum(weight * params["core"][:, :, k] for k, weight in enumerate(params["p"]))
    return params["v"] @ core @ params["u"]


def monarch_oracle(params: dict[str, np.ndarray], n_out: int, n_in: int) -> np.ndarray:
    """P, B, P' and A as matrices."""
    (k, r, _), rows = params["a"].shape, params["b"].shape[1]
    before, behind = np.zeros((k * r, k * r)), np.zeros((n_out, n_out))
    for block in range(k):
        for t in range(r):
            before[block * r + t, t * k + block] = 1
        for row in range(rows):
            behind[row * k + block, block * rows + row] = 1
    return behind @ scipy.linalg.block_diag(*params["b"]) @ before @ scipy.linalg.block_diag(*params["a"])


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
    "c3a": c3a_oracle,
    "monarch": monarch_oracle,
    "diagonal_circulant": lambda p, n_out, n_in: (
        np.diag(p["left"]) @ block_circulant_oracle(p, n_out, n_in) @ np.diag(p["right"])
    ),
    "melora": lambda p, n_out, n_in: scipy.linalg.block_diag(*(b @ a for a, b in zip(p["a"], p["b"], strict=True))),
    "lora_xs": lambda p, n_out, n_in: p["b"] @ p["r"] @ p["a"],
    "vera": lambda p, n_out, n_in: np.diag(p["b"]) @ p["B"] @ np.diag(p["d"]) @ p["A"],
    "adalora": lambda p, n_out, n_in: p["b"] @ np.diag(p["e"]) @ p["a"],
    "dora_dynamic": lambda p, n_out, n_in: p["b"] @ np.diag(p["e"]) @ p["a"],
    "lora2": lambda p, n_out, n_in: p["b_out"] @ p["b_in"] @ np.diag(p["e"]) @ p["a_out"] @ p["a_in"],
    "lorta": lorta_oracle,
    "aurora": aurora_oracle,
}
ELSEWHERE = [name for name in FAMILIES if (pathlib.Path(__file__).parent / f"test_{name}.py").exists()]
"""Families that have a file of tests, their formula's among them."""


@pytest.mark.parametrize("case", [case for case in TWO_SHAPES if case.name not in ELSEWHERE], ids=str)
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
    + [("toeplitz", "a", 0.02), ("low_displacement_rank", "h", 0.02)]
    + [("adalora", "b", 0.02), ("dora_dynamic", "b", 0.02), ("lora2", "b_out", 0.02)]
    + [("aurora", "core", 1 / 8)],
)
def test_normal_factor(name, key, deviation):
    values = np.asarray(FAMILIES[name].init(jax.random.key(0), 2000, 5)[key])
    assert abs(values.std() / deviation - 1) < 0.1
    assert abs(values.mean() / deviation) < 0.1


def test_lora_xs_is_frozen_between_singular_vectors_of_the_weight():
    base = np.random.default_rng(0).standard_normal((6, 9)).astype(np.float32)
    found = lora_xs.fixed(jnp.asarray(base), rank=4)
    u, s, vt = np.linalg.svd(base)
    np.testing.assert_allclose(found["b"] @ found["a"], u[:, :4] * s[:4] @ vt[:4], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found["a"], axis=1), s[:4], rtol=1e-5)  # the singular values on this side
    np.testing.assert_allclose(found["b"].T @ found["b"], np.eye(4), atol=1e-5)
    opposite = lora_xs.fixed(jnp.asarray(base[:, ::-1].copy()), rank=4)
    np.testing.assert_allclose(opposite["b"], found["b"], atol=1e-5)  # the signs do not hang on the machine


def test_vera_draws_the_same_matrices_for_every_weight_of_a_shape():
    one, other = (vera.fixed(base, rank=3) for base in (jnp.zeros((5, 40)), jnp.ones((5, 40))))
    for name in ("A", "B"):
        np.testing.assert_array_equal(one[name], other[name])
    assert 0.8 * (6 / 40) ** 0.5 < np.abs(one["A"]).max() <= (6 / 40) ** 0.5
    assert vera.init(jax.random.key(0), 5, 40, rank=3)["d"].tolist() == pytest.approx([0.1] * 3)


def test_vera_draws_the_same_matrices_in_every_process():
    def drawn() -> list[float]:
        return [float(array[0, 0]) for array in vera.fixed(jnp.zeros((2, 2), jnp.float32), rank=2).values()]

    pinned = pytest.approx([1.1858109, -1.7067842])  # as files of adapters do not hold them
    assert drawn() == pinned
    with jax.enable_x64(True), jax.default_prng_impl("rbg"), jax.threefry_partitionable(False):
        assert drawn() == pinned
