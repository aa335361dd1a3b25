"""The other ways to a family's product and dense matrix keep the same laws."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals
from jax.test_util import check_grads

from surm.matrices import dft, diagonals, fourier, toeplitz_product

from .cases import CASES, TALL, WIDE, Case, assert_close, compiled, dense_of, two_shapes

CONVOLVING = ("circulant", "skew_circulant", "toeplitz", "low_displacement_rank")
convolving = pytest.mark.parametrize("case", [c for c in CASES if c.name in CONVOLVING], ids=str)
convolving_two = pytest.mark.parametrize(  # 13 is prime: one root alone
    "case", [c for c in CASES if c.name in CONVOLVING and c.shape in (TALL, WIDE)], ids=str
)
wide = pytest.mark.parametrize("case", [c for c in CASES if c.shape == WIDE], ids=str)
quick = pytest.mark.parametrize("case", [c for c in CASES if hasattr(c.family, "quick_dense")], ids=str)


def by_dft(case):
    return partial(case.family.matvec, n_out=case.n_out, convolve=dft.convolve)


@convolving
def test_the_dft_gives_the_dense_product(case, float64):
    params, x = case.member(float64), case.random(2, 3, case.n_in, dtype=float64)
    assert_close(jax.jit(by_dft(case))(params, x), np.asarray(x) @ dense_of(case, params).T, float64)


@convolving_two
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dft_in_narrow_types(case, dtype):
    params, x = case.member("float32"), case.random(2, 3, case.n_in, dtype=dtype)
    y = jax.jit(by_dft(case))(params, x)
    assert y.dtype == dtype
    assert_close(y, np.asarray(x, np.float64) @ dense_of(case, params).T, dtype)


@convolving_two
def test_the_dft_is_matmuls_alone(case):
    params, x = case.member("float32"), case.random(2, 3, case.n_in, dtype="bfloat16")
    slopes = jax.grad(lambda params, x: by_dft(case)(params, x).sum(), argnums=(0, 1))
    assert not re.search(r"\bfft\b|complex|scatter", str(jax.make_jaxpr(slopes)(params, x)))


@wide
def test_derivatives_are_those_of_finite_differences(case, float64):
    params, x = case.member(float64), case.random(2, case.n_in, dtype=float64)
    check_grads(jax.jit(partial(case.family.matvec, n_out=case.n_out)), (params, x), order=1, modes=("fwd", "rev"))
    if case.name in CONVOLVING:
        check_grads(jax.jit(by_dft(case)), (params, x), order=1, modes=("fwd", "rev"))
    if hasattr(case.family, "quick_dense"):
        dense = jax.jit(partial(case.family.quick_dense, n_out=case.n_out, n_in=case.n_in))
        check_grads(dense, (params,), order=1, modes=("fwd", "rev"))


@two_shapes
@pytest.mark.parametrize("convolve", [fourier.convolve, dft.convolve], ids=["fft", "dft"])
def test_differentiated_it_keeps_its_arguments_alone(case, convolve, capsys):
    if convolve is dft.convolve and case.name not in CONVOLVING or case.name in ("low_rank", "kronecker"):
        pytest.skip("does not convolve so")
    chosen = {"convolve": convolve} if case.name in CONVOLVING else {}
    params, x = case.member("float32"), case.random(5, 4, case.n_in, dtype="bfloat16")
    print_saved_residuals(partial(case.family.matvec, n_out=case.n_out, **chosen), params, x)
    kept = re.findall(r"^(\w+\[[\d,]*\])", capsys.readouterr().out, re.MULTILINE)
    assert [what for what in kept if "[5,4," in what] == [f"bf16[5,4,{case.n_in}]"]


@quick
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_quick_dense_is_the_dense_matrix(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = case.member(dtype)
        found = compiled(case.family.quick_dense, 1, 2)(params, case.n_out, case.n_in)
        assert found.dtype == dtype
        assert_close(found, dense_of(case, params), dtype)


@pytest.mark.parametrize("m", [1, 4, 19])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 11), (16, 16), (3, 40)], ids=str)
def test_the_product_of_any_two_toeplitz_matrices(shape, m, float64):
    n_out, n_in = shape
    random = np.random.default_rng(0)
    left, right = (jnp.asarray(random.standard_normal(k + m - 1)) for k in shape)
    expected = diagonals.from_diagonals(left, n_out, m) @ diagonals.from_diagonals(right, m, n_in)
    assert_close(toeplitz_product.dense(left, right, n_out, n_in), expected, float64, scale=jnp.abs(expected) + 1)


@pytest.mark.parametrize("name", CONVOLVING)
def test_every_way_to_the_product_at_a_real_size(name):
    case = Case(name, (), 768, 768)
    params, x = case.member("float32"), case.random(4, 768, dtype="float32")
    expected = np.asarray(x, np.float64) @ dense_of(case, params).T
    assert_close(jax.jit(partial(case.family.matvec, n_out=768))(params, x), expected, "float32")
    assert_close(jax.jit(by_dft(case))(params, x), expected, "float32")
    quick = getattr(case.family, "quick_dense", case.family.to_dense)
    assert_close(compiled(quick, 1, 2)(params, 768, 768), dense_of(case, params), "float32")


@pytest.mark.parametrize("name", CONVOLVING)
@pytest.mark.parametrize("convolve", [fourier.convolve, dft.convolve], ids=["fft", "dft"])
def test_gradients_of_narrow_batches_are_near_those_of_wide_ones(name, convolve):
    case = Case(name, (), 64, 64)
    params, x = case.member("float32"), case.random(512, 64, dtype="bfloat16")
    loss = lambda params, x: jnp.sum(case.family.matvec(params, x, 64, convolve=convolve).astype("float32") ** 2)  # noqa: E731
    narrow, wide = (jax.jit(jax.grad(loss))(params, x.astype(dtype)) for dtype in ("bfloat16", "float32"))
    for key in params:
        assert narrow[key].dtype == "float32"
        assert_close(narrow[key], wide[key], "bfloat16")
