"""Texts that a decoder writes, whole or piece by piece while the tokens come, up to a stop string."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from flax import nnx

from surm.errors import InputError
from surm.models.generation import Decoding
from surm.models.sampling import GREEDY, Sampling
from surm.tasks.dialect import Dialect
from surm.tasks.task import Batch

_AT_ONCE = 16  # tokens between two looks for stop strings
_OF_ANSWERS = ("tokens", "segments", "targets", "weight", "partial")
_IN_A_PIECE = 4  # tokens between two pieces of a stream
_UNFINISHED = "\ufffd"  # the tokenizer's sign for bytes that are no whole character


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a generation.

    Attributes:
      max_new_tokens: the largest number of new tokens of each text.
      sampling: how tokens are chosen.
      stop: strings that end a text, which does not include them.
      seed: the seed of random choices.
      batch_size: how many prompts are continued at once.
    """

    max_new_tokens: int = 256
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self):
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise InputError(f"stop={self.stop!r}, expected strings that are not empty")
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size!r}, expected a whole number of at least 1")


class Reader:
    """The text of one row, read piece by piece while its tokens come."""

    def __init__(self, dialect: Dialect, stop: Sequence[str]):
        """Starts with an empty text."""
        self._dialect, self._stop = dialect, (*stop, *dialect.stop)
        self.text, self.stopped = "", False
        self._known, self._begin, self._end = "", 0, 0  # the text of the tokens before `_end`; a part from `_begin`

    def read(self, tokens: Sequence[int], *, last: bool) -> str:
        """The next piece of the text, which ends before a stop string and never within a character.

        Args:
          tokens: all tokens of the row so far.
          last: whether there will be no more.

        Returns:
          The piece; empty if a character or a stop string may have begun, or if the text was stopped before.
        """
        if self.stopped:
            return ""
        text = self._decoded(tokens)
        found = [place for one in self._stop if (place := text.find(one, len(self.text))) >= 0]
        if found:
            self.stopped, text = True, text[: min(found)]
        elif not last:
            text = _settled(text, self._stop)
        piece, self.text = text[len(self.text) :], text
        return piece

    def _decoded(self, tokens: Sequence[int]) -> str:
        """The text of all tokens, of which only those behind a part that can change no more are decoded again.

        A decoder may treat the beginning of a text in its own way, so the part before the new tokens is decoded with
        them and without them, and counts as their beginning only if it has a text.
        """
        before = self._dialect.text(tokens[self._begin : self._end])
        new = self._dialect.text(tokens[self._begin :])[len(before) :]
        text = self._known + new
        if new and self._dialect.text(tokens[self._end :]) and not text.endswith(_UNFINISHED):
            self._known, self._begin, self._end = text, self._end, len(tokens)
        return text


def _settled(text: str, stop: Sequence[str]) -> str:
    """A text without an unfinished character at its end, and without a beginning of a stop string."""
    text = text.rstrip(_UNFINISHED)
    begun = [size for one in stop for size in range(1, len(one)) if text.endswith(one[:size])]
    return text[: len(text) - max(begun, default=0)]


def texts(
    model_of: Callable[[Sequence[int]], nnx.Module],
    dialect: Dialect,
    prompts: Sequence[Sequence[int]],
    request: Request,
) -> list[str]:
    """Continues prompts, of similar lengths in one batch.

    Args:
      model_of: a function from the indices of a batch's prompts to the model for them.
      dialect: turns tokens into texts.
      prompts: the tokens of every prompt.
      request: what is asked.

    Returns:
      The new texts, in order.

    Raises:
      InputError: if a prompt or a number cannot be used; see `surm.models.generation.Decoding`.
    """
    found = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for start in range(0, len(prompts), request.batch_size):
        rows = by_length[start : start + request.batch_size]
        decoding = _decoding(model_of(rows), dialect, [prompts[row] for row in rows], request, rows)
        readers = [Reader(dialect, request.stop) for _ in rows]
        for _ in _read(decoding, readers, _AT_ONCE if request.stop or dialect.stop else None):
            pass
        for row, reader in zip(rows, readers, strict=True):
            found[row] = reader.text
    return found


def pieces(model: nnx.Module, dialect: Dialect, prompt: Sequence[int], request: Request) -> Iterator[str]:
    """Continues one prompt; yields the new text in pieces of a few tokens; arguments and errors as for `texts`."""
    decoding = _decoding(model, dialect, [prompt], request, [0])
    for piece, *_ in _read(decoding, [Reader(dialect, request.stop)], _IN_A_PIECE):
        if piece:
            yield piece


def _decoding(
    model: nnx.Module, dialect: Dialect, prompts: Sequence[Sequence[int]], request: Request, rows: Sequence[int]
) -> Decoding:
    return Decoding(
        model,
        prompts,
        max_new_tokens=request.max_new_tokens,
        sampling=request.sampling,
        ends=dialect.ends,
        seed=request.seed,
        rows=rows,
    )


def _read(decoding: Decoding, readers: Sequence[Reader], at_once: int | None) -> Iterator[list[str]]:
    """Generates until all rows have ended or were stopped; yields the next piece of every row's text."""
    while not decoding.ended.all():
        decoding.advance(at_once)
        rows = zip(readers, decoding.tokens, decoding.ended.tolist(), strict=True)
        yield [reader.read(tokens, last=last) for reader, tokens, last in rows]
        if stopped := [row for row, reader in enumerate(readers) if reader.stopped]:
            decoding.end(stopped)


def answers_of(batch: Batch) -> Iterator[tuple[list[int], list[int]]]:
    """The whole answers in a batch of the task `language`: for each the tokens before it in its text, and its own.

    Those of which tokens were cut are left out.
    """
    for tokens, segments, targets, weight, partial in zip(*(batch[name] for name in _OF_ANSWERS), strict=True):
        for segment in range(1, segments.max(initial=0) + 1):
            places = np.flatnonzero(segments == segment)
            learned = np.concatenate([[False], weight[places] > 0, [False]])
            (begins,), (ends,) = (
                np.nonzero(found) for found in (learned[1:] > learned[:-1], learned[1:] < learned[:-1])
            )
            for begin, end in zip(begins, ends, strict=True):
                if not partial[places][begin:end].any():
                    yield tokens[places][: begin + 1].tolist(), targets[places][begin:end].tolist()


def exact_match(model: nnx.Module, dialect: Dialect, batches: Iterable[Batch], request: Request) -> float:
    """The share of the answers in some batches that a model writes as they are, but for white space at both ends.

    Args:
      model: the model.
      dialect: turns tokens into texts.
      batches: batches of the task `language`.
      request: the largest number of tokens of an answer, and how tokens are chosen.

    Returns:
      The share among the whole answers: see `answers_of`.

    Raises:
      InputError: if no answer is whole.
    """
    found = [one for batch in batches for one in answers_of(batch)]
    if not found:
        raise InputError(
            "config.data.generate=True, but every answer of the held-out data is cut; expected a larger last length in "
            "config.data.lengths, or False"
        )
    prompts, answers = zip(*found, strict=True)
    written = texts(lambda rows: model, dialect, prompts, request)
    wanted = [_as_written(dialect, answer, request.stop) for answer in answers]
    return sum(text.strip() == one.strip() for text, one in zip(written, wanted, strict=True)) / len(wanted)


def _as_written(dialect: Dialect, answer: Sequence[int], stop: Sequence[str]) -> str:
    """The text of an answer's tokens, which ends where a text with these tokens would be ended."""
    own = answer[:-1] if answer and answer[-1] in dialect.ends else answer
    reader = Reader(dialect, stop)
    reader.read(own, last=True)
    return reader.text
