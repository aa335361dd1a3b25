"""The gate of an MLP: the value and the derivative of its definition, the latter computed once."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import surm
from surm.models.decoder import Decoder, DecoderConfig
from surm.ops import gating
from surm.ops.activations import ACTIVATIONS
from surm.ops.gating import activated, gated
from surm.peft import surgery


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_derivatives_are_those_of_the_definition(name, dtype):
    gate, values, slope = (jax.random.normal(jax.random.key(n), (2, 3, 5), dtype) for n in range(3))
    expected, plain = jax.vjp(lambda gate, values: ACTIVATIONS[name](gate) * values, gate, values)
    found, pull = jax.vjp(lambda gate, values: gated(name, gate, values), gate, values)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == "float32" else {"rtol": 0.02, "atol": 0.02}
    np.testing.assert_allclose(found.astype("float32"), expected.astype("float32"), **tolerance)
    for one, other in zip(pull(slope), plain(slope), strict=True):
        assert one.dtype == gate.dtype
        np.testing.assert_allclose(one.astype("float32"), other.astype("float32"), **tolerance)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_alone_has_its_derivative(name):
    x, slope = jax.random.normal(jax.random.key(0), (2, 3, 5))
    expected, plain = jax.vjp(ACTIVATIONS[name], x)
    found, pull = jax.vjp(functools.partial(activated, name), x)
    for one, other in ((found, expected), (pull(slope)[0], plain(slope)[0])):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_it_is_mapped_and_computed_again_like_its_definition():
    gate, values = jax.random.normal(jax.random.key(0), (2, 4, 3))
    loss = lambda gate, values: jnp.sum(gated("silu", gate, values) ** 2)  # noqa: E731
    expected = jax.grad(lambda gate, values: jnp.sum((jax.nn.silu(gate) * values) ** 2), (0, 1))(gate, values)
    mapped = jax.vmap(jax.grad(jax.checkpoint(loss), (0, 1)))(gate[:, None], values[:, None])
    for one, other in zip(mapped, expected, strict=True):
        np.testing.assert_allclose(one[:, 0], other, rtol=1e-5, atol=1e-6)


def test_elsewhere_than_on_a_cpu_it_has_a_forward_mode_derivative(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jnp.arange(1.0, 4.0)
    _, tangent = jax.jvp(lambda x: gated("relu", x, x), (x,), (x,))
    np.testing.assert_allclose(tangent, 2 * x * x, rtol=1e-6)


def recomputing_copies(gate: bool) -> int:
    """How many transposing copies in a compiled gradient of an adapted block multiply what they copy."""
    model = Decoder(DecoderConfig(29, 16, 1, 2, 1, 8, 48, gated=gate, activation="gelu_tanh"), rngs=nnx.Rngs(0))
    spec = surm.PeftSpec(family="low_rank", targets=".*(gate|up|down)", train=(), path="branch")
    graphdef, trained, frozen = surgery.split(surm.attach(model, spec, nnx.Rngs(1)))
    tokens = jnp.ones((4, 8), jnp.int32)
    loss = lambda trained, frozen: surgery.join(graphdef, trained, frozen)(tokens, targets=tokens).loss.sum()  # noqa: E731
    text = jax.jit(jax.grad(loss)).lower(trained, frozen).compile().as_text()
    fusions = re.findall(r"^%fused_computation.*?^}", text, re.MULTILINE | re.DOTALL)
    return sum("[48,4,8]" in one and " copy(" in one and " multiply(" in one for one in fusions)


@pytest.mark.parametrize("gate", [True, False])
def test_its_derivative_is_computed_once_for_all_products(monkeypatch, gate):
    assert recomputing_copies(gate) == 0
    monkeypatch.setattr(gating, "_in_reverse", gating._product)
    assert recomputing_copies(gate) > 0


def test_gate_and_values_alone_are_kept_for_the_backward_pass():
    gate, values = jnp.ones((2, 4, 3))
    kept = jax.tree.leaves(
        jax.eval_shape(lambda *given: jax.vjp(functools.partial(gated, "silu"), *given)[1], gate, values)
    )
    assert [leaf.shape for leaf in kept] == [(4, 3), (4, 3)]
