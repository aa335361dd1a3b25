"""A decoder: a pre-norm Transformer whose tokens see earlier tokens only, in Flax NNX with 2-D kernels throughout.

    tokens -> embed -> [norm1 -> attention -> + -> norm2 -> mlp -> +] x depth -> norm -> lm_head

One block serves all kinds of published decoders: `surm.models.decoder_shape.DecoderConfig` has a switch for everything
that they do differently. Blocks of one decoder differ only in the window and the rotation that they are called with.

Source: Touvron et al. (Llama), arXiv 2302.13971.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from surm.errors import InputError
from surm.models import cross_entropy, scanned
from surm.models.causal_attention import Cache, capped, linear, visible
from surm.models.cross_entropy import Scores
from surm.models.decoder_blocks import Block, Words, attend, norm
from surm.models.decoder_presets import PRESETS as PRESETS
from surm.models.decoder_presets import preset as preset
from surm.models.decoder_shape import DecoderConfig
from surm.models.decoder_shape import Layer as Layer
from surm.models.rotary import Rotary, angles
from surm.ops.packed import unpacked


class Decoder(nnx.Module):
    """A decoder that gives, at every position, one logit per possible next token.

    Paths that adapters and conversion tables name: `embed.word`, `blocks.I.attention.{query,key,value,output}`,
    `blocks.I.mlp.{gate,up,down}`, `blocks.I.{norm1,norm2}`, `norm`, and `lm_head` unless the output is tied.
    """

    default_targets = r"(.*\.)?(attention\.(query|key|value|output)|mlp\.(gate|up|down))"

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: jax.typing.DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Creates a model with random weights.

        Args:
          config: the shape.
          dtype: the dtype to compute in (parameters stay float32); None for float32.
          remat: whether the backward pass recomputes every block; see `surm.models.blocks`.
          rngs: source of the initial weights.
        """
        self.embed = Words(config, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.norm = norm(config, dtype)
        self.config = config
        self.remat = remat
        self.runs = ()
        if not config.tied:
            self._create_lm_head(rngs)

    @property
    def norm_behind_attention(self) -> str:
        """A pattern of the norms that a Hadamard adapter trains too: those through which attention's outputs pass."""
        return r".*\.attention_norm" if self.config.branch_norms else r".*\.norm2"

    @property
    def absent(self) -> dict[str, str]:
        """The parts that other decoders have, by path, with the reason why this one lacks them."""
        reason = "its output is tied to embed.word, which train='embed.word' trains as both"
        return dict.fromkeys(("lm_head", "lm_head.kernel") if self.config.tied else (), reason)

    @property
    def uses(self) -> dict[str, str]:
        """The variables with more than one use, by path, with these uses."""
        both = {"embed.word.embedding": "the table of the words and, because it is tied to that, the output"}
        return both if self.config.tied else {}

    def scan(self) -> None:
        """Lets blocks of one structure be applied in a loop from now on; see `surm.models.scanned`."""
        self.runs = scanned.runs_of(self.blocks, self.config.every_layer)

    def untie(self) -> None:
        """Gives the model a map to logits of its own, with random weights."""
        self.config = dataclasses.replace(self.config, tied=False)
        self._create_lm_head(nnx.Rngs(0))

    def _create_lm_head(self, rngs: nnx.Rngs) -> None:
        config = self.config
        self.lm_head = linear(config, "lm_head", config.width, config.vocabulary, self.norm.dtype, rngs)

    def empty_cache(self, batch: int, slots: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Cache:
        """A cache in which no slot is written yet."""
        config = self.config
        shape = (batch, config.key_value_heads, slots, config.head_size)
        empty = lambda: tuple(jnp.zeros(shape, dtype) for _ in range(config.depth))  # noqa: E731
        return Cache(empty(), empty(), jnp.zeros((batch, slots), jnp.int32), jnp.zeros((), jnp.int32))

    def hidden_states(
        self,
        tokens: Int[Array, "batch tokens"],
        *,
        positions: Int[Array, "batch tokens"] | None = None,
        segments: Int[Array, "batch tokens"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[list[Float[Array, "batch tokens width"]], Cache | None]:
        """The tokens after the embedding and after every block (depth + 1 arrays), and the cache with the tokens in it.

        Arguments as for the model.
        """
        return self._states(tokens, positions, segments, cache, every=True)

    def _states(
        self,
        tokens: Int[Array, "batch tokens"],
        positions: Int[Array, "batch tokens"] | None,
        segments: Int[Array, "batch tokens"] | None,
        cache: Cache | None,
        *,
        every: bool,
    ) -> tuple[list[Float[Array, "batch tokens width"]], Cache | None]:
        """As `hidden_states`; unless `every`, the tokens after the last block alone."""
        segments = jnp.ones_like(tokens) if segments is None else segments
        first = 0 if cache is None else cache.length
        slots = segments if cache is None else cache.with_segments(segments)
        if positions is None:  # a segment may have begun in the cache
            positions = jax.lax.dynamic_slice_in_dim(positions_of(slots), first, tokens.shape[1], axis=1)
        layers = self.config.every_layer
        windows = dict.fromkeys(layer.window for layer in layers)
        masks = {window: visible(segments, slots, first, window) for window in windows}
        turns = {rotary: angles(rotary, positions, self.config.head_size) for rotary in _rotations(layers)}

        def apply(number: int, block: Block, x: Array, past: tuple[Array, Array] | None) -> tuple[Array, Any]:
            layer = layers[number]
            return block(x, turns.get(layer.rotary), masks[layer.window], past, first)

        past = None if cache is None else [*zip(cache.keys, cache.values, strict=True)]
        x, options = self.embed(tokens, positions), {"runs": self.runs, "remat": self.remat, "every": every}
        states, kept = scanned.through(self.blocks, apply, x, past, **options)
        if cache is None:
            return states, None
        keys, values = zip(*kept, strict=True)
        return states, Cache(keys, values, slots, first + tokens.shape[1])

    def logits(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch vocabulary"]:
        """The logits of tokens after the last block."""
        return self._answered(self._head, self.norm(x))

    def scores(self, x: Float[Array, "batch tokens width"], targets: Int[Array, "batch tokens"]) -> Scores:
        """Loss and correctness of tokens after the last block; see `surm.models.cross_entropy`."""
        graphdef, arrays = nnx.split(self._head)
        arrays = unpacked(arrays, self.norm.dtype)  # once for all chunks
        head = lambda arrays, x: self._answered(nnx.merge(graphdef, arrays), x)  # noqa: E731
        return cross_entropy.scores(head, arrays, self.norm(x), targets, vocabulary=self.config.vocabulary)

    @property
    def _head(self) -> nnx.Module:
        return self.embed.word if self.config.tied else self.lm_head

    def _answered(self, head: nnx.Module, x: Float[Array, "*batch width"]) -> Float[Array, "*batch vocabulary"]:
        logits = attend(head, x) if self.config.tied else head(x)
        return capped(logits, self.config.logit_cap)

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        *,
        positions: Int[Array, "batch tokens"] | None = None,
        segments: Int[Array, "batch tokens"] | None = None,
        cache: Cache | None = None,
        targets: Int[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch tokens vocabulary"] | tuple[Float[Array, "batch tokens vocabulary"], Cache] | Scores:
        """Computes the logits of the token that follows every token, or the loss of given ones.

        Args:
          tokens: one row per text, padded with any token at either end.
          positions: the position of every token; None for its place in its segment, which may begin in the cache.
          segments: 0 for padding; tokens with equal numbers see one another; None if a row is one text.
          cache: keys and values of earlier tokens, as `empty_cache` or an earlier call returned them; it must have a
            free slot for every token, see `surm.models.causal_attention.Cache`.
          targets: the token that should follow every token; any number where nothing is known, as at padding.

        Returns:
          The logits; with a cache, also the cache with these tokens in it. With targets, which exclude a cache, loss
          and correctness of every token instead, computed without an array of all logits.

        Raises:
          InputError: if there are more tokens than the cache has slots, or targets beside a cache.
        """
        if cache is not None and targets is not None:
            raise InputError(
                "targets and a cache are both given; targets must be given without one, because whole rows are scored"
            )
        states, cache_after = self._states(tokens, positions, segments, cache, every=False)
        if targets is not None:
            return self.scores(states[-1], targets)
        logits = self.logits(states[-1])
        return logits if cache is None else (logits, cache_after)


def positions_of(segments: Int[Array, "batch tokens"]) -> Int[Array, "batch tokens"]:
    """The place of every token in its segment, from 0; 0 for padding, which may be longer than a model's context.

    Examples:
      >>> positions_of(jnp.array([[0, 0, 1, 1, 1, 2, 2]]))
      Array([[0, 0, 0, 1, 2, 0, 1]], dtype=int32)
    """
    places = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    begins = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    return jnp.where(segments == 0, 0, places - jax.lax.cummax(jnp.where(begins, places, 0), axis=1))


def _rotations(layers: Iterable[Layer]) -> list[Rotary]:
    """The different rotations of blocks, in the order of the blocks, so that programs are the same in every process."""
    return list(dict.fromkeys(layer.rotary for layer in layers if layer.rotary is not None))
