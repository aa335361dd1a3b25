"""Generation with a decoder: prompts of tokens go in, and new tokens come out.

Prompts of a batch are padded at their left to a bucket. There is room for a few new tokens at first, and for four times
as many whenever that is full, because every new token reads the whole cache. `surm.models.generation_loop` compiles its
programs for every bucket of prompt lengths, of new tokens and of rows, and for the kind of sampling, but for no other
length or number.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Int

from surm.errors import InputError
from surm.models.generation_loop import Progress, advance, fill, widened
from surm.models.sampling import GREEDY, Sampling

_LEAST, _STEP = 16, 256
_ROOM, _WIDER = 64, 4


class Decoding:
    """A batch of prompts that a decoder continues, a few tokens at a time."""

    def __init__(
        self,
        model: nnx.Module,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        ends: Iterable[int] = (),
        seed: int = 0,
        rows: Sequence[int] | None = None,
    ):
        """Reads the prompts.

        Args:
          model: a `surm.models.decoder.Decoder`, perhaps with an adapter, or a module that is called like one and has
            its `config` and `empty_cache`.
          prompts: the tokens of every prompt, at least one.
          max_new_tokens: how many tokens each row gets at most; fewer if the model's context ends before.
          sampling: how tokens are chosen.
          ends: the tokens that end a text.
          seed: the seed of random choices.
          rows: a number for each row that, with the seed, determines its random choices; None for 0, 1, ...

        Raises:
          InputError: if a prompt is empty, has more tokens than the model's context or a token that the model lacks,
            or if a number is out of range.
        """
        _check(model, prompts, max_new_tokens, seed)
        self._sampling, self._ends = sampling, frozenset(ends)
        self._parts, self._most = nnx.split(model), bucket(max_new_tokens)
        batch, self._rows = _rows_of(len(prompts)), len(prompts)
        numbers = np.arange(batch) if rows is None else np.pad(np.asarray(rows), (0, batch - len(rows)))
        key = jax.random.key(seed)
        self._keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers.astype(np.uint32))
        self._end_tokens = jnp.asarray(sorted(self._ends) or [-1], jnp.int32)
        self._progress = self._start(model, prompts, batch, max_new_tokens)

    def _start(self, model: nnx.Module, prompts: Sequence[Sequence[int]], batch: int, most: int) -> Progress:
        tokens, segments = padded([prompt[:-1] for prompt in prompts], batch)
        room, lengths = min(self._most, _ROOM), np.array([len(prompt) for prompt in prompts])
        cache = fill(*self._parts, tokens, segments, slots=tokens.shape[1] + room, dtype=_dtype(model))
        rows, more = np.arange(len(prompts)), (0, batch - len(prompts))
        seen = None
        if "repetition_penalty" in self._sampling.numbers:
            seen = np.zeros((batch, model.config.vocabulary), bool)
            for row in rows:
                seen[row, np.asarray(prompts[row])] = True
        start = {
            "newest": np.pad([prompt[-1] for prompt in prompts], more).astype(np.int32),
            "positions": np.pad(lengths - 1, more).astype(np.int32),
            "tokens": np.zeros((batch, room), np.int32),
            "counts": np.zeros(batch, np.int32),
            "number": np.int32(0),
            "ended": np.arange(batch) >= len(prompts),
            "limits": np.pad(np.minimum(most, model.config.positions - lengths + 1), more).astype(np.int32),
            "seen": seen,
        }
        return Progress(cache=cache, **jax.tree.map(jnp.array, start))  # copies, which `advance` may overwrite

    def advance(self, more: int | None = None) -> None:
        """Generates so many more tokens in every row that has not ended; None for all."""
        until = self._most if more is None else min(int(self._progress.number) + more, self._most)
        self._advance_within_room(until)
        while until > (room := self._progress.tokens.shape[1]) and not self.ended.all():
            self._progress = widened(self._progress, min(room * _WIDER, self._most))
            self._advance_within_room(until)

    def _advance_within_room(self, until: int) -> None:
        until = np.int32(min(until, self._progress.tokens.shape[1]))
        chosen = (until, self._sampling.numbers, self._keys, self._end_tokens)
        self._progress = advance(*self._parts, self._progress, *chosen, top_k=self._sampling.top_k or None)

    def end(self, rows: Iterable[int]) -> None:
        """Ends rows, for example because a text contains a stop string."""
        ended = np.array(self._progress.ended)
        ended[list(rows)] = True
        self._progress = dataclasses.replace(self._progress, ended=jnp.asarray(ended))

    @property
    def ended(self) -> Bool[np.ndarray, " rows"]:
        """Whether each row has ended."""
        return np.asarray(self._progress.ended)[: self._rows]

    @property
    def tokens(self) -> list[list[int]]:
        """The new tokens of every row, without the token that ended it."""
        found = np.asarray(self._progress.tokens)[: self._rows], np.asarray(self._progress.counts)
        rows = [row[:count].tolist() for row, count in zip(*found, strict=False)]
        return [row[:-1] if row and row[-1] in self._ends else row for row in rows]


def generate(
    model: nnx.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    ends: Iterable[int] = (),
    seed: int = 0,
) -> list[list[int]]:
    """Continues prompts of tokens, all in one batch.

    Args:
      model: as for `Decoding`.
      prompts: the tokens of every prompt.
      max_new_tokens: the largest number of new tokens of a row.
      sampling: how tokens are chosen.
      ends: the tokens that end a text.
      seed: the seed of random choices.

    Returns:
      The new tokens of every row, without the token that ended it.

    Raises:
      InputError: as for `Decoding`.
    """
    if not len(prompts):
        return []
    decoding = Decoding(model, prompts, max_new_tokens=max_new_tokens, sampling=sampling, ends=ends, seed=seed)
    decoding.advance()
    return decoding.tokens


def bucket(number: int) -> int:
    """The smallest length that programs are compiled for and that is at least `number`.

    Examples:
      >>> [bucket(number) for number in (0, 17, 200, 257, 700)]
      [16, 32, 256, 512, 768]
    """
    power = max(_LEAST, _rows_of(number))
    return power if power <= _STEP else -(-number // _STEP) * _STEP


def padded(
    prompts: Sequence[Sequence[int]], batch: int
) -> tuple[Int[np.ndarray, "batch tokens"], Int[np.ndarray, "batch tokens"]]:
    """Tokens padded at their left to a bucket, and their segments; further rows consist of padding."""
    length = bucket(max(map(len, prompts)))
    tokens, segments = np.zeros((2, batch, length), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        segments[row, length - len(prompt) :] = 1
    return tokens, segments


def _rows_of(number: int) -> int:
    """The next power of two."""
    return 1 << max(number - 1, 0).bit_length()


def _dtype(model: nnx.Module) -> jax.typing.DTypeLike:
    """The dtype of keys and values, in which the model computes."""
    return jnp.dtype(model.embed.word.dtype or jnp.float32)


def _check(model: nnx.Module, prompts: Sequence[Sequence[int]], most: int, seed: int) -> None:
    for name, value, least in (("max_new_tokens", most, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name}={value!r}, expected a whole number of at least {least}")
    shape = model.config
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {number} is empty, expected at least one token")
        if len(prompt) > shape.positions:
            raise InputError(f"prompt {number} has {len(prompt):,} tokens, but the model's context has "
                             f"{shape.positions:,}")  # fmt: skip
        if not 0 <= min(prompt) <= max(prompt) < shape.vocabulary:
            raise InputError(f"prompt {number} has tokens from {min(prompt)} to {max(prompt)}, expected 0 to "
                             f"{shape.vocabulary - 1}, the model's vocabulary")  # fmt: skip
