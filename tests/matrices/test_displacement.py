"""Displacement operators, ranks and generators."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from surm.matrices import circulant, low_displacement_rank, skew_circulant
from surm.matrices.algebra import displacement

from .cases import assert_close, compiled

N = 16


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("f", [1.0, -1.0, 0.5])
def test_shift(n, f, rng, float64):
    dense = np.zeros((n, n))
    for row in range(1, n):
        dense[row, row - 1] = 1
    dense[0, n - 1] += f
    assert_close(displacement.shift(n, f), dense, float64)
    assert_close(np.linalg.matrix_power(dense, n), f * np.eye(n), float64)
    x = rng.standard_normal((3, n))
    assert_close(compiled(displacement.apply_shift, 1)(jnp.asarray(x), f), x @ dense.T, float64)


def test_f_circulants_are_the_polynomials_of_the_shift(rng, float64):
    v = rng.standard_normal(5)
    for family, f in ((circulant, 1.0), (skew_circulant, -1.0)):
        powers = [np.linalg.matrix_power(np.asarray(displacement.shift(5, f)), k) for k in range(5)]
        assert_close(family.to_dense({"c": jnp.asarray(v)}, 5, 5), np.tensordot(v, powers, 1), float64)


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (3, 5), (5, 3)])
def test_the_default_operators_are_the_two_shifts(shape, rng, float64):
    dense = jnp.asarray(rng.standard_normal(shape))
    left, right = displacement.shift(shape[0], 1.0), displacement.shift(shape[1], -1.0)
    expected = np.asarray(left) @ np.asarray(dense) - np.asarray(dense) @ np.asarray(right)
    assert_close(displacement.displacement(dense), expected, float64)
    assert_close(displacement.displacement(dense, left, right), expected, float64)


def symmetric_toeplitz(rng: np.random.Generator) -> np.ndarray:
    return scipy.linalg.toeplitz(rng.standard_normal(N))


def circulant_times_skew(rng: np.random.Generator) -> np.ndarray:
    c, s = jnp.asarray(rng.standard_normal((2, N)))
    left, right = (compiled(f.to_dense, 1, 2)({"c": v}, N, N) for f, v in ((circulant, c), (skew_circulant, s)))
    return np.asarray(left) @ np.asarray(right)


RANKS = {
    "circulant": (lambda rng: scipy.linalg.circulant(rng.standard_normal(N)), 1),
    "Toeplitz": (lambda rng: scipy.linalg.toeplitz(*rng.standard_normal((2, N))), 2),
    "symmetric Toeplitz": (symmetric_toeplitz, 2),
    "product of two": (lambda rng: symmetric_toeplitz(rng) @ symmetric_toeplitz(rng), 4),
    "inverse of a Toeplitz": (
        lambda rng: np.linalg.inv(scipy.linalg.toeplitz(*rng.standard_normal((2, N)))),
        2,
    ),
    "circulant times skew": (circulant_times_skew, 1),
    "sum of two such": (lambda rng: circulant_times_skew(rng) + circulant_times_skew(rng), 2),
    "zero": (lambda rng: np.zeros((N, N)), 0),
    "anything": (lambda rng: rng.standard_normal((N, N)), N),
}


@pytest.mark.parametrize("kind", RANKS)
def test_displacement_ranks(kind, rng, float64):
    make, rank = RANKS[kind]
    assert displacement.displacement_rank(jnp.asarray(make(rng))) == rank


def test_the_rank_depends_on_the_operators_and_the_tolerance(rng, float64):
    dense = jnp.asarray(scipy.linalg.circulant(rng.standard_normal(N)))
    one = displacement.shift(N, 1.0)
    assert displacement.displacement_rank(dense, one, one, tolerance=1e-8) in (0, N)  # zero up to rounding
    noisy = dense + 1e-6 * rng.standard_normal((N, N))
    assert displacement.displacement_rank(noisy) == N
    assert displacement.displacement_rank(noisy, tolerance=1e-3) == 1


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_n_terms_reproduce_any_matrix(n, rng, float64):
    dense = jnp.asarray(rng.standard_normal((n, n)))
    params = displacement.from_dense(dense, rank=n)
    assert params["g"].shape == (n, n)
    assert_close(compiled(low_displacement_rank.to_dense, 1, 2)(params, n, n), dense, float64)


@pytest.mark.parametrize("rank", [1, 2, 5, 20])
def test_r_terms_reproduce_displacement_rank_r(rank, rng, float64):
    dense = jnp.asarray(sum(circulant_times_skew(rng) for _ in range(min(rank, 5))))
    params = displacement.from_dense(dense, rank=rank)
    assert params["h"].shape == (rank, N)
    assert_close(compiled(low_displacement_rank.to_dense, 1, 2)(params, N, N), dense, float64)


def test_generators_satisfy_the_reconstruction_formula(rng, float64):
    g, h = rng.standard_normal((2, 3, N))
    params = {"g": jnp.asarray(0.5 * g), "h": jnp.asarray(h[:, ::-1])}
    dense = compiled(low_displacement_rank.to_dense, 1, 2)(params, N, N)
    assert_close(displacement.displacement(dense), g.T @ h, float64)
