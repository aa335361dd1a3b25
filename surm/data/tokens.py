"""Encodes labelled texts as tokens, and makes batches of a few fixed lengths.

A batch of them is `{"tokens": int32 B×L, "segments": int32 B×L, "attended": bool B×L, "label": B, "mask": bool B}`.
Here L is the smallest of the given lengths that holds the batch's longest text. A run therefore compiles once for each
length. Texts of similar length are put together, within windows of a few batches, so that there is little padding.
Every pass covers each example exactly once; the last batch of a pass is padded with masked examples, so metrics are
exact. Batches are read by their number, so a position in the stream is one integer.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import grain
import numpy as np
import tokenizers
from jaxtyping import Int, Int32, Real, UInt8

from surm.data.balanced import drawn
from surm.data.config_keys import lengths_of as lengths_of
from surm.data.pipeline import read_ahead
from surm.data.share import WHOLE, Share
from surm.data.splits import Split
from surm.data.tokenizer import check_vocabulary as check_vocabulary
from surm.data.tokenizer import open_tokenizer as open_tokenizer
from surm.errors import InputError, one_line

_WINDOW = 16  # the number of batches within which texts are sorted by length
_CHUNK = 4096  # the number of texts encoded at once


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSplit:
    """A split as tokens, with all examples concatenated.

    Attributes:
      tokens: the tokens of all examples.
      segments: 1 for the tokens of a second text, else 0.
      starts: the index of each example's first token, followed by the total number of tokens.
      labels: the labels of the examples.
      cut: the number of examples that were too long and were cut.
    """

    tokens: Int32[np.ndarray, " tokens"]
    segments: UInt8[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " n_and_1"]
    labels: Real[np.ndarray, " n"]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """The number of tokens of each example."""
        return np.diff(self.starts)

    def fingerprint(self) -> str:
        """A hash of all tokens, and of the places where examples and second texts begin."""
        return digest(self.tokens, self.segments, self.starts)

    def batch(self, chosen: Int[np.ndarray, " rows"], batch_size: int, length: int) -> dict[str, np.ndarray]:
        """A batch of a few examples, filled up with zeros."""
        shape = (batch_size, length)
        batch = {
            "tokens": np.zeros(shape, np.int32),
            "segments": np.zeros(shape, np.int32),
            "attended": np.zeros(shape, np.bool_),
            "label": np.zeros(batch_size, self.labels.dtype),
            "mask": np.arange(batch_size) < len(chosen),
        }
        batch["label"][: len(chosen)] = self.labels[chosen]
        for row, example in enumerate(chosen):
            begin, end = self.starts[example : example + 2]
            batch["tokens"][row, : end - begin] = self.tokens[begin:end]
            batch["segments"][row, : end - begin] = self.segments[begin:end]
            batch["attended"][row, : end - begin] = True
        return batch


def digest(*arrays: np.ndarray) -> str:
    """A hash of the contents of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


@runtime_checkable
class Rows(Protocol):
    """Rows of tokens of different lengths, from which `Batches` makes batches."""

    def __len__(self) -> int:
        """The number of rows."""

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """The number of tokens of each row."""

    def batch(self, chosen: Int[np.ndarray, " rows"], batch_size: int, length: int) -> dict[str, np.ndarray]:
        """A batch of a few rows, filled up with zeros to a size and a length."""


def encode(
    split: Split, tokenizer: tokenizers.Tokenizer, max_length: int, *, side: str = "right", segmented: bool = True
) -> TokenSplit:
    """Encodes a split.

    Args:
      split: examples `{"texts": (str,) or (str, str), "label": ...}`.
      tokenizer: the result of `open_tokenizer`; it adds its own special tokens.
      max_length: the largest number of tokens; the longer text of a pair is shortened first.
      side: the side on which a text that is too long is cut, `right` or `left`.
      segmented: whether `segments` marks the second text of a pair.

    Returns:
      The tokens of all examples.

    Raises:
      InputError: if `max_length` leaves no room for text beside the special tokens, or the tokenizer fails.
    """
    number = len(split[0]["texts"])
    special = tokenizer.num_special_tokens_to_add(number == 2)
    if max_length < special + number:
        raise InputError(
            f"texts are cut to {max_length} tokens, which leaves no room for {number} text{'s' * (number > 1)} beside "
            f"{special} special tokens; see config.data.lengths, and model_max_length in tokenizer_config.json"
        )
    tokenizer.enable_truncation(max_length, strategy="longest_first", direction=side)
    tokens, segments, lengths, cut = [], [], [], 0
    for start in range(0, len(split), _CHUNK):
        examples = [split[index]["texts"] for index in range(start, min(start + _CHUNK, len(split)))]
        pairs = [texts[0] if len(texts) == 1 else tuple(texts) for texts in examples]
        for encoding in _encode_batch(tokenizer, pairs):
            cut += bool(encoding.overflowing)
            tokens.append(np.array(encoding.ids, np.int32))
            segments.append(np.array(encoding.type_ids, np.uint8) * segmented)
            lengths.append(len(encoding.ids))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return TokenSplit(np.concatenate(tokens), np.concatenate(segments), starts, split.labels, cut)


