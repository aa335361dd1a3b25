"""Dense matrices by strips that follow from the first column, as on accelerators."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import toeplitz

from surm.matrices.algebra import strips, toeplitz_vector
from tests.described import described

from .cases import Case, assert_close, assert_derivatives, dense_of

SHAPES = [(150, 131), (70, 200), (5, 1)]
MEMBERS = [("toeplitz", ()), ("low_displacement_rank", ()), ("low_displacement_rank", (("rank", 3),))]


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(strips, "pay", lambda platform, *sizes: platform == "tpu")


def quick(case: Case):
    """The family's dense matrix for a TPU."""

    def dense(params):
        with described("tpu"):
            return jax.jit(partial(case.family.quick_dense, n_out=case.n_out, n_in=case.n_in))(params)

    return dense


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("block", [7, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_strips_from_the_first_column(member, shape, block, float64, monkeypatch):
    monkeypatch.setattr(strips, "_BLOCK", block)
    case = Case(*member, *shape)
    params = case.member(float64)
    assert_close(quick(case)(params), dense_of(case, params), float64)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("shape", [(12, 9), (9, 12)], ids=str)
@pytest.mark.parametrize("member", MEMBERS[:2], ids=str)
def test_their_derivatives(member, shape, float64, monkeypatch):
    monkeypatch.setattr(strips, "_BLOCK", 4)
    case = Case(*member, *shape)
    assert_derivatives(quick(case), case.member(float64))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("member", MEMBERS[:2], ids=str)
def test_nothing_is_transformed_or_gathered(member):
    case = Case(*member, 200, 150)
    with described("tpu"):
        traced = jax.jit(jax.grad(lambda p: jnp.sum(case.family.quick_dense(p, 200, 150) ** 2))).trace(
            case.member("float32")
        )
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert not re.search(r"stablehlo\.(fft|gather|dynamic_gather|scatter|while|dynamic_slice)\b", text)
    assert "tensor<150x200x" in text and not re.search(r"tensor<200x200x", text)  # no factor is made


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("member", MEMBERS[:2], ids=str)
def test_factors_in_half_precision_cost_no_more_than_in_the_product_of_two_matrices(member, monkeypatch):
    """Accelerators round the factors of a product for a layer in bfloat16, which a CPU does not by itself."""
    exact = jnp.matmul

    def rounding(a, b, *, precision=None):
        if precision is None:
            a, b = (side.astype(jnp.bfloat16).astype(side.dtype) for side in (a, b))
        return exact(a, b, precision="highest")

    case = Case(*member, 512, 384)
    params = case.member("float32")
    wanted = dense_of(case, params)
    monkeypatch.setattr(jnp, "matmul", rounding)
    with described("tpu"):
        found = np.asarray(case.family.quick_dense(params, 512, 384, precision=None))
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < error < 3e-3  # two rounded factors of independent entries alone have 2.3e-3 to 2.8e-3


def test_large_matrices_pay():
    assert strips.pay("tpu", 3072, 3072, 768) and strips.pay("gpu", 4096, 4096, 4096)
    assert not strips.pay("tpu", 2**16, 1, 2**16 - 1) and not strips.pay("gpu", 3072, 3072, 768)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (30, 66), (70, 31), (64, 64)], ids=str)
def test_the_product_of_a_toeplitz_matrix_with_one_vector(shape, float64):
    n_out, n_in = shape
    random = np.random.default_rng(0)
    d, x = random.standard_normal(n_out + n_in - 1), random.standard_normal(n_in)
    expected = toeplitz(d[n_in - 1 :], d[:n_in][::-1]) @ x
    np.testing.assert_allclose(jax.jit(toeplitz_vector.product)(d, x), expected, rtol=0, atol=1e-12)
