"""Decoders: who sees whom, the cache, windows, rotations, published sizes; tests/parity compares with transformers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from surm.errors import InputError
from surm.models.causal_attention import attend_grouped, visible
from surm.models.decoder import PRESETS, Decoder, positions_of, preset
from surm.models.decoder_shape import DecoderConfig, Layer, repeated
from surm.models.rotary import Rotary, angles, rotated
from surm.models.rotary_scaling import DynamicScaling, LinearScaling, Llama3Scaling, LongScaling, YarnScaling

PUBLISHED = {  # parameters, a tied table counted once
    "smollm2_135m": 134_515_008, "smollm2_360m": 361_821_120, "smollm2_1_7b": 1_711_376_384,
    "llama3_2_1b": 1_235_814_400, "llama3_2_3b": 3_212_749_824, "llama3_1_8b": 8_030_261_248,
    "qwen2_5_0_5b": 494_032_768, "qwen2_5_1_5b": 1_543_714_304, "qwen2_5_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920, "qwen3_1_7b": 1_720_574_976, "qwen3_8b": 8_190_735_360, "mistral_7b": 7_241_732_096,
    "gemma2_2b": 2_614_341_888, "gemma3_1b": 999_885_952, "smollm3_3b": 3_075_098_624, "phi3_mini": 3_821_079_552,
    "gpt2": 124_439_808,
}  # fmt: skip
WINDOW = 3
LAYERS = (Layer(WINDOW, Rotary(50.0)), Layer(None, Rotary(500.0, LinearScaling(2.0))), Layer(rotary=None))
SWITCHED = DecoderConfig(
    40, 16, 3, 4, 2, 6, 20, layers=LAYERS, biases=("query", "down"), norm_offset=1.0, head_norms=True,
    branch_norms=True, scaled_words=True, score_size=9, score_cap=3.0, logit_cap=5.0,
)  # fmt: skip
OTHER = DecoderConfig(
    40, 12, 1, 3, 3, 4, 16, positions=10, layers=(Layer(rotary=None),), gated=False, centred=True, tied=True,
    learned_positions=True, activation="gelu_tanh", biases=("query", "key", "value", "output", "up", "down"),
)  # fmt: skip
CONFIGS = {"switched": SWITCHED, "other": OTHER}
SEGMENTS = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 2, 2, 0]], np.int32)


def filled(config: DecoderConfig) -> Decoder:
    """A model with random numbers in every variable, so that no norm or bias is without effect."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(1)
    numbers = [jnp.asarray((leaf.ndim == 1) + 0.3 * rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, numbers))


class Model:
    """A model with noise, compiled once for rows of eight tokens."""

    def __init__(self, config: DecoderConfig):
        self.config = config
        self.graph, self.state = nnx.split(filled(config))
        self.tokens = np.stack([np.random.default_rng(row).permutation(config.vocabulary)[:8] for row in range(3)])
        self.run = jax.jit(lambda state, tokens, segments: nnx.merge(self.graph, state)(tokens, segments=segments))
        self.step = jax.jit(lambda state, *given: nnx.merge(self.graph, state)(
            given[0], positions=given[1], segments=given[2], cache=given[3]
        ))  # fmt: skip
        self.logits = np.asarray(self.run(self.state, self.tokens, SEGMENTS))


@pytest.fixture(scope="module", params=CONFIGS)
def model(request) -> Model:
    return Model(CONFIGS[request.param])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    shape = preset(name)

    def count(depth: int) -> int:
        smaller = dataclasses.replace(shape, depth=depth)
        model = nnx.eval_shape(lambda: Decoder(smaller, rngs=nnx.Rngs(0)))
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))

    one, two = count(1), count(2)
    assert one + (shape.depth - 1) * (two - one) == PUBLISHED[name]


def test_no_logit_depends_on_later_tokens_or_on_other_segments(model):
    """By the gradient: every row holds every word once at most, so a word's row of the table is a token's."""
    weights = np.random.default_rng(5).normal(size=model.config.width).astype(np.float32)
    place = ("embed", "word", "embedding")

    @jax.jit
    def sensitivities(state):
        flat = dict(nnx.to_flat_state(state))

        def sums(table):
            decoder = nnx.merge(model.graph, nnx.from_flat_state(flat | {place: flat[place].replace(table)}))
            x = decoder.hidden_states(jnp.asarray(model.tokens), segments=jnp.asarray(SEGMENTS))[0][-1]
            return decoder.norm(x) @ weights

        return jax.jacrev(sums)(flat[place][...])

    found = np.abs(np.asarray(sensitivities(model.state))).max(-1)  # (row, token, word)
    for row in range(3):
        seen = found[row][:, model.tokens[row]] > 0
        ours = SEGMENTS[row] > 0
        expected = np.tril(SEGMENTS[row][:, None] == SEGMENTS[row][None, :])
        np.testing.assert_array_equal(seen[ours], expected[ours], err_msg=f"row {row}")


