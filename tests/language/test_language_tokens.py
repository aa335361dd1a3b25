"""Texts to tokens to rows to batches: what each holds, how rows are packed, what is cut."""

import numpy as np
import pytest

from surm.data import language_tokens, tokens
from surm.data.language_tokens import LanguageTokens, Text, covered, first_fit
from surm.data.share import Share
from surm.errors import InputError
from tests.data.going_on import assert_goes_on
from tests.language import small_decoder

TEXTS = [Text(f"{question} {answer}", [(len(question), len(f"{question} {answer}"))])
         for question, answer in small_decoder.QUESTIONS]  # fmt: skip
END = 2


@pytest.fixture(scope="module")
def tokenizer():
    return small_decoder.tokenizer()


@pytest.fixture(scope="module")
def split(tokenizer) -> LanguageTokens:
    return language_tokens.encode(TEXTS, tokenizer, 40, alone=True, end=END).tokens


def texts_of(batches) -> list[tuple]:
    """The tokens of every text in some batches and which of them are learned, after a check of all other arrays."""
    found = []
    for batch in batches:
        assert {str(value.dtype) for value in batch.values()} == {"int32", "float32"}
        for row in range(len(batch["tokens"])):
            segments = batch["segments"][row]
            assert not any(batch[name][row][segments == 0].any() for name in ("tokens", "targets", "weight"))
            for number in range(1, segments.max() + 1):
                (here,) = np.nonzero(segments == number)
                assert (np.diff(here) == 1).all()
                ids, targets, weight = (batch[name][row][here] for name in ("tokens", "targets", "weight"))
                np.testing.assert_array_equal(batch["positions"][row][here], np.arange(len(here)))
                np.testing.assert_array_equal(targets[:-1], ids[1:])
                assert weight[-1] == 0 and set(weight.tolist()) <= {0.0, 1.0}
                found.append((tuple(ids.tolist()), tuple(weight.tolist())))
    return found


def expected(split: LanguageTokens) -> list[tuple]:
    found = []
    for begin, end in zip(split.starts[:-1], split.starts[1:], strict=True):
        weight = [*split.answers[begin + 1 : end].astype(float).tolist(), 0.0]
        found.append((tuple(split.tokens[begin:end].tolist()), tuple(weight)))
    return found


def test_answers_are_the_tokens_behind_the_prompt_and_the_end(tokenizer, split):
    for number, (question, answer) in enumerate(small_decoder.QUESTIONS):
        begin, end = split.starts[number : number + 2]
        ids, prompt = tokenizer.encode(f"{question} {answer}").ids, tokenizer.encode(question).ids
        assert split.tokens[begin:end].tolist() == [*ids, END]
        assert split.answers[begin:end].tolist() == [False] * len(prompt) + [True] * (len(ids) + 1 - len(prompt))


def test_an_answer_that_ends_in_a_letter_of_several_tokens_is_learned_to_its_end(tokenizer):
    # The masks of transformers 5.23 leave the last of these tokens out.
    found = language_tokens.encode([Text("a 漢", [(1, 3)])], tokenizer, 40, alone=False).tokens
    assert found.answers.tolist() == [False, True, True, True, True] and len(found.tokens) == 5


@pytest.mark.parametrize(
    ("offsets", "spans", "expected"),
    [
        ([(0, 2), (2, 4), (4, 6)], [(2, 4)], [0, 1, 0]),
        ([(0, 3), (3, 6)], [(2, 4)], [1, 1]),  # both hold a part
        ([(0, 2), (3, 5), (6, 8)], [(2, 5)], [0, 1, 0]),  # blanks without tokens
        ([(0, 2), (3, 5), (6, 8)], [(2, 3)], [0, 1, 0]),  # which belong to the word behind them
        ([(0, 0), (0, 2), (2, 4), (0, 0)], [(0, 4)], [0, 1, 1, 0]),  # tokens that the tokenizer added
        ([(0, 1), (1, 2), (1, 2), (1, 2)], [(1, 2)], [0, 1, 1, 1]),  # the bytes of a letter
        ([(0, 1), (1, 2), (2, 3)], [(0, 1), (2, 3)], [1, 0, 1]),
        ([], [(0, 1)], []),
    ],
)
def test_a_token_counts_if_it_holds_a_character_of_the_answer(offsets, spans, expected):
    assert covered(offsets, spans).astype(int).tolist() == expected


def test_first_fit_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths, size, rows = rng.integers(1, 11, rng.integers(1, 40)), 10, []
        for item, length in enumerate(lengths):
            row = next((row for row in rows if sum(lengths[one] for one in row) + length <= size), None)
            if row is None:
                rows.append(row := [])
            row.append(item)
        assert [row.tolist() for row in first_fit(lengths, size)] == rows


