"""Tokens of texts for language models, several texts in a row if they are packed.

A batch is `{"tokens", "positions", "segments", "targets", "partial": int32 B×L, "weight": float32 B×L}`. `targets[i]`
is the token that follows `tokens[i]` in its text, and `weight[i]` is 1 if that one is to be learned, else 0: for the
last token of a text nothing follows. `partial[i]` is 1 if `targets[i]` belongs to an answer that lost tokens because
its text is too long. `positions` count from 0 in every text. `segments` number the texts of a row from 1, and are 0
where nothing is left. Rows are put into batches as in `surm.data.tokens`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Int32

from surm.data.tokens import digest
from surm.errors import InputError, one_line

_CHUNK = 1024  # the number of texts encoded at once


class Text(NamedTuple):
    """A text with its answers.

    Attributes:
      text: the text.
      answers: for every answer the index of its first character and that behind its last one.
    """

    text: str
    answers: Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageTokens:
    """Texts as tokens, all of them concatenated, and the rows that they are put into.

    Attributes:
      tokens: the tokens of all texts.
      answers: whether each token belongs to an answer.
      partial: whether it belongs to one that lost tokens because its text is too long.
      starts: the index of each text's first token, followed by the total number of tokens.
      rows: the texts of each row.
    """

    tokens: Int32[np.ndarray, " tokens"]
    answers: Bool[np.ndarray, " tokens"]
    partial: Bool[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " n_and_1"]
    rows: tuple[Int[np.ndarray, " _"], ...]

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """The number of tokens of each row."""
        of_texts = np.diff(self.starts)
        return np.array([of_texts[row].sum() for row in self.rows], np.int64)

    def fingerprint(self) -> str:
        """A hash of all tokens, of the answers among them, and of the texts of each row."""
        return digest(self.tokens, self.answers, self.starts, *self.rows)

    def answering_all(self) -> "LanguageTokens":
        """The same rows with every token to be learned."""
        return dataclasses.replace(self, answers=np.ones_like(self.answers))

    def packed(self, size: int) -> "LanguageTokens":
        """The same texts in as few rows of a size as first-fit finds; the order that it goes by is always the same."""
        order = np.random.default_rng(0).permutation(len(self.starts) - 1)
        return dataclasses.replace(self, rows=tuple(order[row] for row in first_fit(np.diff(self.starts)[order], size)))

    def batch(self, chosen: Int[np.ndarray, " rows"], batch_size: int, length: int) -> dict[str, np.ndarray]:
        """A batch of a few rows, filled up with zeros."""
        names = ("tokens", "positions", "segments", "targets", "partial")
        batch = {name: np.zeros((batch_size, length), np.int32) for name in names}
        batch["weight"] = np.zeros((batch_size, length), np.float32)
        for row, number in enumerate(chosen):
            at = 0
            for segment, text in enumerate(self.rows[number], 1):
                begin, end = self.starts[text : text + 2]
                behind = at + end - begin
                batch["tokens"][row, at:behind] = self.tokens[begin:end]
                batch["positions"][row, at:behind] = np.arange(end - begin)
                batch["segments"][row, at:behind] = segment
                batch["targets"][row, at : behind - 1] = self.tokens[begin + 1 : end]
                batch["partial"][row, at : behind - 1] = self.partial[begin + 1 : end]
                batch["weight"][row, at : behind - 1] = self.answers[begin + 1 : end]
                at = behind
        return batch


def first_fit(lengths: Int[np.ndarray, " n"], size: int) -> list[Int[np.ndarray, " _"]]:
    """Puts every item, in order, into the first row that has room for it.

    A tree of the free places finds the row: the cost is O(n log n).

    Args:
      lengths: the length of each item, at most `size`.
      size: the length of a row.

    Returns:
      The indices of the items of each row.

    Examples:
      >>> [row.tolist() for row in first_fit(np.array([5, 6, 3, 2]), 8)]
      [[0, 2], [1, 3]]

    Source: Johnson, "Near-optimal bin packing algorithms", 1973.
    """
    leaves = 1 << max(len(lengths) - 1, 1).bit_length()
    free, row_of = [size] * (2 * leaves), np.empty(len(lengths), np.int64)
    for item, length in enumerate(lengths.tolist()):
        node = 1
        while node < leaves:
            node = 2 * node + (free[2 * node] < length)
        row_of[item] = node - leaves
        free[node] -= length
        while node > 1:
            node //= 2
            free[node] = max(free[2 * node], free[2 * node + 1])
    counts = np.bincount(row_of)
    return np.split(np.argsort(row_of, kind="stable"), np.cumsum(counts)[:-1])


class Encoded(NamedTuple):
    """The result of `encode`.

    Attributes:
      tokens: the texts that have an answer, one in a row.
      cut: the number of texts that were too long and were cut.
      empty: the number of texts that are left out because no token of an answer was left.
      partial: the number of answers of which tokens are left, but not all.
    """

    tokens: LanguageTokens
    cut: int
    empty: int
    partial: int


def encode(
    texts: Sequence[Text],
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    *,
    alone: bool,
    end: int | None = None,
    side: str = "right",
) -> Encoded:
    """Encodes texts; a token belongs to an answer if it holds any character of it.

    Args:
      texts: the texts, at least one.
      tokenizer: the tokenizer, without truncation or padding.
      max_length: the largest number of tokens of a text.
      alone: whether a text stands for itself: the tokenizer adds its own special tokens, and the token `end` follows,
        as a part of the answer. The text that a chat template makes has all such tokens already.
      end: the token that ends a text; None if the tokenizer has none.
      side: the side on which a text that is too long is cut, `right` or `left`.

    Returns:
      The tokens, with counts.

    Raises:
      InputError: if the tokenizer fails, or no text keeps a token of an answer.
    """
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    cut, chosen = 0, slice(max_length) if side == "right" else slice(-max_length, None)
    for start in range(0, len(texts), _CHUNK):
        part = texts[start : start + _CHUNK]
        for text, encoding in zip(part, _encode_batch(tokenizer, part, alone), strict=True):
            ids, answers = np.array(encoding.ids, np.int32), covered(encoding.offsets, text.answers)
            if alone and end is not None:
                ids, answers = _ended(ids, answers, end)
            cut += len(ids) > max_length
            if answers[chosen][1:].any():  # the first token has nothing before it to be predicted from
                kept.append((ids[chosen], answers[chosen], _partial(answers, max_length, side)))
    if not kept:
        raise InputError(
            f"none of the {len(texts):,} texts keeps a token of its answer within {max_length} tokens; see "
            "config.data.lengths"
        )
    ids, answers, partial = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    starts = np.cumsum([0, *(len(one) for one, *_ in kept)])
    rows = tuple(np.arange(len(kept))[:, None])
    lost = sum(bool(lacking[1:].any()) for *_, lacking in kept)  # only the answer at the cut can have lost tokens
    return Encoded(LanguageTokens(ids, answers, partial, starts, rows), cut, len(texts) - len(kept), lost)


def _partial(answers: Bool[np.ndarray, " n"], size: int, side: str) -> Bool[np.ndarray, " m"]:
    """Of the tokens that are left of a text, those of an answer that goes on where the text is cut.

    Cut at its left, a text begins with a token that nothing predicts, so an answer lacks that one, too.
    """
    found = np.zeros(min(len(answers), size), np.bool_)
    if side == "right" and answers[size : size + 1].any():
        found[size - np.argmin([*answers[:size][::-1], False]) :] = True
    if side == "left" and len(answers) > size:
        found[: np.argmin([*answers[-size:], False])] = True
    return found


def _encode_batch(tokenizer: tokenizers.Tokenizer, texts: Sequence[Text], alone: bool) -> Sequence[tokenizers.Encoding]:
    try:
        return tokenizer.encode_batch([text.text for text in texts], add_special_tokens=alone)
    except Exception as error:  # the library raises plain Exceptions
        raise InputError(f"the tokenizer cannot encode the texts: {one_line(error)}") from error


def _ended(
    ids: Int32[np.ndarray, " n"], answers: Bool[np.ndarray, " n"], end: int
) -> tuple[Int32[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """The tokens of a text with the token behind it, which is learned, too."""
    if not len(ids) or ids[-1] != end:
        ids, answers = np.append(ids, np.int32(end)), np.append(answers, False)
    answers[-1] = True
    return ids, answers


def covered(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Bool[np.ndarray, " tokens"]:
    """Whether each token holds any character of some spans.

    Args:
      offsets: for each token the index of its first character and that behind its last one. A character that no token
        names, as a space before a word for some tokenizers, belongs to the next token. Tokens that the tokenizer added
        have (0, 0).
      spans: the spans, in the same form.

    Returns:
      One value for each token.

    Examples:
      >>> covered([(0, 0), (0, 3), (4, 7), (7, 8)], [(3, 7)])
      array([False, False,  True, False])
    """
    first, behind = np.array(offsets, np.int64).reshape(-1, 2).T
    named = np.maximum.accumulate(np.concatenate([[0], behind[:-1]]))
    first = np.minimum(first, named)
    found = np.zeros(len(first), np.bool_)
    for begin, end in spans:
        found |= (first < end) & (behind > begin)
    return found
