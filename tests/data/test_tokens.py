"""Texts to tokens to batches: what each batch holds, every example once, resumption, few lengths."""

import pathlib

import numpy as np
import pytest

from surm.data import tokens
from surm.data.texts import TextSplit
from surm.errors import InputError
from tests.data import small_texts
from tests.data.going_on import assert_goes_on

LENGTHS = (6, 8, 12)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokens.open_tokenizer(small_texts.write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def split(tokenizer) -> tokens.TokenSplit:
    texts, labels = zip(*small_texts.sentences(50), strict=True)
    return tokens.encode(TextSplit([(text,) for text in texts], np.array(labels, np.int32)), tokenizer, 12)


def rows(batches) -> list[tuple]:
    """Every real example of some batches: its tokens without what fills it up, and its label."""
    found = []
    for batch in batches:
        for row in np.flatnonzero(batch["mask"]):
            attended = batch["attended"][row]
            assert not batch["tokens"][row][~attended].any() and (np.diff(attended.astype(int)) <= 0).all()
            found.append((tuple(batch["tokens"][row][attended].tolist()), int(batch["label"][row])))
        assert not batch["attended"][~batch["mask"]].any()
    return found


def examples(split: tokens.TokenSplit) -> list[tuple]:
    bounds = zip(split.starts[:-1], split.starts[1:], strict=True)
    return [(tuple(split.tokens[a:b].tolist()), int(label)) for (a, b), label in zip(bounds, split.labels, strict=True)]


def test_encoding_is_the_tokenizers_own_without_its_saved_filling_and_cutting(tokenizer, split):
    text = small_texts.sentences(50)[7][0]
    ids = tokenizer.encode(text).ids
    assert examples(split)[7][0] == tuple(ids) and len(ids) == len(text.split()) + 2


def test_the_second_text_of_a_pair_has_segment_1(tokenizer):
    pairs = TextSplit([("the sailor works", "a small dog fails")], np.zeros(1, np.int32))
    encoded = tokens.encode(pairs, tokenizer, 20)
    np.testing.assert_array_equal(encoded.segments, [0] * 5 + [1] * 5)


def test_the_longer_text_of_a_pair_is_cut_first(tokenizer):
    pairs = TextSplit([("works " * 9, "fails fails")], np.zeros(1, np.int32))
    encoded = tokens.encode(pairs, tokenizer, 9)
    np.testing.assert_array_equal(encoded.segments, [0] * 6 + [1] * 3)
    turned = TextSplit([("fails fails", "works " * 9)], np.zeros(1, np.int32))
    np.testing.assert_array_equal(tokens.encode(turned, tokenizer, 9).segments, [0] * 4 + [1] * 5)
    for length in (3, 4):  # of which three are special: a text would be left without a token
        with pytest.raises(InputError, match=f"{length} tokens, which leaves no room for 2 texts beside 3 special tok"):
            tokens.encode(pairs, tokenizer, length)
    np.testing.assert_array_equal(tokens.encode(pairs, tokenizer, 5).segments, [0, 0, 0, 1, 1])


def test_what_a_file_says_of_cutting_and_filling_is_not_taken_over(tmp_path):
    file = small_texts.write_tokenizer(tmp_path)
    saved = tokens.open_tokenizer(file)
    saved.enable_truncation(3)
    saved.enable_padding(length=7)
    saved.save(str(tmp_path / "tokenizer.json"))
    opened = tokens.open_tokenizer(tmp_path / "tokenizer.json")
    assert (opened.truncation, opened.padding) == (None, None)
    assert len(opened.encode("the sailor works").ids) == 5


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_evaluation_covers_each_example_once_the_shortest_first(split, batch_size):
    batches = list(tokens.evaluation_batches(split, batch_size, LENGTHS))
    order = tokens.by_length(split.lengths)
    assert rows(batches) == [examples(split)[index] for index in order]
    assert {batch["tokens"].shape for batch in batches} <= {(batch_size, length) for length in LENGTHS}


@pytest.mark.parametrize("batch_size", [7, 8, 64])
def test_every_pass_of_training_covers_each_example_once_in_another_order(split, batch_size):
    batches = tokens.training_batches(split, batch_size, LENGTHS, seed=3)
    a_pass = -(-50 // batch_size)
    first, second = ([next(batches) for _ in range(a_pass)] for _ in range(2))
    assert sorted(rows(first)) == sorted(rows(second)) == sorted(examples(split))
    assert rows(first) != rows(second)
    other = tokens.training_batches(split, batch_size, LENGTHS, seed=4)
    assert rows([next(other) for _ in range(a_pass)]) != rows(first)


def test_a_batch_is_no_longer_than_it_must_be(split):
    batches = tokens.training_batches(split, 4, LENGTHS, seed=0)
    for _ in range(26):
        batch = next(batches)
        longest = batch["attended"].sum(axis=1).max()
        assert batch["tokens"].shape[1] == min(length for length in LENGTHS if length >= longest)


def test_similar_lengths_come_together(split):
    lengths = tuple(range(1, 13))
    sorted_, unsorted = (
        sum(chosen.size * split.lengths[chosen].max() for chosen in plan)
        for plan in (tokens._plan(split.lengths, 8, 0, 0), np.array_split(np.random.default_rng(0).permutation(50), 7))
    )
    assert sorted_ < 0.9 * unsorted
    batch = next(tokens.training_batches(split, 8, lengths, seed=0))
    assert np.ptp(batch["attended"].sum(axis=1)) <= 3


def test_a_restored_iterator_goes_on_as_if_never_stopped(split):
    assert_goes_on(lambda: tokens.training_batches(split, 8, LENGTHS, seed=1), 9, 12)


def test_tokenizers_that_cannot_be_used(tmp_path, tokenizer):
    def complaint(path: pathlib.Path | None) -> str:
        with pytest.raises(InputError) as caught:
            tokens.open_tokenizer(path)
        return str(caught.value)

    assert "the weights have no tokenizer.json" in complaint(None)
    assert "no tokenizer at" in complaint(tmp_path) and "save_pretrained" in complaint(tmp_path / "w.safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "no tokenizer at" in complaint(tmp_path / "brt") and "no tokenizer at" in complaint(tmp_path / "vocab.txt")
    assert "is not a tokenizer of the tokenizers library" in complaint(tmp_path)
    with pytest.raises(InputError, match="go up to .*, but the model's word table has 10 rows"):
        tokens.check_vocabulary(tokenizer, 10)
    tokens.check_vocabulary(tokenizer, tokenizer.get_vocab_size())


@pytest.mark.parametrize("lengths", [(6,), (64, 8), (8, 8, 64)])
def test_lengths_must_rise_and_hold_every_example(split, lengths):
    with pytest.raises(InputError, match=rf"lengths=\({lengths[0]},.*expected"):
        tokens.Batches(split, 4, lengths)
