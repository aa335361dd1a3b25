"""The laws that every family keeps, over the whole table of cases."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surm.matrices import FAMILIES, options

from .cases import assert_close


def fast(case):
    """The product, compiled whole: quicker to compile than its pieces."""
    return jax.jit(case.family.matvec, static_argnums=2)


def slow(case, params, x):
    """The product through the dense matrix, whose definition the oracles check."""
    return jnp.matmul(x, case.family.to_dense(params, case.n_out, case.n_in).T, precision="highest")


def test_matvec_is_the_dense_product(case, dtype):
    params, x = case.member(dtype), case.random(2, 3, case.n_in, dtype=dtype)
    y = fast(case)(params, x, case.n_out)
    assert y.dtype == dtype
    assert_close(y, slow(case, params, x), dtype)


def test_matvec_is_linear_in_x(case, float64):
    params, (x, y) = case.member(float64), case.random(2, case.n_in, dtype=float64)
    matvec = fast(case)
    combined = matvec(params, 2.0 * x - 3.0 * y, case.n_out)
    assert_close(combined, 2.0 * matvec(params, x, case.n_out) - 3.0 * matvec(params, y, case.n_out), float64)


def test_batch_axes_are_independent(case, float64):
    params, x = case.member(float64), case.random(2, 3, case.n_in, dtype=float64)
    batched = fast(case)(params, x, case.n_out)
    rows = [[fast(case)(params, vector, case.n_out) for vector in matrix] for matrix in x]
    assert_close(batched, np.asarray(rows), float64)


def test_vmap_over_vectors_and_over_parameters(case, float64):
    pair, x = [case.member(float64), case.init(float64)], case.random(2, 3, case.n_in, dtype=float64)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair)
    over_vectors = jax.vmap(case.family.matvec, in_axes=(None, 0, None))
    y = jax.jit(jax.vmap(over_vectors, in_axes=(0, 0, None)), static_argnums=2)(stacked, x, case.n_out)
    expected = [fast(case)(params, batch, case.n_out) for params, batch in zip(pair, x, strict=True)]
    assert_close(y, np.asarray(expected), float64)


def test_jit_equals_eager(case):
    params, x = case.member("float32"), case.random(3, case.n_in, dtype="float32")
    assert_close(fast(case)(params, x, case.n_out), case.family.matvec(params, x, case.n_out), "float32")


def test_gradients_are_those_through_the_dense_matrix(case, float64):
    params, x = case.member(float64), case.random(3, case.n_in, dtype=float64)
    weights = case.random(3, case.n_out, dtype=float64, salt=9)

    def gradients(product):
        return jax.jit(jax.grad(lambda p, x: jnp.sum(weights * jnp.sin(product(p, x))), argnums=(0, 1)))

    of_fast = gradients(lambda p, x: case.family.matvec(p, x, case.n_out))(params, x)
    of_slow = gradients(lambda p, x: slow(case, p, x))(params, x)
    for actual, expected in zip(jax.tree.leaves(of_fast), jax.tree.leaves(of_slow), strict=True):
        assert_close(actual, expected, float64)


def test_zero_at_init_and_yet_it_trains(case):
    params, x = case.init("float32"), case.random(3, case.n_in, dtype="float32")
    assert not case.family.to_dense(params, case.n_out, case.n_in).any()
    assert not fast(case)(params, x, case.n_out).any()
    gradients = jax.jit(jax.grad(lambda p: case.family.matvec(p, x, case.n_out).sum()))(params)
    assert max(float(jnp.abs(leaf).max()) for leaf in gradients.values()) > 1e-4


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_num_params_counts_the_leaves(case, kind):
    leaves = jax.eval_shape(lambda: case.init(kind)).values()
    assert {str(leaf.dtype) for leaf in leaves} == {kind}
    expected = case.family.num_params(case.n_out, case.n_in, **dict(case.options))
    assert sum(leaf.size for leaf in leaves) == expected


def test_bfloat16_in_bfloat16_out(case):
    params, x = case.member("bfloat16"), case.random(3, case.n_in, dtype="bfloat16")
    y = fast(case)(params, x, case.n_out)
    assert y.dtype == jnp.bfloat16
    assert case.family.to_dense(params, case.n_out, case.n_in).dtype == jnp.bfloat16
    exact = jax.tree.map(lambda array: array.astype("float32"), (params, x))
    assert_close(y, slow(case, *exact), "bfloat16")


def test_float32_parameters_on_bfloat16_vectors(case):
    params, x = case.member("float32"), case.random(3, case.n_in, dtype="bfloat16")
    y = fast(case)(params, x, case.n_out)
    assert y.dtype == jnp.bfloat16
    assert_close(y, slow(case, params, x.astype("float32")), "bfloat16")


def test_projecting_a_member_gives_it_back(case, dtype):
    dense = case.family.to_dense(case.member(dtype), case.n_out, case.n_in)
    found = case.project(dense)
    expected = jax.eval_shape(lambda: case.init(dtype))
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in expected.items()
    }
    assert_close(case.family.to_dense(found, case.n_out, case.n_in), dense, dtype)


@pytest.mark.parametrize("name", FAMILIES)
def test_init_project_and_num_params_take_the_same_options(name):
    family, chosen = FAMILIES[name], options(name)
    for function, extra in ((family.init, {"dtype": jnp.float32}), (family.project, {})):
        parameters = inspect.signature(function).parameters.values()
        keywords = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        assert keywords == {**chosen, **extra}


def test_the_families_stand_in_the_agreed_order():
    assert list(FAMILIES) == [
        "circulant",
        "skew_circulant",
        "toeplitz",
        "kronecker",
        "low_displacement_rank",
        "low_rank",
        "block_circulant",
    ]
