"""Projections: nearest where a closed form exists, never worse than their starts where none does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surm.matrices import FAMILIES, circulant, kronecker, low_displacement_rank, low_rank, skew_circulant, toeplitz
from surm.matrices.algebra import alternating

from .cases import WIDE_CASE, assert_close, compiled, dense_of, one_shape, projected

NO_CLOSED_FORM = ("low_displacement_rank", "lorta", "vera", "diagonal_circulant")


def error(family, params, dense) -> float:
    return float(np.linalg.norm(compiled(family.to_dense, 1, 2)(params, *dense.shape) - np.asarray(dense)))


def trained_shapes(case) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in jax.eval_shape(lambda: case.init("float32")).items()}


@one_shape
def test_no_perturbation_comes_nearer(case, float64):
    dense = case.random(case.n_out, case.n_in, dtype=float64, salt=5)
    found = jax.tree.map(np.asarray, case.project(dense))

    def distance(params):
        return np.linalg.norm(dense_of(case, params) - dense)

    best = distance(found)
    assert best < np.linalg.norm(dense) or case.name == "low_rank"
    for salt in range(6):
        step = {
            name: found[name]
            + 0.03 * (-1) ** salt * np.asarray(case.random(*shape, dtype=float64, salt=20 + salt // 2))
            for name, shape in trained_shapes(case).items()
        }
        assert distance({**found, **step}) >= best - 1e-12


@one_shape
def test_the_residual_is_orthogonal_to_the_family(case, float64):
    if case.name in NO_CLOSED_FORM or (case.name == "toeplitz" and not case.options):
        pytest.skip("no closed form: alternating least squares stops near a stationary point")
    dense = case.random(case.n_out, case.n_in, dtype=float64, salt=5)

    def square(params):
        return jnp.sum((case.family.to_dense(params, case.n_out, case.n_in) - dense) ** 2)

    slopes = jax.jit(jax.grad(square))(case.project(dense))
    largest = max(np.abs(np.asarray(slopes[name])).max() for name in trained_shapes(case))
    assert largest < 1e-11 * np.sum(np.asarray(dense) ** 2)


def test_a_zero_matrix_or_block_leaves_every_number_of_a_diagonal_circulant_trainable(float64):
    family = FAMILIES["diagonal_circulant"]
    for dense in (jnp.zeros((12, 6)), jnp.ones((12, 6)).at[6:].set(0)):
        found = projected(family, dense)
        np.testing.assert_allclose(compiled(family.to_dense, 1, 2)(found, 12, 6), dense, atol=1e-12)
        slopes = jax.grad(lambda params: jnp.sum(jnp.sin(family.to_dense(params, 12, 6) + 0.3)))(found)
        assert (jnp.abs(slopes["c"]).sum(2) + jnp.abs(slopes["left"]).reshape(2, 1, 6).sum(2) > 1e-3).all()


def test_low_rank_error_is_the_tail_of_the_singular_values(float64):
    dense = np.random.default_rng(0).standard_normal((9, 6))
    singular = np.linalg.svd(dense, compute_uv=False)
    for rank in (1, 3, 6, 8):
        tail = np.sqrt(np.sum(singular[rank:] ** 2))
        params = projected(low_rank, jnp.asarray(dense), {"rank": rank})
        assert error(low_rank, params, jnp.asarray(dense)) == pytest.approx(tail, abs=1e-12)


def test_kronecker_error_is_the_tail_of_the_rearranged_matrix(float64):
    dense, r = np.random.default_rng(0).standard_normal((12, 6)), 3
    rows = [
        dense[p * r : (p + 1) * r, s * 2 : (s + 1) * 2].ravel() for p in range(12 // r) for s in range(r)
    ]  # row (p, s): the block that b[p, s] multiplies
    singular = np.linalg.svd(np.array(rows), compute_uv=False)
    for terms in (1, 2, 6, 7):
        tail = np.sqrt(np.sum(singular[terms:] ** 2))
        params = projected(kronecker, jnp.asarray(dense), {"rank": r, "terms": terms})
        assert error(kronecker, params, jnp.asarray(dense)) == pytest.approx(tail, abs=1e-12)


def test_low_displacement_rank_error_falls_to_zero_at_rank_n(float64):
    dense = jnp.asarray(np.random.default_rng(0).standard_normal((12, 6)))
    family = low_displacement_rank
    errors = [error(family, projected(family, dense, {"rank": r}), dense) for r in (1, 3, 12)]
    assert errors[0] > errors[1] > 0.01
    assert errors[2] < 1e-12


@pytest.mark.parametrize("shape", [(12, 6), (8, 13)])
def test_never_worse_than_the_starts(shape, float64):
    dense = jnp.asarray(np.random.default_rng(1).standard_normal(shape))
    pair = error(toeplitz, projected(toeplitz, dense), dense)
    assert pair <= error(toeplitz, projected(toeplitz, dense, {"factors": 1}), dense) + 1e-12
    one_term = error(low_displacement_rank, projected(low_displacement_rank, dense), dense)
    assert one_term <= error(circulant, projected(circulant, dense), dense) + 1e-12
    assert one_term <= error(skew_circulant, projected(skew_circulant, dense), dense) + 1e-12


@pytest.mark.parametrize(
    "family, seed, bound",
    [
        (low_displacement_rank, 6, 7.26),  # from the unit vectors for h; the next start ends at 7.50
        (low_displacement_rank, 2, 7.92),  # from the unit vectors for g; 8.20
        (low_displacement_rank, 10, 7.25),  # from the displacement; 7.40
        (toeplitz, 4, 8.54),  # from the nearest single matrix; 8.81
        (toeplitz, 0, 7.18),  # from the differences along the diagonals; 7.88
    ],
)
def test_every_start_is_the_best_for_some_matrix(family, seed, bound, float64):
    dense = jnp.asarray(np.random.default_rng(seed).standard_normal((8, 13)))
    assert error(family, projected(family, dense), dense) < bound


@pytest.mark.parametrize("name", FAMILIES)
def test_zero_is_projected_to_zero(name):
    case = WIDE_CASE[name]
    found = case.project(jnp.zeros((8, 13)))
    assert not dense_of(case, found).any()
    assert all(np.isfinite(np.asarray(array)).all() for array in found.values())


@pytest.mark.parametrize(
    ("name", "chosen", "axes"),
    [
        ("low_rank", {"rank": 5}, [{"a": 0, "b": 1}]),
        ("adalora", {"rank": 5, "initial_rank": 5}, [{"a": 0, "b": 1, "e": 0}]),
        ("lora2", {"rank": 3, "initial_rank": 3, "inner": 5}, [{"a_in": 0, "a_out": 1}, {"b_in": 0, "b_out": 1}]),
        ("lora2", {"rank": 5, "initial_rank": 5, "inner": 3}, [{"e": 0, "a_out": 0, "b_in": 1}]),
        ("diagonal_circulant", {}, [{"left": 0, "c": 0}, {"right": 0, "c": 1}]),
    ],
)
def test_every_component_of_a_projection_can_train(name, chosen, axes):
    family, dense = FAMILIES[name], jnp.zeros((8, 13)).at[0, 1].set(3.0).at[1, 0].set(2.0)  # of rank 2
    found = family.project(dense, **chosen)
    loss = lambda params: jnp.sum(jnp.sin(family.to_dense(params, 8, 13) + jnp.arange(13.0)[None]))  # noqa: E731
    slopes = jax.jit(jax.grad(loss))(found)
    for components in axes:
        sizes = [jnp.abs(jnp.moveaxis(slopes[key], axis, 0)).reshape(slopes[key].shape[axis], -1).max(1)
                 for key, axis in components.items()]  # fmt: skip
        assert (sum(sizes) > 1e-4).all(), sizes


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scale", [2.0**-20, 2.0**13])
def test_small_and_large_matrices_are_projected_alike(name, scale):
    case = WIDE_CASE[name]
    dense = case.random(8, 13, dtype="float32")
    distance = error(case.family, case.project(dense), dense)
    larger = jnp.asarray(np.float32(scale) * np.asarray(dense))
    scaled = error(case.family, case.project(larger), larger)
    rounding = 1e-5 * float(np.linalg.norm(dense))  # all that is left where the rank is full
    assert scaled == pytest.approx(scale * distance, rel=1e-2, abs=scale * rounding)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_projected_in_bfloat16(name):
    case = WIDE_CASE[name]
    dense = dense_of(case, case.member("bfloat16"))
    found = case.project(jnp.asarray(dense, "bfloat16"))
    assert {array.dtype for array in found.values()} == {jnp.dtype("bfloat16")}
    assert_close(dense_of(case, found), dense, "bfloat16")


@pytest.mark.parametrize(
    "name, chosen, expected",
    [
        ("low_rank", {"rank": 1}, 0.947),
        ("kronecker", {"rank": 8}, 0.696),
        ("circulant", {}, 0.702),
        ("toeplitz", {"factors": 1}, 0.697),
    ],
)
def test_distance_to_wishart_matrices(name, chosen, expected):
    """The paper's comparison on random positive definite matrices, n = 64, where low rank is the worst."""
    factors = np.random.default_rng(0).standard_normal((10, 64, 64)).astype(np.float32)
    matrices = factors @ factors.transpose(0, 2, 1)
    project = jax.jit(jax.vmap(functools.partial(FAMILIES[name].project, **chosen)))
    to_dense = jax.jit(jax.vmap(lambda params: FAMILIES[name].to_dense(params, 64, 64)))
    residuals = to_dense(project(jnp.asarray(matrices))) - matrices
    relative = np.linalg.norm(residuals, axis=(1, 2)) / np.linalg.norm(matrices, axis=(1, 2))
    assert relative.mean() == pytest.approx(expected, abs=0.008)