def _encode_batch(tokenizer: tokenizers.Tokenizer, texts: list) -> list[tokenizers.Encoding]:
    try:
        return tokenizer.encode_batch(texts)
    except Exception as error:  # the library raises plain Exceptions
        raise InputError(f"the tokenizer cannot encode the texts: {one_line(error)}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """The batches of a split by number, as a source for grain.

    Attributes:
      split: the rows, which are examples; those of `surm.data.language_tokens` may hold several.
      batch_size: the number of rows in a batch.
      lengths: the lengths that a batch may have, in ascending order; every row fits the last one.
      seed: the seed of the order of every pass; None for a single order with the shortest examples first.
      passes: the number of passes over the split.
      share: the rows of every batch that this process reads.
      balanced: whether every class is equally frequent (`surm.data.balanced`); for a `TokenSplit` only.

    Raises:
      InputError: if the lengths are not in order, or an example is longer than the last.
    """

    split: Rows
    batch_size: int
    lengths: tuple[int, ...]
    seed: int | None = None
    passes: int = 1
    share: Share = WHOLE
    balanced: bool = False

    def __post_init__(self):
        if list(self.lengths) != sorted(set(self.lengths)):
            raise InputError(f"lengths={self.lengths}, expected them in ascending order")
        longest = self.split.lengths.max(initial=0)
        if longest > self.lengths[-1]:
            raise InputError(f"lengths={self.lengths}, expected at least {longest} for the longest example")

    def __len__(self) -> int:
        return self.passes * self.a_pass

    @property
    def a_pass(self) -> int:
        """The number of batches in one pass."""
        return math.ceil(len(self.split) / self.batch_size)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        number_of_pass, position = divmod(int(number), self.a_pass)
        return self._batch(self._plan_of(number_of_pass)[position])

    @functools.cached_property
    def _plan_of(self) -> Callable[[int], list[np.ndarray]]:
        """The examples of each batch of a pass; the last two requested passes are cached."""
        labels = self.split.labels if self.balanced else None
        plan = functools.partial(_plan, self.split.lengths, self.batch_size, self.seed, labels=labels)
        return functools.lru_cache(maxsize=2)(plan)

    def _batch(self, chosen: Int[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        longest = self.split.lengths[chosen].max()
        length = next(length for length in self.lengths if length >= longest)
        own = chosen[self.share.rows(self.batch_size)]
        return self.split.batch(own, self.batch_size // self.share.count, length)


def _plan(
    lengths: Int[np.ndarray, " n"],
    batch_size: int,
    seed: int | None,
    number_of_pass: int,
    *,
    labels: Real[np.ndarray, " n"] | None = None,
) -> list[np.ndarray]:
    """Cuts a pass into batches: with a seed shuffled and of similar lengths, with labels balanced."""
    cuts = range(batch_size, len(lengths), batch_size)
    if seed is None:
        return np.split(by_length(lengths), cuts)
    rng = np.random.default_rng((seed, number_of_pass))
    order = rng.permutation(len(lengths)) if labels is None else drawn(labels, rng)
    window = _WINDOW * batch_size
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    order = np.concatenate([part[by_length(lengths[part])] for part in parts])
    batches = np.split(order, cuts)
    return [batches[index] for index in rng.permutation(len(batches))]


def by_length(lengths: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The order from the shortest to the longest, which evaluation follows."""
    return np.argsort(lengths, kind="stable")


def training_batches(
    split: Rows,
    batch_size: int,
    lengths: Sequence[int],
    *,
    seed: int,
    balanced: bool = False,
    threads: int = 2,
    share: Share = WHOLE,
) -> grain.DatasetIterator:
    """An endless, resumable iterator over shuffled batches; every pass has a new order.

    Args:
      split: the result of `encode`, or other rows.
      batch_size: the number of rows in a batch.
      lengths: the lengths that a batch may have, in ascending order; every row must fit the last one.
      seed: the seed of the order.
      balanced: whether every class is equally frequent.
      threads: the number of threads that prepare batches ahead.
      share: the rows of every batch that this process reads.

    Returns:
      An iterator with `get_state` and `set_state`.
    """
    passes = 2**31 // math.ceil(len(split) / batch_size)
    source = Batches(split, batch_size, tuple(lengths), seed, passes, share, balanced)
    return iter(grain.MapDataset.source(source).to_iter_dataset(read_ahead(threads)))


def evaluation_batches(
    split: Rows, batch_size: int, lengths: Sequence[int], *, threads: int = 2, share: Share = WHOLE
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over a split, with the shortest texts first; the arguments are those of `training_batches`."""
    source = Batches(split, batch_size, tuple(lengths), share=share)
    return iter(grain.MapDataset.source(source).to_iter_dataset(read_ahead(threads)))
