"""The Vision Transformer, pre-norm, in Flax NNX with 2-D kernels throughout.

    image -> patches -> embed -> [norm1 -> attention -> + -> norm2 -> mlp -> +] x depth -> norm -> pool -> head

One class serves ViT and CLIP's vision tower, which only differ in their `ViTConfig`: the activation, a norm after the
embeddings, and the bias of the patch map.

Source: Dosovitskiy et al., arXiv 2010.11929; Radford et al. (CLIP), arXiv 2103.00020.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from surm.errors import InputError, nearest
from surm.models.attention import Attention
from surm.models.blocks import hidden_states
from surm.models.mlp import MLP
from surm.models.normalization import LayerNorm
from surm.models.presets import named
from surm.ops.activations import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The shape of a Vision Transformer.

    Attributes:
      image_size: height and width of the input, in pixels; a multiple of `patch_size`.
      patch_size: height and width of a patch, in pixels.
      width: size of a token.
      depth: number of blocks.
      heads: attention heads in a block.
      mlp_width: hidden size of a block's MLP.
      channels: colour channels of the input.
      pooling: the input of the head: the `class` token, or the `mean` of the patch tokens; the latter model has no
        class token.
      activation: one of `surm.ops.activations.ACTIVATIONS`.
      epsilon: added to the variance in every LayerNorm.
      embedding_norm: whether there is a LayerNorm between the embeddings and the first block, as in CLIP.
      patch_bias: whether the patch map has a bias (CLIP's has none).
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    channels: int = 3
    pooling: Literal["class", "mean"] = "class"
    activation: str = "gelu"
    epsilon: float = 1e-12
    embedding_norm: bool = False
    patch_bias: bool = True

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise InputError(f"patch_size={self.patch_size} does not divide image_size={self.image_size}")
        if self.pooling not in ("class", "mean"):
            raise InputError(f"pooling={self.pooling!r}, expected 'class' or 'mean'")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation={self.activation!r}; {nearest(self.activation, ACTIVATIONS)}")

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size


def _clip(image_size: int, patch_size: int, width: int, depth: int, heads: int) -> ViTConfig:
    return ViTConfig(
        image_size,
        patch_size,
        width,
        depth,
        heads,
        4 * width,
        activation="quick_gelu",
        epsilon=1e-5,
        embedding_norm=True,
        patch_bias=False,
    )


PRESETS: dict[str, ViTConfig] = {
    "vit_micro": ViTConfig(32, 8, 192, 6, 3, 768, pooling="mean", activation="gelu_tanh", epsilon=1e-6),
    "vit_ti16": ViTConfig(224, 16, 192, 12, 3, 768),
    "vit_s16": ViTConfig(224, 16, 384, 12, 6, 1536),
    "vit_b16": ViTConfig(224, 16, 768, 12, 12, 3072),
    "vit_b32": ViTConfig(224, 32, 768, 12, 12, 3072),
    "vit_l16": ViTConfig(224, 16, 1024, 24, 16, 4096),
    "clip_b32": _clip(224, 32, 768, 12, 12),
    "clip_b16": _clip(224, 16, 768, 12, 12),
    "clip_l14": _clip(224, 14, 1024, 24, 16),
}


def preset(name: str, **changes: object) -> ViTConfig:
    """Looks a preset up and changes some of its fields.

    Args:
      name: a key of `PRESETS`.
      **changes: fields of `ViTConfig` to replace.

    Returns:
      The configuration.

    Raises:
      InputError: if there is no such preset; the nearest are named.

    Examples:
      >>> preset("vit_b16", image_size=384).grid
      24
    """
    return dataclasses.replace(named(name, PRESETS), **changes)


class Embedding(nnx.Module):
    """Maps patches to tokens: a linear map, an optional class token in front, and learned positions added."""

    def __init__(self, config: ViTConfig, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the patch map, the class token (if pooled by it), the positions and the norm (if any)."""
        size = config.patch_size**2 * config.channels
        self.patch = nnx.Linear(size, config.width, use_bias=config.patch_bias, dtype=dtype, rngs=rngs)
        tokens = config.grid**2
        if config.pooling == "class":
            self.class_token = nnx.Param(jnp.zeros((1, config.width)))
            tokens += 1
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (tokens, config.width)))
        if config.embedding_norm:
            self.norm = LayerNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        self.config = config

    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch tokens size"]:
        """Cuts images into patches, row by row, and embeds them; raises InputError for images of another size."""
        size = self.config.image_size
        expected = (size, size, self.config.channels)
        if images.shape[1:] != expected:
            given = "×".join(map(str, images.shape[1:]))
            raise InputError(f"images of {given}, expected {'×'.join(map(str, expected))}")
        tokens = self.patch(patches(images, self.config.patch_size))
        if self.config.pooling == "class":
            first = jnp.broadcast_to(self.class_token[...], (tokens.shape[0], 1, tokens.shape[2]))
            tokens = jnp.concatenate([first.astype(tokens.dtype), tokens], axis=1)
        tokens = tokens + self.position[...].astype(tokens.dtype)
        return self.norm(tokens) if self.config.embedding_norm else tokens