@pytest.mark.parametrize("size", [16, 24, 40])
def test_packed_rows_hold_every_text_once_and_are_fewer(split, size):
    packed = split.packed(size)
    assert sorted(np.concatenate(packed.rows).tolist()) == list(range(12))
    assert max(packed.lengths) <= size and len(packed) <= len(split)
    if size == 40:
        assert len(packed) < len(split) / 2
    assert packed.fingerprint() == split.packed(size).fingerprint() != split.fingerprint()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_a_pass_holds_every_text_once(split, packed, batch_size):
    rows, lengths = (split.packed(40), (40,)) if packed else (split, (8, 16, 40))
    assert sorted(texts_of(tokens.evaluation_batches(rows, batch_size, lengths))) == sorted(expected(split))
    batches = tokens.training_batches(rows, batch_size, lengths, seed=3)
    a_pass = -(-len(rows) // batch_size)
    first, second = ([next(batches) for _ in range(a_pass)] for _ in range(2))
    assert sorted(texts_of(first)) == sorted(texts_of(second)) == sorted(expected(split))
    assert a_pass == 1 or texts_of(first) != texts_of(second)


@pytest.mark.parametrize("packed", [False, True])
def test_a_restored_iterator_goes_on_as_if_never_stopped(split, packed):
    rows, lengths = (split.packed(24), (24,)) if packed else (split, (8, 16, 40))
    assert_goes_on(lambda: tokens.training_batches(rows, 4, lengths, seed=1), 5, 7)


def test_shares_are_the_rows_of_a_batch(split):
    whole = list(tokens.evaluation_batches(split, 8, (40,)))
    parts = [list(tokens.evaluation_batches(split, 8, (40,), share=Share(index, 4))) for index in range(4)]
    for number, batch in enumerate(whole):
        for name, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[number][name] for part in parts]), value)


def test_what_is_too_long_is_cut_and_what_keeps_no_answer_is_left_out(tokenizer, split):
    long = Text("the" + " the" * 20 + " red", [(83, 87)])
    found = language_tokens.encode([long, *TEXTS], tokenizer, 12, alone=True, end=END)
    longer = np.diff(split.starts) > 12
    assert (found.cut, found.empty) == (1 + np.sum(longer), 1) and np.sum(longer) == 3
    assert max(found.tokens.lengths) == 12 and len(found.tokens) == 12
    left = language_tokens.encode(TEXTS, tokenizer, 4, alone=True, end=END, side="left")
    assert left.empty == 0 and left.tokens.tokens[3] == END
    with pytest.raises(InputError, match="none of the 12 texts keeps a token of its answer within 2 tokens"):
        language_tokens.encode(TEXTS, tokenizer, 2, alone=True, end=END)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("size", range(4, 12))
def test_answers_that_lose_tokens_are_told_from_whole_ones(tokenizer, side, size):
    words = " what red green the blue one is"  # a token each; answers are the 2nd and 3rd, and the 5th and 6th
    spans = [(words.index(" red"), words.index(" the")), (words.index(" blue"), words.index(" is"))]
    found = language_tokens.encode([Text(words, spans)], tokenizer, size, alone=False, side=side)
    kept = range(7)[:size] if side == "right" else range(7)[-size:]
    foreseen = {*kept[1:]} if side == "left" and size < 7 else {*kept}
    lacking = [pair for pair in ((1, 2), (4, 5)) if {*pair} & {*kept} and not {*pair} <= foreseen]
    assert found.tokens.partial.tolist() == [any(place in pair for pair in lacking) for place in kept]
    assert found.partial == (size in {"right": (5,), "left": (6,)}[side])
    batch = found.tokens.batch(np.array([0]), 1, 12)
    assert batch["partial"][0].tolist() == [*found.tokens.partial[1:].tolist(), *[0] * (13 - len(kept))]


def test_a_text_that_ends_with_the_end_gets_no_second_one(tokenizer):
    end = tokenizer.token_to_id("<|im_end|>")
    (found, *_) = language_tokens.encode([Text("red one<|im_end|>", [(0, 3)])], tokenizer, 40, alone=True, end=end)
    assert found.tokens.tolist() == tokenizer.encode("red one<|im_end|>").ids and found.answers[-1]
    (found, *_) = language_tokens.encode([Text("red one", [(0, 7)])], tokenizer, 40, alone=True, end=None)
    assert found.tokens.tolist() == tokenizer.encode("red one").ids
