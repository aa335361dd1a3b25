"""Attention against a naive loop over heads, and what its mask keeps out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from surm.errors import InputError
from surm.models.attention import Attention, attend


@pytest.fixture(scope="module")
def attention() -> Attention:
    layer = Attention(12, 3, rngs=nnx.Rngs(0))
    for index, linear in enumerate((layer.query, layer.key, layer.value, layer.output)):
        linear.bias.set_value(jax.random.normal(jax.random.key(index), (12,)))
    return layer


@pytest.fixture(scope="module")
def tokens() -> jax.Array:
    return jax.random.normal(jax.random.key(9), (2, 5, 12))


def _naive(layer: Attention, x: np.ndarray, heads: int) -> np.ndarray:
    """softmax(Q Kᵀ / √d) V, head by head, in float64."""
    maps = (layer.query, layer.key, layer.value)
    query, key, value = (x @ np.float64(m.kernel[...]) + np.float64(m.bias[...]) for m in maps)
    size, mixed = x.shape[1] // heads, np.zeros_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        weight = np.exp(query[:, part] @ key[:, part].T / np.sqrt(size))
        mixed[:, part] = weight / weight.sum(axis=1, keepdims=True) @ value[:, part]
    return mixed @ np.float64(layer.output.kernel[...]) + np.float64(layer.output.bias[...])


def test_it_is_the_formula(attention, tokens):
    expected = [_naive(attention, np.float64(example), 3) for example in tokens]
    np.testing.assert_allclose(attention(tokens), expected, rtol=1e-5, atol=1e-5)


def test_masked_tokens_have_no_influence(attention, tokens):
    mask = jnp.asarray([[True, True, False, True, False], [True] * 5])
    influence = jax.jacobian(lambda x: attention(x, mask)[:, 0].sum(axis=1))(tokens)
    reached = jnp.abs(influence).max(axis=3) > 0  # (of example, by example, by token)
    np.testing.assert_array_equal(reached[0, 0], mask[0])
    np.testing.assert_array_equal(reached[1, 1], mask[1])
    assert not reached[0, 1].any() and not reached[1, 0].any()


def test_masking_equals_leaving_out(attention, tokens):
    mask = jnp.broadcast_to(jnp.arange(5) < 3, (2, 5))
    np.testing.assert_allclose(attention(tokens, mask)[:, :3], attention(tokens[:, :3]), rtol=1e-5, atol=1e-6)


def test_a_full_mask_is_no_mask(attention, tokens):
    full = jnp.ones((2, 5), bool)
    np.testing.assert_allclose(attention(tokens, full), attention(tokens), rtol=1e-6, atol=1e-6)


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match="heads=5 does not divide width=12"):
        Attention(12, 5, rngs=nnx.Rngs(0))


def test_where_nothing_is_admitted_all_count_alike_and_gradients_are_finite(attention, tokens):
    nothing = jnp.zeros((2, 5), bool)
    mean = attention.output(jnp.broadcast_to(attention.value(tokens).mean(axis=1, keepdims=True), tokens.shape))
    np.testing.assert_allclose(attention(tokens, nothing), mean, rtol=1e-5, atol=1e-5)
    assert bool(jnp.isfinite(jax.grad(lambda x: attention(x, nothing).sum())(tokens)).all())


def test_half_precision_stays_half_with_the_softmax_in_single():
    query, key, value = (jax.random.normal(jax.random.key(i), (2, 3, 7, 8)) for i in range(3))
    half = attend(*(x.astype(jnp.bfloat16) for x in (query, key, value)))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), attend(query, key, value), atol=3e-2)
    large = attend(1e4 * query, key, value)  # no overflow
    assert bool(jnp.isfinite(large).all())


def test_scores_of_half_precision_are_not_rounded_before_the_softmax():
    # Scores near 300 are rounded to multiples of 2 in bfloat16; the softmax turns a difference of 1 into a factor of e.
    key = jnp.stack([jnp.full(64, 5.0), jnp.full(64, 5.0).at[:8].set(5.03125)]).astype(jnp.bfloat16)[None, None]
    query = jnp.full((1, 1, 2, 64), 8.0, jnp.bfloat16)
    value = jnp.eye(2, 64, dtype=jnp.bfloat16)[None, None]
    difference = 8 * 8.0 * 0.03125 / 8  # of the two scores
    expected = 1 / (1 + np.exp([difference, -difference]))
    np.testing.assert_allclose(attend(query, key, value)[0, 0, 0, :2].astype(jnp.float32), expected, atol=5e-3)