class Block(nnx.Module):
    """A pre-norm Transformer block: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: ViTConfig, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the two norms, the attention and the MLP."""
        self.norm1 = LayerNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        self.attention = Attention(config.width, config.heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        self.mlp = MLP(config.width, config.mlp_width, config.activation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Applies the block."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ImageEncoder(nnx.Module):
    """The base class of image encoders with `embed`, pre-norm `blocks`, and a `head` that reads `features`."""

    norm_behind_attention = r".*\.norm2"
    """A pattern for the paths of the norms that follow the residual connection around attention."""

    def hidden_states(
        self, images: Float[Array, "batch height width channels"]
    ) -> list[Float[Array, "batch tokens size"]]:
        """The tokens after the embedding and after every block: depth + 1 arrays."""
        return hidden_states(self.blocks, self.embed(images), remat=self.remat)

    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch num_classes"]:
        """Computes the logits of normalised images."""
        return self.head(self.features(images))


class ViT(ImageEncoder):
    """A Vision Transformer with a head that returns one logit per class.

    Paths that adapters and conversion tables name: `embed.patch`, `blocks.I.attention.{query,key,value,output}`,
    `blocks.I.mlp.{up,down}`, `blocks.I.{norm1,norm2}`, `norm`, `head`.
    """

    def __init__(
        self,
        config: ViTConfig,
        num_classes: int,
        *,
        dtype: jax.typing.DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Creates a model with random weights.

        Args:
          config: the shape.
          num_classes: number of logits.
          dtype: the dtype to compute in (parameters stay float32); None for float32.
          remat: whether the backward pass recomputes every block; see `surm.models.blocks`.
          rngs: source of the initial weights.
        """
        self.embed = Embedding(config, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.norm = LayerNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        # A zero head would leave the adapters without a gradient in the first step.
        init = nnx.initializers.truncated_normal(0.02)
        self.head = nnx.Linear(config.width, num_classes, kernel_init=init, dtype=dtype, rngs=rngs)
        self.config = config
        self.remat = remat
        self.num_classes = num_classes

    def features(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch size"]:
        """The pooled, normalised representation that the head reads."""
        tokens = self.hidden_states(images)[-1]
        if self.config.pooling == "class":
            return self.norm(tokens[:, 0])
        return self.norm(tokens).mean(axis=1)


def patches(images: Float[Array, "batch height width channels"], size: int) -> Float[Array, "batch patches pixels"]:
    """Cuts images into size×size patches, row by row; a patch is flattened as (row, column, channel).

    Args:
      images: height and width are multiples of `size`.
      size: side of a patch, in pixels.

    Returns:
      (height / size)·(width / size) patches per image, each with size²·channels numbers.

    Raises:
      InputError: if `size` does not divide height and width.
    """
    batch, height, width, channels = images.shape
    if height % size or width % size:
        raise InputError(f"patches of {size}×{size} do not tile images of {height}×{width}")
    tiles = images.reshape(batch, height // size, size, width // size, size, channels)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


def resize_positions(position: Float[Array, "tokens size"], grid: int, extra: int) -> Float[Array, "new_tokens size"]:
    """Resizes learned positions to another patch grid, bicubically; the first `extra` rows are kept.

    JAX's bicubic kernel differs from PyTorch's and applies antialiasing when it shrinks, so the result is close to that
    of other libraries, but not equal.

    Args:
      position: rows for `extra` special tokens, then for a square grid of patches, row by row.
      grid: patches along a side of the new grid.
      extra: number of special tokens in front (1 with a class token).

    Returns:
      Positions of extra + grid² tokens; the input itself where the grid is the same.

    Raises:
      InputError: if the rows after the special ones do not form a square.
    """
    special, rest = position[:extra], position[extra:]
    side = round(len(rest) ** 0.5)
    if side * side != len(rest):
        raise InputError(f"{len(rest)} patch positions do not form a square grid")
    if side == grid:
        return position
    square = rest.reshape(side, side, -1)
    resized = jax.image.resize(square, (grid, grid, square.shape[-1]), "bicubic")
    return jnp.concatenate([special, resized.reshape(grid * grid, -1)])
