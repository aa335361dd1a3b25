"""LayerNorm and RMSNorm against the plain formulas in float64: values, gradients, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from surm.models.normalization import LayerNorm, RMSNorm, layer_norm, rms_norm

SHAPES = [(5,), (3, 8), (2, 3, 16)]


def _inputs(shape: tuple[int, ...], offset: float = 0.0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(sum(shape))
    x, scale, bias, dy = (rng.normal(size=size) for size in (shape, shape[-1:], shape[-1:], shape))
    return x + offset, scale, bias, dy


def _plain(x, scale, bias, epsilon):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / (variance + epsilon) ** 0.5 * scale + bias


def _narrow(*arrays: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize("epsilon", [1e-12, 1e-1])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_the_formula(shape, epsilon):
    x, scale, bias, _ = _inputs(shape)
    expected = _plain(x, scale, bias, epsilon)
    np.testing.assert_allclose(layer_norm(*_narrow(x, scale, bias), epsilon), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-1])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_formula(shape, epsilon):
    x, scale, bias, dy = _inputs(shape)
    with jax.enable_x64(True):
        _, pull = jax.vjp(lambda *arrays: _plain(*arrays, epsilon), *map(jnp.asarray, (x, scale, bias)))
        expected = [np.asarray(gradient) for gradient in pull(jnp.asarray(dy))]
    _, pull = jax.vjp(lambda *arrays: layer_norm(*arrays, epsilon), *_narrow(x, scale, bias))
    for found, wanted in zip(pull(*_narrow(dy)), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_large_mean_does_not_cancel():
    # One-pass variance in float32 would be off by 10 % and more here.
    x, scale, bias, _ = _inputs((4, 64), offset=2000.0)
    x = x.astype(np.float32).astype(np.float64)
    found = layer_norm(*_narrow(x, scale, bias), 1e-6)
    np.testing.assert_allclose(found, _plain(x, scale, bias, 1e-6), atol=2e-3)


def test_second_derivatives_exist():
    x, scale, bias, _ = _narrow(*_inputs((3, 8)))
    squares = jax.grad(lambda x: (layer_norm(x, scale, bias, 1e-6) ** 3).sum())
    assert jnp.isfinite(jax.grad(lambda x: (squares(x) ** 2).sum())(x)).all()


@pytest.mark.parametrize(
    ("given", "asked", "expected"),
    [("float32", None, "float32"), ("bfloat16", None, "bfloat16"), ("float32", "bfloat16", "bfloat16")],
)
def test_the_result_has_the_asked_dtype(given, asked, expected):
    norm = LayerNorm(8, epsilon=1e-6, dtype=asked)
    assert norm(jnp.arange(16.0, dtype=given).reshape(2, 8)).dtype == expected


def test_statistics_of_bfloat16_are_taken_in_float32():
    x = jnp.asarray(_inputs((4, 512))[0], jnp.bfloat16)
    norm = LayerNorm(512, epsilon=1e-6)
    expected = norm(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(norm(x).astype(jnp.float32), expected.astype(jnp.float32))


def test_it_starts_as_plain_normalisation():
    x = _inputs((3, 8))[0]
    expected = _plain(x, 1.0, 0.0, 1e-6)
    np.testing.assert_allclose(LayerNorm(8, epsilon=1e-6)(*_narrow(x)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("given", ["bfloat16", "float32"])
def test_gradients_have_the_types_of_what_they_are_for(stored, given):
    graphdef, parameters = nnx.split(LayerNorm(8, epsilon=1e-6))
    parameters = jax.tree.map(lambda value: value.astype(stored), parameters)
    loss = lambda parameters, x: nnx.merge(graphdef, parameters)(x).astype(jnp.float32).sum()  # noqa: E731
    gradients, dx = jax.grad(loss, argnums=(0, 1))(parameters, jnp.arange(8.0, dtype=given))
    assert {value.dtype.name for value in jax.tree.leaves(gradients)} == {stored} and dx.dtype == given


def _root_mean_square(x, scale, epsilon):
    return x / ((x * x).mean(axis=-1, keepdims=True) + epsilon) ** 0.5 * scale


@pytest.mark.parametrize("epsilon", [1e-12, 1e-1])
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_values_and_gradients_are_those_of_the_formula(shape, epsilon):
    x, scale, _, dy = _inputs(shape, offset=0.5)
    with jax.enable_x64(True):
        value, pull = jax.vjp(lambda *arrays: _root_mean_square(*arrays, epsilon), *map(jnp.asarray, (x, scale)))
        expected = [np.asarray(array) for array in (value, *pull(jnp.asarray(dy)))]
    value, pull = jax.vjp(lambda *arrays: rms_norm(*arrays, epsilon), *_narrow(x, scale))
    for found, wanted in zip((value, *pull(*_narrow(dy))), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_an_rms_norm_starts_without_a_scale_and_adds_its_offset(offset):
    x, scale, _, _ = _inputs((3, 8))
    norm = RMSNorm(8, epsilon=1e-6, offset=offset)
    np.testing.assert_allclose(norm(*_narrow(x)), _root_mean_square(x, 1.0, 1e-6), rtol=1e-5, atol=1e-5)
    norm.scale[...] = jnp.asarray(scale, jnp.float32)
    np.testing.assert_allclose(norm(*_narrow(x)), _root_mean_square(x, scale + offset, 1e-6), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize(("given", "asked"), [("bfloat16", None), ("float32", None), ("float32", "bfloat16")])
def test_an_rms_norm_takes_the_mean_in_float32_and_has_the_asked_dtype(given, asked, stored):
    graphdef, parameters = nnx.split(RMSNorm(512, epsilon=1e-6, dtype=asked))
    parameters = jax.tree.map(lambda value: value.astype(stored), parameters)
    x = jnp.asarray(_inputs((4, 512))[0], given)
    run = lambda parameters, x: nnx.merge(graphdef, parameters)(x)  # noqa: E731
    found, pull = jax.vjp(run, parameters, x)
    assert found.dtype == (asked or given)
    np.testing.assert_array_equal(
        found.astype(jnp.float32), run(parameters, x.astype(jnp.float32)).astype(found.dtype).astype(jnp.float32)
    )
    of_parameters, dx = pull(found)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(of_parameters)} == {stored} and dx.dtype == given