def test_what_padding_holds_changes_nothing(model):
    other = np.where(SEGMENTS > 0, model.tokens, 39 - model.tokens)
    found = np.asarray(model.run(model.state, other, SEGMENTS))
    np.testing.assert_allclose(found[SEGMENTS > 0], model.logits[SEGMENTS > 0], atol=1e-5)
    assert np.isfinite(found).all()


def test_packed_texts_are_as_each_alone(model):
    alone = np.zeros_like(model.tokens), np.zeros_like(SEGMENTS)
    alone[0][2, 4:], alone[1][2, 4:] = model.tokens[2, 3:7], 7  # another place, another number
    found = np.asarray(model.run(model.state, *alone))
    np.testing.assert_allclose(found[2, 4:], model.logits[2, 3:7], atol=1e-5)


def test_the_cache_gives_what_whole_rows_give(model):
    positions = np.asarray(positions_of(jnp.asarray(SEGMENTS)))
    cache = nnx.merge(model.graph, model.state).empty_cache(3, 10)
    found = []
    for start, end in [(0, 5), (5, 6), (6, 7), (7, 8)]:
        given = (array[:, start:end] for array in (model.tokens, positions, SEGMENTS))
        logits, cache = model.step(model.state, *given, cache)
        found.append(np.asarray(logits))
    assert cache.length == 8 and np.array_equal(cache.segments[:, :8], SEGMENTS)
    expected = model.logits[SEGMENTS > 0]
    np.testing.assert_allclose(np.concatenate(found, 1)[SEGMENTS > 0], expected, atol=2e-5 * np.abs(expected).max())


def test_tokens_behind_those_of_a_cache_go_on_counting_in_their_segments(model):
    cache = nnx.merge(model.graph, model.state).empty_cache(3, 10)
    for start, end in [(0, 5), (5, 8)]:
        given = model.tokens[:, start:end], None, SEGMENTS[:, start:end]
        logits, cache = model.step(model.state, *given, cache)
    seen, expected = SEGMENTS[:, 5:] > 0, model.logits[:, 5:]
    np.testing.assert_allclose(logits[seen], expected[seen], atol=2e-5 * np.abs(model.logits).max())


def test_targets_beside_a_cache_are_refused(model):
    decoder, tokens = nnx.merge(model.graph, model.state), jnp.ones((1, 2), jnp.int32)
    with pytest.raises(InputError, match="targets and a cache are both given; targets must be given without one"):
        decoder(tokens, cache=decoder.empty_cache(1, 2), targets=tokens)


def test_more_tokens_than_a_cache_has_slots_are_refused(model):
    decoder = nnx.merge(model.graph, model.state)
    with pytest.raises(InputError, match="^8 tokens for a cache of 7 slots, expected a slot for every token$"):
        decoder(jnp.asarray(model.tokens), cache=decoder.empty_cache(3, 7))


def test_every_parameter_gets_a_gradient(model):
    gradient = jax.grad(lambda state: (model.run(state, model.tokens, SEGMENTS) ** 2).sum())(model.state)
    silent = [path for path, leaf in nnx.to_flat_state(gradient) if not np.abs(leaf[...]).max() > 0]
    assert silent == []


def test_bfloat16_is_near_float32():
    model = Model(SWITCHED)
    graph = nnx.split(nnx.eval_shape(lambda: Decoder(SWITCHED, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))))[0]
    found = jax.jit(lambda state, *given: nnx.merge(graph, state)(given[0], segments=given[1]))(
        model.state, model.tokens, SEGMENTS
    )
    assert found.dtype == jnp.bfloat16
    difference = np.abs(np.asarray(found, np.float32) - model.logits)[SEGMENTS > 0]
    assert 1e-4 < difference.max() < 0.1 * np.abs(model.logits).max()


def test_blocks_of_one_decoder_are_alike_in_all_that_is_compiled():
    graphs = {nnx.split(block)[0] for block in filled(SWITCHED).blocks}
    assert len(graphs) == 1 and len({*SWITCHED.every_layer}) == 3


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_the_mask_is_its_definition(window, first):
    queries, keys = np.array([[1, 1, 0, 2]]), np.array([[1, 1, 1, 1, 0, 2, 2]])
    found = np.asarray(visible(jnp.asarray(queries), jnp.asarray(keys), first, window))
    for token in range(4):
        for slot in range(7):
            near = slot <= first + token and (window is None or first + token - slot < window)
            same = queries[0, token] == keys[0, slot] != 0
            assert found[0, token, slot] == (near and same), (token, slot)


