"""The product with a kernel against JAX's own, and the derivative that it is written for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from surm.ops.matmul import dot_general, matmul


def _inputs(*shape: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(sum(shape)), 3)
    return (
        jax.random.normal(keys[0], (*shape, 5)),
        jax.random.normal(keys[1], (5, 3)),
        jax.random.normal(keys[2], (*shape, 3)),
    )


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 3, 4)])
def test_values_and_gradients_are_those_of_the_plain_product(shape):
    x, kernel, dy = _inputs(*shape)
    expected, plain = jax.vjp(jnp.matmul, x, kernel)
    found, pull = jax.vjp(matmul, x, kernel)
    np.testing.assert_array_equal(found, expected)
    for gradient, wanted in zip(pull(dy), plain(dy), strict=True):
        assert gradient.shape == wanted.shape
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-5)


def test_it_vectorises_over_either_operand():
    x, kernel, _ = _inputs(4)
    kernels = jnp.stack([kernel, 2 * kernel])
    loss = lambda x, kernel: jnp.sum(matmul(x, kernel) ** 2)  # noqa: E731
    gradients = jax.vmap(jax.grad(loss, argnums=1), in_axes=(None, 0))(x, kernels)
    np.testing.assert_allclose(gradients[1], jax.grad(loss, argnums=1)(x, 2 * kernel), rtol=1e-6)


def test_the_operand_that_is_transposed_for_a_kernels_gradient_is_x():
    x, kernel, dy = _inputs(2, 3)
    equations = jax.make_jaxpr(lambda *a: jax.vjp(matmul, *a[:2])[1](a[2])[1])(x, kernel, dy).jaxpr.eqns
    (product,) = [e for e in equations if e.primitive.name == "dot_general" and e.outvars[0].aval.shape == (5, 3)]
    assert [operand.aval.shape for operand in product.invars] == [(5, 6), (6, 3)]  # xᵀ and dy, six rows each


def test_elsewhere_than_on_a_cpu_it_is_jaxs_own_product(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    x, kernel, _ = _inputs(2, 3)
    _, tangent = jax.jvp(matmul, (x, kernel), (x, kernel))  # forward mode too
    np.testing.assert_allclose(tangent, 2 * x @ kernel, rtol=1e-5)


def test_a_linear_layer_takes_it_and_falls_back_where_more_is_asked_for():
    x, _, _ = _inputs(2, 3)
    primitives = {}
    for name, options in {"plain": {}, "precise": {"precision": "highest"}, "narrow": {"dtype": jnp.bfloat16}}.items():
        layer = nnx.Linear(5, 3, dot_general=dot_general, rngs=nnx.Rngs(0), **options)
        same = nnx.Linear(5, 3, rngs=nnx.Rngs(0), **options)
        np.testing.assert_array_equal(layer(x), same(x))
        primitives[name] = {e.primitive.name for e in jax.make_jaxpr(layer)(x).jaxpr.eqns}
    assert "custom_vjp_call" in primitives["plain"]
    assert "custom_vjp_call" in primitives["narrow"]
    assert "custom_vjp_call" not in primitives["precise"]


@pytest.mark.parametrize(("rows", "widened"), [(1, False), (3, True)])
def test_products_of_several_rows_in_half_precision_are_asked_for_in_float32(rows, widened):
    x, kernel = (jax.random.normal(jax.random.key(n), shape, "bfloat16") for n, shape in enumerate([(rows, 5), (5, 4)]))
    y, pull = jax.vjp(matmul, x, kernel)
    wide = x.astype("float32") @ kernel.astype("float32")
    np.testing.assert_allclose(y.astype("float32"), wide, rtol=0.01, atol=0.01)
    assert [y.dtype.name, *(slope.dtype.name for slope in pull(y))] == ["bfloat16"] * 3
    text = str(jax.make_jaxpr(lambda x, kernel: jax.vjp(matmul, x, kernel)[1](y))(x, kernel))
    assert text.count("preferred_element_type=float32") == (3 if widened else 1)  # the kernel's gradient has five rows
