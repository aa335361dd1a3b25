"""The other ways to a family's product and dense matrix keep the same laws."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals
from scipy.linalg import toeplitz

from surm.matrices.algebra import centrosymmetric, dft, diagonals, f_circulant, fourier, strips, toeplitz_product
from surm.training import operations

from .cases import CASES, TALL, WIDE, Case, assert_close, assert_derivatives, compiled, dense_of, two_shapes

CONVOLVING = ("circulant", "skew_circulant", "toeplitz", "low_displacement_rank")
convolving = pytest.mark.parametrize("case", [c for c in CASES if c.name in CONVOLVING], ids=str)
convolving_two = pytest.mark.parametrize(  # 13 is prime: one root alone
    "case", [c for c in CASES if c.name in CONVOLVING and c.shape in (TALL, WIDE)], ids=str
)
wide = pytest.mark.parametrize("case", [c for c in CASES if c.shape == WIDE], ids=str)
quick = pytest.mark.parametrize("case", [c for c in CASES if c.family.quick_dense], ids=str)


through_dense = pytest.mark.parametrize("case", [c for c in CASES if c.family.dense_matvec], ids=str)


def widened(params):
    return jax.tree.map(lambda value: value.astype("float32"), params)


def by_dft(case):
    return partial(case.family.matvec, n_out=case.n_out, convolve=dft.convolve)


@convolving
def test_the_dft_gives_the_dense_product(case, float64):
    params, x = case.member(float64), case.random(2, 3, case.n_in, dtype=float64)
    assert_close(jax.jit(by_dft(case))(params, x), np.asarray(x) @ dense_of(case, params).T, float64)


@convolving_two
@pytest.mark.parametrize("of_params", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dft_in_narrow_types(case, dtype, of_params):
    params, x = case.member(of_params), case.random(2, 3, case.n_in, dtype=dtype)
    y = jax.jit(by_dft(case))(params, x)
    assert y.dtype == dtype
    assert_close(y, np.asarray(x, np.float64) @ dense_of(case, widened(params)).T, dtype)


@pytest.mark.parametrize("f", [1, -1])
@pytest.mark.parametrize("convolve", [fourier.convolve, dft.convolve], ids=["fft", "dft"])
@pytest.mark.parametrize("n", [24, 13])
def test_some_entries_of_a_convolution_of_short_vectors(convolve, f, n, float64):
    v, x = (jax.random.normal(jax.random.key(key), shape, float64) for key, shape in enumerate([(n - 2,), (3, 7)]))
    whole = f_circulant.dense(jnp.pad(v, (0, 2)), n, n, f)[:, :7] @ x.T
    for kept in (slice(1), slice(5), slice(n), slice(None), slice(4, 9), slice(11, n)):
        np.testing.assert_allclose(convolve(v, x, n, f, kept), whole[kept].T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("convolve", [fourier.convolve, dft.convolve], ids=["fft", "dft"])
def test_an_empty_batch_has_no_convolutions(convolve):
    assert convolve(jnp.ones(12), jnp.ones((0, 5)), 12, 1, slice(7)).shape == (0, 7)


def test_the_dft_leaves_out_the_zeros_of_short_vectors_and_what_is_not_asked_for():
    def cost(n_in, n_out):
        traced = jax.make_jaxpr(lambda v, x: dft.convolve(v, x, 576, 1, slice(n_out)))(
            jnp.ones(576), jnp.ones((4096, n_in))
        )
        return operations.counted(traced)

    whole = cost(576, 576)  # of which the DFT and its inverse are a quarter each
    assert cost(144, 576) < 0.82 * whole and cost(576, 144) < 0.82 * whole and cost(144, 144) < 0.64 * whole


@convolving_two
def test_the_dft_is_matmuls_alone(case):
    params, x = case.member("float32"), case.random(2, 3, case.n_in, dtype="bfloat16")
    slopes = jax.grad(lambda params, x: by_dft(case)(params, x).sum(), argnums=(0, 1))
    assert not re.search(r"\bfft\b|complex|scatter", str(jax.make_jaxpr(slopes)(params, x)))


@wide
def test_derivatives_are_those_of_finite_differences(case, float64):
    params, x = case.member(float64), case.random(2, case.n_in, dtype=float64)
    assert_derivatives(partial(case.family.matvec, n_out=case.n_out), params, x)
    if case.name in CONVOLVING:
        assert_derivatives(by_dft(case), params, x)
    if case.family.quick_dense:
        assert_derivatives(partial(case.family.quick_dense, n_out=case.n_out, n_in=case.n_in), params)


@two_shapes
@pytest.mark.parametrize("convolve", [fourier.convolve, dft.convolve], ids=["fft", "dft"])
def test_differentiated_it_keeps_its_arguments_alone(case, convolve, capsys):
    if case.name not in (CONVOLVING if convolve is dft.convolve else (*CONVOLVING, "block_circulant", "c3a")):
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


@quick
def test_a_narrow_dense_matrix_is_rounded_once(case):
    params = case.member("bfloat16")
    exact = dense_of(case, widened(params))
    for dense in (case.family.to_dense, case.family.quick_dense):
        found = compiled(dense, 1, 2)(params, case.n_out, case.n_in)
        assert found.dtype == "bfloat16"
        np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-5)


@through_dense
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_product_through_the_dense_matrix(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        params, x = case.member(dtype), case.random(2, 3, case.n_in, dtype=dtype)
        found = compiled(case.family.dense_matvec, 2)(params, x, case.n_out)
        assert found.dtype == dtype
        assert_close(
            found,
            np.asarray(x, np.float64) @ dense_of(case, widened(params) if dtype == "bfloat16" else params).T,
            dtype,
        )


HALVED = [Case("toeplitz", options, n, n) for options in ((), (("factors", 1),)) for n in (2, 20)]


@pytest.mark.parametrize("case", HALVED, ids=str)
def test_half_of_a_centrosymmetric_matrix_is_enough(case, float64):
    params, x = case.member(float64), case.random(3, case.n_in, dtype=float64)
    product = partial(case.family.dense_matvec, n_out=case.n_out)
    assert_close(jax.jit(product)(params, x), np.asarray(x) @ dense_of(case, params).T, float64)
    assert_derivatives(product, params, x)
    kernels = []
    jax.eval_shape(partial(product, matmul=lambda x, kernel: kernels.append(kernel.shape) or x @ kernel), params, x)
    assert kernels == [(case.n_in // 2, case.n_in // 2)] * 2


def test_an_upper_half_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"given an upper half of shape \(2, 5\); expected \(n/2, n\) with n even"):
        centrosymmetric.product(jnp.ones((2, 5)), jnp.ones(5))


# the last strip is narrower in the first three: 17, 37 and 97 columns have no divisor near their root
STRIPS = [(20, 17), (5, 37), (97, 97), (37, 5), (90, 90)]
SLOW_STRIPS = ((5, 37), (37, 5))
every_strip = pytest.mark.parametrize(
    "shape", [pytest.param(s, marks=pytest.mark.slow) if s in SLOW_STRIPS else s for s in STRIPS], ids=str
)


@every_strip
@pytest.mark.parametrize(
    "member", [("toeplitz", ()), ("low_displacement_rank", ()), ("low_displacement_rank", (("rank", 3),))], ids=str
)
def test_strips_of_every_width(member, shape, float64):
    case = Case(*member, *shape)
    params = case.member(float64)
    found = compiled(case.family.quick_dense, 1, 2)(params, *shape)
    assert_close(found, dense_of(case, params), float64)
    assert_derivatives(partial(case.family.quick_dense, n_out=shape[0], n_in=shape[1]), params)


def test_there_are_strips_that_do_not_fill_the_matrix():
    assert [n_in % strips.width(n_in) > 0 for _, n_in in STRIPS] == [True, True, True, False, False]
    assert all(strips.width(n_in) > 1 for _, n_in in STRIPS[:3])


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (4, 9), (9, 4), (30, 66), (700, 5)], ids=str)
def test_columns_are_those_of_the_dense_matrix_and_so_is_their_derivative(shape, step, float64):
    n_out, n_in = shape
    random = np.random.default_rng(0)
    d = random.standard_normal((2, n_out + n_in - 1))
    columns = partial(diagonals.columns, n_out=n_out, n_in=n_in, step=step)
    found = jax.jit(columns)(d)
    expected = np.stack([toeplitz(one[n_in - 1 :], one[:n_in][::-1]) for one in d])[:, :, ::step]
    np.testing.assert_array_equal(found, expected.swapaxes(1, 2))
    cotangent = random.standard_normal(found.shape)
    sums = np.zeros_like(d)
    for column in range(found.shape[1]):
        start = n_in - 1 - column * step
        sums[:, start : start + n_out] += cotangent[:, column]
    (back,) = jax.jit(lambda d, cotangent: jax.vjp(columns, d)[1](cotangent))(d, cotangent)
    assert_close(back, sums, float64, scale=np.abs(sums) + 1)


@pytest.mark.parametrize("m", [1, pytest.param(4, marks=pytest.mark.slow), 19])
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 9), pytest.param((9, 1), marks=pytest.mark.slow), (7, 11), (16, 16), (3, 40)], ids=str
)
def test_the_product_of_any_two_toeplitz_matrices(shape, m, float64):
    n_out, n_in = shape
    random = np.random.default_rng(0)
    left, right = (random.standard_normal(k + m - 1) for k in shape)
    expected = toeplitz(left[m - 1 :], left[:m][::-1]) @ toeplitz(right[n_in - 1 :], right[:n_in][::-1])
    found = compiled(toeplitz_product.dense, 2, 3)(left, right, n_out, n_in)
    assert_close(found, expected, float64, scale=np.abs(expected) + 1)


@pytest.mark.parametrize("name", CONVOLVING)
def test_every_way_to_the_product_at_a_real_size(name):
    case = Case(name, (), 768, 768)
    params, x = case.member("float32"), case.random(4, 768, dtype="float32")
    expected = np.asarray(x, np.float64) @ dense_of(case, params).T
    assert_close(jax.jit(partial(case.family.matvec, n_out=768))(params, x), expected, "float32")
    assert_close(jax.jit(by_dft(case))(params, x), expected, "float32")
    quick = case.family.quick_dense or case.family.to_dense
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