@pytest.mark.parametrize("cap", [None, 0.7])
def test_grouped_attention_is_its_definition(cap):
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=size) for size in ((2, 4, 3, 5), (2, 2, 6, 5), (2, 2, 6, 5)))
    mask = rng.random((2, 3, 6)) < 0.6
    mask[..., 0] = True
    found = attend_grouped(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)), jnp.asarray(mask), 0.3, cap)
    key, value = (np.repeat(x, 2, axis=1) for x in (key, value))
    scores = 0.3 * np.einsum("bhqs,bhks->bhqk", query, key)
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    weights = np.exp(scores) * mask[:, None]
    expected = np.einsum("bhqk,bhks->bhqs", weights / weights.sum(-1, keepdims=True), value)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_rotation_is_a_product_of_complex_numbers(share):
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 8)).astype(np.float32)
    positions, planes = np.array([[0, 5, 2]]), int(4 * share)
    found = np.asarray(rotated(jnp.asarray(x), angles(Rotary(100.0, share=share), jnp.asarray(positions), 8)))
    turns = np.exp(1j * positions[:, None, :, None] * 100.0 ** (-np.arange(planes) / planes))
    turned = (x[..., :planes] + 1j * x[..., planes : 2 * planes]) * turns
    expected = np.concatenate([turned.real, turned.imag, x[..., 2 * planes :]], -1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def _llama3(frequency: float) -> float:
    wave = 2 * math.pi / frequency
    if wave < 64 / 4:
        return frequency
    if wave > 64 / 1:
        return frequency / 8
    smooth = (64 / wave - 1) / (4 - 1)
    return (1 - smooth) * frequency / 8 + smooth * frequency


def _yarn(plane: int, frequency: float) -> float:
    limit = lambda turns: 8 * math.log(64 / (turns * 2 * math.pi)) / math.log(100)  # noqa: E731
    low, high = max(math.floor(limit(4.0)), 0), min(math.ceil(limit(1.0)), 15)
    stretched = min(max((plane - low) / (high - low), 0), 1)
    return stretched * frequency / 8 + (1 - stretched) * frequency


def test_scalings_are_their_definitions():
    plain = Rotary(100.0).frequencies(16)
    np.testing.assert_allclose(plain, [100 ** (-2 * i / 16) for i in range(8)])
    of = lambda scaling, length=9: np.asarray(Rotary(100.0, scaling).frequencies(16, length))  # noqa: E731
    np.testing.assert_allclose(of(LinearScaling(4.0)), plain / 4)
    np.testing.assert_allclose(of(Llama3Scaling(8.0, 1.0, 4.0, 64)), [*map(_llama3, plain)])
    yarn = of(YarnScaling(8.0, 64, 1.3, fast=4.0))
    np.testing.assert_allclose(yarn, [_yarn(plane, frequency) for plane, frequency in enumerate(plain)])
    assert 1 < (plain / yarn).max() <= 8 and (plain / yarn).min() == 1
    np.testing.assert_allclose(of(DynamicScaling(3.0, 10)), plain, rtol=1e-6)
    longer = (100 * (3 * 20 / 10 - 2) ** (16 / 14)) ** (-np.arange(8) / 8)
    np.testing.assert_allclose(of(DynamicScaling(3.0, 10), 20), longer, rtol=1e-5)
    short, long = tuple(np.linspace(1, 2, 8)), tuple(np.linspace(3, 9, 8))
    np.testing.assert_allclose(of(LongScaling(short, long, 10), 10), plain / short, rtol=1e-6)
    np.testing.assert_allclose(of(LongScaling(short, long, 10), 11), plain / long, rtol=1e-6)


def test_the_amplitude_multiplies_what_is_turned():
    positions = jnp.array([[0, 3]])
    plain, wide = (angles(Rotary(9.0, YarnScaling(1.0, 64, by)), positions, 4) for by in (1.0, 1.5))
    np.testing.assert_allclose(np.asarray(wide), 1.5 * np.asarray(plain), rtol=1e-6)


def test_records_of_layers_repeat():
    assert dataclasses.replace(SWITCHED, depth=5).every_layer == (*LAYERS, *LAYERS[:2])
    assert repeated((*LAYERS, *LAYERS[:2])) == LAYERS
    assert repeated((LAYERS[0], LAYERS[0])) == LAYERS[:1]
    assert repeated(LAYERS) == LAYERS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_value_heads": 3}, "key_value_heads=3 does not divide heads=4"),
        ({"activation": "sliu"}, "activation='sliu'; nearest: silu"),
        ({"biases": ("querry",)}, "biases names 'querry'; nearest: query"),
        ({"layers": ()}, "layers is empty"),
        ({"head_size": 5}, "head_size=5, share=1.0: 5 coordinates turn, expected an even number"),
        ({"layers": (Layer(rotary=Rotary(share=0.3)),)}, "head_size=6, share=0.3: 1 coordinates turn"),
        (
            {"layers": (Layer(rotary=Rotary(scaling=LongScaling((1.0,) * 3, (1.0,), 8))),)},
            "1 factors of rotary embeddings, expected 3",
        ),
        ({"depth": 0}, "depth=0, expected at least 1"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SWITCHED, **changes)


def test_impossible_records_are_refused():
    with pytest.raises(InputError, match="window=0"):
        Layer(0)
    with pytest.raises(InputError, match="base=-1"):
        Rotary(-1)
    with pytest.raises(InputError, match="share=0"):
        Rotary(share=0)
    with pytest.raises(InputError, match="no model is called 'smollm2_135'; nearest: smollm2_135m"):
        preset("smollm2_135")
