"""The encoder: what padding, segments, positions, pooling and dropout must and must not do; published sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from surm.errors import InputError
from surm.models.bert import PRESETS, Bert, BertConfig, mean_of_tokens, preset

TINY = BertConfig(30, 12, 2, 3, 24, positions=10)
PUBLISHED = {  # of the encoder with its pooler, without a head
    "bert_tiny": 4_385_920, "bert_mini": 11_170_560, "bert_small": 28_763_648, "bert_medium": 41_373_184,
    "bert_base": 109_482_240, "bert_large": 335_141_888, "minilm_l6": 22_713_216,
    "roberta_base": 124_645_632, "roberta_large": 355_359_744,
}  # fmt: skip


def _model(config: BertConfig = TINY, outputs: int = 4) -> Bert:
    return Bert(config, outputs, rngs=nnx.Rngs(0))


@pytest.fixture
def texts() -> dict[str, jax.Array]:
    tokens = jax.random.randint(jax.random.key(0), (3, 8), 1, 30)
    mask = jnp.arange(8) < jnp.array([8, 3, 5])[:, None]
    return {"tokens": tokens, "segments": (jnp.arange(8) > 1).astype(jnp.int32) * jnp.ones_like(tokens), "mask": mask}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    config = preset(name, pooling="class")
    model = nnx.eval_shape(lambda: _model(config, 1))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == PUBLISHED[name] + config.width + 1


def test_positions_before_the_first_hold_no_token():
    assert [dataclasses.replace(TINY, first_position=first).max_length for first in (0, 2)] == [10, 8]


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("first_position", [0, 2])
def test_what_fills_a_row_up_and_how_far_changes_nothing(texts, pooling, first_position):
    model = _model(dataclasses.replace(TINY, pooling=pooling, first_position=first_position))
    expected = model(**texts)
    other = jnp.where(texts["mask"], texts["tokens"], 29 - texts["tokens"])
    np.testing.assert_allclose(model(**{**texts, "tokens": other}), expected, atol=1e-6)
    short = {name: value[2:, :5] for name, value in texts.items()}
    np.testing.assert_allclose(model(**short), expected[2:], atol=1e-6)


def test_a_row_that_is_all_filling_stays_finite_in_value_and_gradient(texts):
    graph, state = nnx.split(_model(dataclasses.replace(TINY, pooling="mean")))
    nothing = {**texts, "mask": jnp.zeros_like(texts["mask"])}
    gradient = jax.grad(lambda state: nnx.merge(graph, state)(**nothing).sum())(state)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_order_segments_and_every_token_matter(texts):
    model = _model()
    expected = model(**texts)
    for changed in (
        {**texts, "segments": None},
        {**texts, "tokens": texts["tokens"].at[:, 1].set(0)},
        {**texts, "tokens": texts["tokens"].at[:, 1:3].set(texts["tokens"][:, 2:0:-1])},
    ):
        assert (jnp.abs(model(**changed) - expected).max(axis=1) > 1e-6).all()
    zeros = {**texts, "segments": jnp.zeros_like(texts["segments"])}
    np.testing.assert_array_equal(model(**zeros), model(**{**texts, "segments": None}))


def test_every_parameter_gets_a_gradient(texts):
    for pooling in ("class", "mean"):
        graph, state = nnx.split(_model(dataclasses.replace(TINY, pooling=pooling)))
        gradient = jax.grad(lambda state, graph: (nnx.merge(graph, state)(**texts) ** 2).sum())(state, graph)
        silent = [path for path, leaf in nnx.to_flat_state(gradient) if not np.abs(leaf[...]).max() > 0]
        assert silent == []


def test_the_mean_is_over_the_tokens_that_are_there():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.array([[True, True, False], [True, False, False]])
    np.testing.assert_array_equal(mean_of_tokens(x, mask), [[1, 2], [6, 7]])
    np.testing.assert_array_equal(mean_of_tokens(x, None), x.mean(axis=1))


def test_dropout_works_in_training_alone(texts):
    plain, dropping = _model(), _model(dataclasses.replace(TINY, dropout=0.5))
    nnx.update(dropping, nnx.state(plain, nnx.Param))
    assert not np.allclose(dropping(**texts), plain(**texts))
    dropping.eval()
    np.testing.assert_array_equal(dropping(**texts), plain(**texts))


def test_texts_that_are_too_long_and_impossible_shapes_are_refused():
    with pytest.raises(InputError, match="a text of 11 tokens, but the model has positions for 10"):
        _model()(jnp.zeros((1, 11), int))
    with pytest.raises(InputError, match="heads=5 does not divide width=12"):
        _model(dataclasses.replace(TINY, heads=5))
    with pytest.raises(InputError, match="no model is called 'bert_bas'.*bert_base"):
        preset("bert_bas")
    for change, message in (
        ({"activation": "geluu"}, "activation='geluu'.*gelu"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"first_position": 10}, "first_position=10"),
        ({"heads": 0}, "heads=0, expected at least 1"),
        ({"vocabulary": 0}, "vocabulary=0, expected at least 1"),
        ({"epsilon": -1.0}, "epsilon=-1.0, expected a number above 0"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(TINY, **change)
