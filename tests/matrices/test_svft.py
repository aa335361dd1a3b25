"""SVFT against numpy: a diagonal between the weight's own singular vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surm.matrices import svft


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_it_weighs_the_pairs_of_singular_vectors_of_the_weight(shape, float64):
    draw = np.random.default_rng(0)
    base, m, x = draw.standard_normal(shape), draw.standard_normal(min(shape)), draw.standard_normal(shape[1])
    u, s, vt = np.linalg.svd(base, full_matrices=False)
    expected = sum(weight * np.outer(u[:, k], vt[k]) for k, weight in enumerate(m))  # no matter which signs
    params = {**svft.fixed(jnp.asarray(base)), "m": jnp.asarray(m)}
    np.testing.assert_allclose(svft.to_dense(params, *shape), expected, atol=1e-12)
    np.testing.assert_allclose(svft.matvec(params, jnp.asarray(x), shape[0]), expected @ x, atol=1e-12)
    np.testing.assert_allclose(svft.to_dense({**params, "m": jnp.asarray(s)}, *shape), base, atol=1e-12)


def test_it_starts_from_zero_with_a_value_a_pair():
    assert np.array_equal(svft.init(jax.random.key(0), 9, 6)["m"], np.zeros(6))
    assert 24 * svft.num_params(768, 768) == 18_432


def test_what_a_projection_leaves_is_orthogonal_to_every_pair(float64):
    draw = np.random.default_rng(1)
    base, dense = jnp.asarray(draw.standard_normal((5, 8))), draw.standard_normal((5, 8))
    frozen = svft.fixed(base)
    rest = dense - svft.to_dense({**frozen, **svft.project(jnp.asarray(dense), fixed=frozen)}, 5, 8)
    np.testing.assert_allclose(np.diag(frozen["u"].T @ rest @ frozen["v"].T), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"m": (5,)}, r"given parameters named \('m',\); expected \('m', 'u', 'v'\)"),
        ({"m": (4,), "u": (8, 5), "v": (5, 5)}, r"m has shape \(4,\); expected \(5,\) for n_out=8, n_in=5"),
        ({"m": (5,), "u": (8, 5), "v": (8, 5)}, r"v has shape \(8, 5\); expected \(5, 5\)"),
    ],
)
def test_what_does_not_fit_is_refused(params, message):
    with pytest.raises(ValueError, match=message):
        svft.matvec({name: jnp.zeros(shape) for name, shape in params.items()}, jnp.zeros(5), 8)
