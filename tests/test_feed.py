"""How texts reach a model: what their tokenizer's files say of length, side and segments is followed."""

import numpy as np
import pytest
from flax import nnx

from surm import config as configs
from surm.data.texts import TextSplit
from surm.models.bert import Bert, BertConfig
from surm.tasks.kinds import task_of
from surm.tasks.labels import Targets
from tests.data.test_tokenizer import BERT, write

PAIRS = TextSplit([("hello world cafe", "hello"), ("hello", "world")], np.zeros(2, np.int32))


@pytest.fixture(scope="module")
def base() -> Bert:
    return nnx.eval_shape(lambda: Bert(BertConfig(64, 8, 1, 2, 8, positions=32), 2, rngs=nnx.Rngs(0)))


def ready(base: Bert, folder, **settings):
    """The pairs as tokens, from a folder with these settings."""
    config = configs.default()
    config.data.tokenizer, config.data.lengths = str(write(folder, tokenizer_config=BERT | settings)), "8,16"
    return task_of(config, Targets(2), None, base).ready(PAIRS)


def test_a_tokenizers_limit_cuts_texts_and_says_so(base, tmp_path, capsys):
    split = ready(base, tmp_path, model_max_length=6)
    np.testing.assert_array_equal(split.lengths, [6, 5])
    np.testing.assert_array_equal(split.tokens, [2, 6, 8, 3, 6, 3, 2, 6, 3, 8, 3])
    said = "1 of 2 examples are longer than 6 tokens (model_max_length of the tokenizer) and are cut"
    assert said in capsys.readouterr().out.splitlines()


def test_a_limit_beyond_the_lengths_changes_nothing(base, tmp_path, capsys):
    split = ready(base, tmp_path, model_max_length=512)
    np.testing.assert_array_equal(split.lengths, [7, 5])
    assert "longer than" not in capsys.readouterr().out


def test_texts_are_cut_on_the_side_that_the_tokenizer_says(base, tmp_path):
    split = ready(base, tmp_path, model_max_length=6, truncation_side="left")
    np.testing.assert_array_equal(split.tokens[:6], [2, 8, 9, 3, 6, 3])


def test_the_second_text_is_told_apart_where_the_tokenizer_says(base, tmp_path):
    np.testing.assert_array_equal(ready(base, tmp_path).segments, [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1])
    without = ready(base, tmp_path, model_input_names=["input_ids", "attention_mask"])
    assert not without.segments.any() and len(without.segments) == 12