def test_cgls_solves_least_squares_and_picks_the_least_norm(float64):
    generator = np.random.default_rng(0)
    for shape, rank in (((9, 5), 5), ((5, 9), 5), ((8, 8), 3)):
        matrix = generator.standard_normal((shape[0], rank)) @ generator.standard_normal((rank, shape[1]))
        target = generator.standard_normal(shape[0])
        linear = functools.partial(jnp.matmul, jnp.asarray(matrix))
        found = alternating.cgls(linear, jnp.asarray(target), jnp.zeros(shape[1]), iterations=50)
        np.testing.assert_allclose(found, np.linalg.lstsq(matrix, target)[0], atol=1e-10)


def test_cgls_keeps_the_digits_that_the_normal_equations_lose():
    """Condition 1e4: its square is out of float32's reach, so that solving AᵀA u = Aᵀb gives noise."""
    orthogonal = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 12, 12)))[0]
    matrix = (orthogonal[0] * np.geomspace(1, 1e-4, 12) @ orthogonal[1]).astype(np.float32)
    target = jnp.asarray(matrix @ np.ones(12, np.float32))
    found = alternating.cgls(functools.partial(jnp.matmul, matrix), target, jnp.zeros(12), iterations=500)
    normal = np.linalg.solve(matrix.T @ matrix, matrix.T @ np.asarray(target))
    assert np.abs(found - 1).max() < 0.002
    assert np.abs(normal - 1).max() > 0.05
