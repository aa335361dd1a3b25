"""The laws that every family keeps, over one table of cases.

What compiles anew for every shape is what these tests cost: the vectors of a case have one shape, compiled
functions are shared, and what hangs on the shape in no way runs on one or two of them.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surm.matrices import FAMILIES, options

from .cases import (
    CASES,
    ONE_SHAPE,
    TWO_SHAPES,
    Case,
    assert_close,
    dense_of,
    every_case,
    one_shape,
    product,
    two_shapes,
)


def vectors(case: Case, dtype: str, salt: int = 0) -> jax.Array:
    return case.random(2, 3, case.n_in, dtype=dtype, salt=salt)


def check_product(case: Case, dtype: str) -> None:
    params, x = case.member(dtype), vectors(case, dtype)
    y = product(case, params, x)
    assert y.dtype == dtype
    assert_close(y, np.asarray(x) @ dense_of(case, params).T, dtype)


@every_case
def test_matvec_is_the_dense_product(case, float64):
    check_product(case, float64)


@one_shape
def test_matvec_is_the_dense_product_in_float32(case):
    check_product(case, "float32")


@every_case
def test_matvec_is_linear_in_x(case, float64):
    params, x, y = case.member(float64), vectors(case, float64), vectors(case, float64, salt=9)
    combined = product(case, params, jnp.asarray(2.0 * np.asarray(x) - 3.0 * np.asarray(y)))
    of_x, of_y = (np.asarray(product(case, params, one)) for one in (x, y))
    assert_close(combined, 2.0 * of_x - 3.0 * of_y, float64)


@one_shape
def test_batch_axes_are_independent(case, float64):
    params, x = case.member(float64), vectors(case, float64)
    rows = [[product(case, params, vector) for vector in matrix] for matrix in x]
    assert_close(product(case, params, x), np.asarray(rows), float64)


@one_shape
def test_vmap_over_vectors_and_over_parameters(case, float64):
    pair, x = [case.member(float64), case.start(float64)], vectors(case, float64)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair)
    over_vectors = jax.vmap(case.family.matvec, in_axes=(None, 0, None))
    y = jax.jit(jax.vmap(over_vectors, in_axes=(0, 0, None)), static_argnums=2)(stacked, x, case.n_out)
    expected = [product(case, params, x)[k] for k, params in enumerate(pair)]
    assert_close(y, np.asarray(expected), float64)


@one_shape
def test_jit_equals_eager(case):
    params, x = case.member("float32"), vectors(case, "float32")
    assert_close(product(case, params, x), case.family.matvec(params, x, case.n_out), "float32")


def loss(matvec, params, x, weights) -> jax.Array:
    return jnp.sum(weights * jnp.sin(matvec(params, x, weights.shape[-1])))


gradients = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)


@every_case
def test_zero_at_init(case, float64):
    params = case.start(float64)
    assert not dense_of(case, params).any()
    assert not product(case, params, vectors(case, float64)).any()


@two_shapes
def test_it_trains_from_init(case, float64):
    params, x = case.start(float64), vectors(case, float64)
    weights = case.random(2, 3, case.n_out, dtype=float64, salt=9)
    of_params, _ = gradients(case.family.matvec, params, x, weights)
    least = 1e-8 if case.name == "lora2" else 1e-4  # a product of four factors of 0.02, as its paper has it
    assert max(float(jnp.abs(of_params[name]).max()) for name in case.init(float64)) > least


@two_shapes
def test_gradients_are_those_through_the_dense_matrix(case, float64):
    params, x = case.member(float64), vectors(case, float64)
    weights = case.random(2, 3, case.n_out, dtype=float64, salt=9)

    def through_dense(params, x, n_out):
        return jnp.matmul(x, case.family.to_dense(params, n_out, x.shape[-1]).T)

    expected = gradients(through_dense, params, x, weights)
    actual = gradients(case.family.matvec, params, x, weights)
    for leaf, expected_leaf in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(leaf, expected_leaf, float64)


@every_case
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_num_params_counts_the_leaves(case, kind):
    leaves = jax.eval_shape(lambda: case.init(kind)).values()
    assert {str(leaf.dtype) for leaf in leaves} == {kind}
    expected = case.family.num_params(case.n_out, case.n_in, **dict(case.options))
    assert sum(leaf.size for leaf in leaves) == expected


@one_shape
def test_bfloat16_in_bfloat16_out(case):
    params, x = case.member("bfloat16"), vectors(case, "bfloat16")
    y = product(case, params, x)
    dense = jax.eval_shape(lambda: case.family.to_dense(params, case.n_out, case.n_in))
    assert (y.dtype, dense.dtype) == (jnp.bfloat16, jnp.bfloat16)
    exact = {name: np.asarray(array, np.float32) for name, array in params.items()}
    assert_close(y, np.asarray(x, np.float32) @ dense_of(case, exact).T, "bfloat16")


@one_shape
def test_float32_parameters_on_bfloat16_vectors(case):
    params, x = case.member("float32"), vectors(case, "bfloat16")
    y = product(case, params, x)
    assert y.dtype == jnp.bfloat16
    assert_close(y, np.asarray(x, np.float32) @ dense_of(case, params).T, "bfloat16")


def check_projection_of_a_member(case: Case, dtype: str) -> None:
    dense = dense_of(case, case.member(dtype))
    found = case.project(jnp.asarray(dense, dtype))
    expected = jax.eval_shape(lambda: case.start(dtype))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )
    assert_close(dense_of(case, found), dense, dtype)


FLOAT32 = ("circulant", "low_rank", "low_displacement_rank", "svft")
"""By averages, by singular vectors, by alternating; `make slow` has them all."""


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in (*TWO_SHAPES, *ONE_SHAPE) else pytest.mark.slow) for c in CASES], ids=str
)
def test_projecting_a_member_gives_it_back(case, float64):
    check_projection_of_a_member(case, float64)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c.name in FLOAT32 else pytest.mark.slow) for c in ONE_SHAPE], ids=str
)
def test_projecting_a_member_gives_it_back_in_float32(case):
    check_projection_of_a_member(case, "float32")


@pytest.mark.parametrize("name", FAMILIES)
def test_init_project_and_num_params_take_the_same_options(name):
    family, chosen = FAMILIES[name], options(name)
    given = {"fixed": inspect.Parameter.empty} if family.fixed else {}
    functions = [(family.init, {"dtype": jnp.float32}), (family.project, given)]
    for function, extra in functions + ([(family.fixed, {})] if given else []):
        parameters = inspect.signature(function).parameters.values()
        keywords = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        assert keywords == {**chosen, **extra}


def test_the_families_stand_in_the_agreed_order():
    assert list(FAMILIES)[:7] == [
        "circulant",
        "skew_circulant",
        "toeplitz",
        "kronecker",
        "low_displacement_rank",
        "low_rank",
        "block_circulant",
    ]
