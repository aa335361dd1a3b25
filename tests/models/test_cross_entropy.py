"""Cross-entropy in chunks: optax's of all logits, its gradients, and no array of all logits."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import surm
from surm.models import cross_entropy
from surm.models.decoder import Decoder, DecoderConfig
from surm.peft import surgery

VOCABULARY, WIDTH = 53, 12
TARGETS = jax.random.randint(jax.random.key(0), (3, 10), 0, VOCABULARY)
WEIGHTS = jax.random.uniform(jax.random.key(1), (3, 10)) * (TARGETS % 3 > 0)
X = jax.random.normal(jax.random.key(2), (3, 10, WIDTH))
KERNEL = jax.random.normal(jax.random.key(3), (WIDTH, VOCABULARY))
HEADS = {
    "kernel": lambda arrays, x: x @ arrays["kernel"],
    "tied": lambda arrays, x: x @ arrays["kernel"].T.T + arrays["bias"],
    "capped": lambda arrays, x: 3 * jnp.tanh(x @ arrays["kernel"] / 3),
}
ARRAYS = {"kernel": KERNEL, "bias": jnp.linspace(-1, 1, VOCABULARY)}
scores = functools.partial(cross_entropy.scores, vocabulary=VOCABULARY)


def of_optax(head, arrays, x, targets=TARGETS):
    logits = head(arrays, x).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return loss, (logits.argmax(-1) == targets).astype(jnp.float32)


def weighted(of):
    """The weighted loss, with all else beside it."""
    return lambda arrays, x: (jnp.sum(of(arrays, x)[0] * WEIGHTS), of(arrays, x))


@functools.cache
def both(head: str, chunk: int | None):
    """Values and gradients, by ours and by optax's."""
    ours = weighted(lambda arrays, x: scores(HEADS[head], arrays, x, TARGETS, chunk=chunk))
    theirs = weighted(functools.partial(of_optax, HEADS[head]))
    return jax.jit(lambda arrays, x: [jax.grad(of, (0, 1), has_aux=True)(arrays, x) for of in (ours, theirs)])(
        ARRAYS, X
    )


@pytest.mark.parametrize(("head", "chunk"), [("kernel", 4), ("tied", None), ("capped", 5)])
def test_values_and_both_gradients_are_optaxs(head, chunk):
    (gradients, found), (gradients_theirs, expected) = both(head, chunk)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients_theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_first_of_equal_words_is_the_most_probable():
    found = scores(lambda _, x: jnp.zeros((*x.shape[:-1], VOCABULARY)), {}, X, TARGETS.at[0, :3].set(0))
    np.testing.assert_array_equal(found.correct, TARGETS.at[0, :3].set(0) == 0)
    np.testing.assert_allclose(found.loss, math.log(VOCABULARY), rtol=1e-6)


def test_the_most_probable_words_are_correct_and_others_are_not():
    best = (X @ KERNEL).argmax(-1).at[:, ::2].add(1) % VOCABULARY
    found = scores(HEADS["kernel"], ARRAYS, X, best)
    np.testing.assert_array_equal(found.correct, jnp.broadcast_to(jnp.arange(10) % 2, (3, 10)))


def test_targets_that_are_no_words_give_finite_losses():
    assert np.isfinite(scores(HEADS["kernel"], ARRAYS, X, jnp.full_like(TARGETS, -100)).loss).all()


@jax.jit
def of_members(kernels):
    def of_one(kernel):
        loss = lambda kernel, x: jnp.sum(scores(HEADS["kernel"], {"kernel": kernel}, x, TARGETS, chunk=5).loss)  # noqa: E731
        plain = lambda kernel, x: jnp.sum(of_optax(HEADS["kernel"], {"kernel": kernel}, x)[0])  # noqa: E731
        return [jax.grad(own, (0, 1))(kernel, X * kernel[0, 0]) for own in (loss, plain)]

    return jax.vmap(of_one)(kernels)


def test_members_of_a_population_have_kernels_of_their_own():
    found, expected = of_members(jnp.stack([KERNEL, 2 * KERNEL, -KERNEL]))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def largest(text: str) -> int:
    """The number of entries of the largest array of a program, in any form."""
    shapes = re.findall(r"\b(?:f32|bf16|pred|s32)\[([\d,]+)\]", text)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


@pytest.mark.parametrize("trained", [(0, 1), 1])
def test_no_array_of_all_logits_exists(trained):
    words, tokens = 997, 256
    targets = jnp.zeros((2, tokens), int)

    def loss(kernel, x):
        found = cross_entropy.scores(lambda kernel, x: x @ kernel, kernel, x, targets, vocabulary=words, chunk=16)
        return found.loss.sum()

    shapes = jnp.zeros((8, words)), jnp.zeros((2, tokens, 8))
    compiled = jax.jit(jax.value_and_grad(loss, trained)).lower(*shapes).compile()
    assert largest(compiled.as_text()) < 2 * tokens * words / 8
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * tokens * words


TINY = DecoderConfig(VOCABULARY, 16, 1, 2, 1, 8, 24)


def decoder(tied: bool, **spec) -> Decoder:
    model = Decoder(dataclasses.replace(TINY, tied=tied, logit_cap=0.5 if tied else None), rngs=nnx.Rngs(0))
    return surm.attach(model, surm.PeftSpec(**spec), nnx.Rngs(1))


@pytest.mark.parametrize(
    ("tied", "spec"),
    [
        (False, {"method": "full"}),
        (True, {"method": "full"}),
        (False, {"family": "low_rank", "targets": ".*value|lm_head", "train": ()}),
    ],
    ids=["full", "tied", "adapted"],
)
def test_a_decoder_scores_what_it_answers(tied, spec):
    graphdef, trainable, frozen = surgery.split(decoder(tied, **spec))
    trainable = {path: array + 0.05 * jnp.cos(jnp.arange(array.size)).reshape(array.shape)
                 for path, array in trainable.items()}  # fmt: skip

    def ours(trainable, frozen):
        found = surgery.join(graphdef, trainable, frozen)(TARGETS, targets=TARGETS[:, ::-1])
        return jnp.sum(found.loss * WEIGHTS), found

    def theirs(trainable, frozen):
        logits = surgery.join(graphdef, trainable, frozen)(TARGETS)
        found = of_optax(lambda logits, _: logits, logits, X, TARGETS[:, ::-1])
        return jnp.sum(found[0] * WEIGHTS), found

    both = jax.jit(lambda *parts: [jax.value_and_grad(of, has_aux=True)(*parts) for of in (ours, theirs)])
    for one, other in zip(*map(jax.tree.leaves, both(trainable, frozen)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_chunks_draw_different_masks():
    dropped = lambda key, x: jax.random.bernoulli(key, 0.5, (*x.shape[:2], VOCABULARY)).astype(x.dtype)  # noqa: E731
    loss = scores(dropped, jax.random.key(0), X, jnp.zeros_like(TARGETS), chunk=5).loss
    assert not np.array_equal(loss[:, :5], loss[:, 5:])
