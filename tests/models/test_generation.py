"""Generation is what a loop over the whole text says without a cache, whatever stands beside a row."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from surm import InputError
from surm.models import decoder, generation, generation_loop, sampling
from surm.models.generation import Decoding, generate
from surm.models.sampling import Sampling

TINY = decoder.DecoderConfig(61, 16, 2, 4, 2, 4, 24, positions=40, tied=True)
PROMPTS = [[5, 9, 31], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [60, 0]]
DRAWN = Sampling(temperature=1.3, top_k=20, top_p=0.9, repetition_penalty=1.2)


@pytest.fixture(scope="module")
def model() -> decoder.Decoder:
    """With weights so large that the tokens matter."""
    made = decoder.Decoder(TINY, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(made)
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(state)))
    leaves = [leaf + 0.4 * jax.random.normal(key, leaf.shape)
              for leaf, key in zip(jax.tree.leaves(state), keys, strict=True)]  # fmt: skip
    return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), leaves))


@pytest.fixture(scope="module")
def naive(model):
    """A function from a prompt to its continuation by the largest logits, over the whole text again for every token."""

    @jax.jit
    def logits(tokens, length):
        segments = (jnp.arange(tokens.shape[1]) < length)[None].astype(jnp.int32)
        return model(tokens, segments=segments)[0, length - 1]

    def continued(prompt: list[int], number: int, penalty: float = 1.0) -> list[int]:
        text = list(prompt)
        for _ in range(number):
            found = np.array(logits(np.array([text + [0] * (40 - len(text))]), len(text)))
            of_text = found[[*{*text}]]
            found[[*{*text}]] = np.where(of_text < 0, of_text * penalty, of_text / penalty)
            text.append(int(found.argmax()))
        return text[len(prompt) :]

    return continued


@pytest.mark.parametrize("penalty", [1.0, 1.8])
def test_greedy_is_the_loop_without_a_cache_for_every_row_of_a_batch(model, naive, penalty):
    expected = [naive(prompt, 12, penalty) for prompt in PROMPTS]
    assert len({*map(tuple, expected)}) == len(expected) and len({*expected[0]}) > 3
    assert generate(model, PROMPTS, max_new_tokens=12, sampling=Sampling(repetition_penalty=penalty)) == expected
    assert (expected != [naive(prompt, 12) for prompt in PROMPTS]) == (penalty > 1)


def test_a_piece_at_a_time_is_the_whole_at_once(model, naive):
    decoding = Decoding(model, PROMPTS, max_new_tokens=12)
    for _ in range(3):
        decoding.advance(5)
    assert decoding.ended.all() and decoding.tokens == [naive(prompt, 12) for prompt in PROMPTS]


def test_a_row_ends_at_an_end_token_which_is_left_out_and_all_end_early(model, naive):
    expected = [naive(prompt, 12) for prompt in PROMPTS]
    ends = {tokens[4] for tokens in expected}
    first = [min(tokens.index(end) for end in ends if end in tokens) for tokens in expected]
    decoding = Decoding(model, PROMPTS, max_new_tokens=12, ends=ends)
    decoding.advance()
    assert decoding.tokens == [tokens[:place] for tokens, place in zip(expected, first, strict=True)]
    assert int(decoding._progress.number) == max(first) + 1 < 12


def test_rows_that_are_ended_from_outside_stay_as_they_are(model, naive):
    decoding = Decoding(model, PROMPTS, max_new_tokens=12)
    decoding.advance(5)
    decoding.end([1, 2])
    decoding.advance()
    lengths = (12, 5, 5, 12)
    assert decoding.tokens == [naive(prompt, n) for prompt, n in zip(PROMPTS, lengths, strict=True)]


def test_a_text_ends_with_the_context(model, naive):
    prompt = [*range(1, 38)]
    texts = generate(model, [prompt, PROMPTS[0]], max_new_tokens=12)
    assert [*map(len, texts)] == [4, 12]  # the last token is never read
    assert texts[1] == naive(PROMPTS[0], 12) and texts[0] == naive(prompt, 4)
    assert len(generate(model, [[1] * 40], max_new_tokens=12)[0]) == 1


def test_more_padding_than_the_context_has_positions_is_harmless():
    shape = dataclasses.replace(TINY, depth=1, positions=20, learned_positions=True)
    model = decoder.Decoder(shape, rngs=nnx.Rngs(0))
    decoding = Decoding(model, [[*range(1, 19)], PROMPTS[0]], max_new_tokens=6)  # in a bucket of 32
    decoding.advance()
    cache, (long, short) = decoding._progress.cache, decoding.tokens
    assert [len(long), len(short)] == [3, 6]
    assert all(np.isfinite(array).all() for array in (*cache.keys, *cache.values))
    text = jnp.array([PROMPTS[0] + short])
    assert model(text)[0].argmax(-1)[len(PROMPTS[0]) - 1 : -1].tolist() == short


def test_random_texts_depend_on_the_seed_and_the_rows_number_alone(model):
    draw = functools.partial(Decoding, model, max_new_tokens=12, sampling=DRAWN)

    def texts(*arguments, **options):
        decoding = draw(*arguments, **options)
        decoding.advance()
        return decoding.tokens

    both = texts([PROMPTS[0], PROMPTS[0], PROMPTS[1]], seed=3)
    assert both == texts([PROMPTS[0], PROMPTS[0], PROMPTS[1]], seed=3)
    assert both != texts([PROMPTS[0], PROMPTS[0], PROMPTS[1]], seed=4) and both[0] != both[1]
    assert texts([PROMPTS[1]], seed=3, rows=[2]) == both[2:]
    assert texts([PROMPTS[2], PROMPTS[0]], seed=3, rows=[0, 1])[1] == both[1]


def test_the_cache_grows_with_the_text(model, naive, monkeypatch):
    expected = [naive(prompt, 12) for prompt in PROMPTS]
    monkeypatch.setattr(generation, "_ROOM", 2)
    decoding = Decoding(model, PROMPTS, max_new_tokens=12)
    rooms = []
    for _ in range(7):
        rooms.append(decoding._progress.tokens.shape[1])
        assert decoding._progress.cache.keys[0].shape[2] == 16 + rooms[-1]
        decoding.advance(2)
    assert rooms == [2, 2, 8, 8, 8, 16, 16] and decoding.tokens == expected
    assert generate(model, PROMPTS, max_new_tokens=12) == expected


def test_programs_are_compiled_for_buckets_and_kinds_of_sampling_alone(model):
    def compiled() -> tuple[int, int]:
        return generation_loop.fill._cache_size(), generation_loop.advance._cache_size()

    def run(lengths: list[int], new: int, **options) -> None:
        decoding = Decoding(model, [[3] * length for length in lengths], max_new_tokens=new, **options)
        decoding.advance(2)
        decoding.advance()

    run([3, 5, 7, 2], 12, sampling=DRAWN)
    before = compiled()
    run([1, 17, 2, 4], 3, sampling=Sampling(temperature=0.2, top_k=20, top_p=0.3, repetition_penalty=2.0), seed=4)
    run([4, 4, 16], 16, sampling=DRAWN, rows=[8, 9, 11])
    assert compiled() == before
    run([18], 16, sampling=DRAWN)  # other buckets
    assert compiled() == (before[0] + 1, before[1] + 1)


def test_the_loop_copies_no_cache(model):
    decoding = Decoding(model, [PROMPTS[0]], max_new_tokens=12)
    leaves, form = jax.tree.flatten(decoding._progress)
    graphdef, weights = decoding._parts

    def advanced(leaves, weights, until, keys, ends):
        progress = jax.tree.unflatten(form, leaves)
        advance = generation_loop.advance.__wrapped__
        return jax.tree.leaves(advance(graphdef, weights, progress, until, {}, keys, ends, top_k=None))

    lowered = jax.jit(advanced, donate_argnums=0).lower(leaves, weights, 16, decoding._keys, decoding._end_tokens)
    program = lowered.compile()
    numbers = decoding._progress.cache.keys[0].size
    copied = re.findall(r"= \w+\[([\d,]+)\]\S* (?:copy|transpose)\(", program.as_text())
    assert copied and not [shape for shape in copied if np.prod([*map(int, shape.split(","))]) == numbers]
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes > 0.95 * memory.output_size_in_bytes


def test_one_token_is_the_most_probable_one_when_nothing_else_is_left(model, naive):
    expected = [naive(prompt, 12) for prompt in PROMPTS]
    for narrow in (Sampling(temperature=2.0, top_k=1), Sampling(temperature=2.0, top_p=1e-6)):
        assert generate(model, PROMPTS, max_new_tokens=12, sampling=narrow) == expected


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    logits, rows = jnp.array([2.0, 1.0, 1.0, 0.0, -1.0, -jnp.inf]), 4000
    keys = jax.random.split(jax.random.key(0), rows)
    draw = jax.jit(sampling.choose, static_argnames="top_k")
    for numbers, top_k, weights in [
        ({"temperature": 1.0}, None, np.exp([2, 1, 1, 0, -1, -np.inf])),
        ({"temperature": 2.0}, None, np.exp(np.array([2, 1, 1, 0, -1, -np.inf]) / 2)),
        ({"temperature": 1.0}, 2, np.exp([2, 1, 1, -np.inf, -np.inf, -np.inf])),  # both that equal the second
        ({"temperature": 1.0, "top_p": 0.7}, None, np.exp([2, -np.inf, 1, -np.inf, -np.inf, -np.inf])),
        ({"temperature": 1.0, "top_p": 0.75}, 3, np.exp([2, -np.inf, 1, -np.inf, -np.inf, -np.inf])),
    ]:
        tokens = draw(jnp.broadcast_to(logits, (rows, 6)), numbers, top_k=top_k, keys=keys)
        share, expected = np.bincount(tokens, minlength=6) / rows, weights / weights.sum()
        np.testing.assert_array_less(np.abs(share - expected), 4 * np.sqrt(expected * (1 - expected) / rows) + 1e-9)


def test_a_penalty_makes_every_seen_token_less_probable():
    logits, seen = jnp.array([[2.0, -2.0, 2.0, -2.0]]), jnp.array([[True, True, False, False]])
    np.testing.assert_array_equal(sampling.penalised(logits, seen, 2.0), [[1, -4, 2, -2]])


def test_settings_that_change_nothing_are_no_part_of_the_program():
    assert Sampling(temperature=1.0, top_k=0).numbers == {"temperature": 1.0}
    assert Sampling(top_k=5, top_p=0.5).numbers == {} == sampling.GREEDY.numbers
    assert DRAWN.numbers.keys() == {"temperature", "top_p", "repetition_penalty"}


def test_nothing_is_generated_from_no_prompts(model):
    assert generate(model, [], max_new_tokens=3) == []


@pytest.mark.parametrize(
    ("prompts", "given", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty, expected at least one token"),
        ([[1] * 41], {}, "prompt 0 has 41 tokens, but the model's context has 40"),
        ([[1, 61]], {}, "prompt 0 has tokens from 1 to 61, expected 0 to 60, the model's vocabulary"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0, expected a whole number of at least 1"),
        ([[1]], {"seed": -1}, "seed=-1, expected a whole number of at least 0"),
    ],
)
def test_prompts_and_numbers_are_refused_in_a_line(model, prompts, given, message):
    with pytest.raises(InputError) as error:
        generate(model, prompts, **{"max_new_tokens": 4, **given})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1, expected a number of at least 0"),
        ({"temperature": float("nan")}, "temperature=nan, expected a number of at least 0"),
        ({"top_p": 0.0}, "top_p=0.0, expected a number above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p=1.1, expected a number above 0 and at most 1"),
        ({"top_k": -1}, "top_k=-1, expected None or a whole number of at least 0"),
        ({"repetition_penalty": 0}, "repetition_penalty=0, expected a number above 0"),
    ],
)
def test_sampling_is_refused_in_a_line(given, message):
    with pytest.raises(InputError) as error:
        Sampling(**given)
    assert str(error.value) == message


def test_buckets_are_few():
    assert {generation.bucket(number) for number in range(1025)} == {16, 32, 64, 128, 256, 512, 768, 1024}
    assert all(generation.bucket(number) >= number for number in range(1025))
