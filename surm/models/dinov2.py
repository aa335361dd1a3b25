"""DINOv2: a pre-norm Vision Transformer with layer scale and, in some variants, registers or a gated MLP.

    image -> patches -> embed -> [norm1 -> attention -> scale1 -> + -> norm2 -> mlp -> scale2 -> +] x depth -> norm
          -> class token and mean of the patches -> head

Source: Oquab et al., arXiv 2304.07193; Darcet et al. (registers), arXiv 2309.16588.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from surm.errors import InputError, nearest
from surm.models.attention import Attention
from surm.models.interpolation import resized
from surm.models.mlp import MLP
from surm.models.normalization import LayerNorm
from surm.models.vit import ImageEncoder, patches
from surm.ops.activations import ACTIVATIONS
from surm.ops.matmul import dot_general

POOLINGS = ("class_and_mean", "class", "mean")


@dataclasses.dataclass(frozen=True)
class Dinov2Config:
    """The shape of a DINOv2 model.

    Attributes:
      image_size: height and width of the input, in pixels; a multiple of `patch_size`.
      patch_size: height and width of a patch, in pixels.
      width: size of a token.
      depth: number of blocks.
      heads: attention heads in a block.
      mlp_ratio: hidden size of a block's MLP divided by `width`; a gated MLP has two thirds of that size, rounded up
        to a multiple of 8.
      channels: colour channels of the input.
      positions: patches along one side of the table of learned positions, which are interpolated if the input has
        another number.
      registers: number of register tokens, which stand between the class token and the patches.
      gated: whether the MLP is down(silu(gate(x)) · up(x)), as in the giant model.
      pooling: the input of the head: the `class` token, the `mean` of the patches, or both concatenated.
      activation: activation of an MLP that is not gated; one of `surm.ops.activations.ACTIVATIONS`.
      epsilon: added to the variance in every LayerNorm.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: int | float = 4
    channels: int = 3
    positions: int = 37
    registers: int = 0
    gated: bool = False
    pooling: Literal["class_and_mean", "class", "mean"] = "class_and_mean"
    activation: str = "gelu"
    epsilon: float = 1e-6

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise InputError(f"image_size must be a multiple of patch_size={self.patch_size}, got {self.image_size}")
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation={self.activation!r}; {nearest(self.activation, ACTIVATIONS)}")

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        """Hidden size of a block's MLP."""
        whole = int(self.width * self.mlp_ratio)
        return (int(whole * 2 / 3) + 7) // 8 * 8 if self.gated else whole


def _shape(width: int, depth: int, heads: int, **more: object) -> Dinov2Config:
    return Dinov2Config(224, 14, width, depth, heads, **more)


PRESETS: dict[str, Dinov2Config] = {
    "dinov2_s14": _shape(384, 12, 6),
    "dinov2_b14": _shape(768, 12, 12),
    "dinov2_l14": _shape(1024, 24, 16),
    "dinov2_g14": _shape(1536, 40, 24, gated=True),
    "dinov2_registers_s14": _shape(384, 12, 6, registers=4),
    "dinov2_registers_b14": _shape(768, 12, 12, registers=4),
    "dinov2_registers_l14": _shape(1024, 24, 16, registers=4),
    "dinov2_registers_g14": _shape(1536, 40, 24, registers=4, gated=True),
}


class Embedding(nnx.Module):
    """Maps patches to tokens: the class token, the registers, and the linearly mapped patches, in this order.

    Positions are added to the class token and the patches, not to the registers.
    """

    def __init__(self, config: Dinov2Config, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the patch map, the class token, the registers and the positions."""
        self.patch = nnx.Linear(config.patch_size**2 * config.channels, config.width, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros((1, config.width)))
        if config.registers:
            self.registers = nnx.Param(jnp.zeros((config.registers, config.width)))
        rows = config.positions**2 + 1
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, config.width)))
        self.config = config

    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch tokens size"]:
        """Cuts images into patches, row by row, and embeds them; raises InputError for images of another size."""
        expected = (self.config.image_size, self.config.image_size, self.config.channels)
        if images.shape[1:] != expected:
            given = "×".join(map(str, images.shape[1:]))
            raise InputError(f"images must be of {'×'.join(map(str, expected))}, got {given}")
        tokens = self.patch(patches(images, self.config.patch_size))
        position = self.positions().astype(tokens.dtype)
        first = [self.class_token[...].astype(tokens.dtype) + position[:1]]
        first += [self.registers[...].astype(tokens.dtype)] if self.config.registers else []
        rows = jnp.concatenate(first)
        batched = jnp.broadcast_to(rows, (len(tokens), *rows.shape))
        return jnp.concatenate([batched, tokens + position[1:]], axis=1)

    def positions(self) -> Float[Array, "tokens size"]:
        """The positions of the class token and of the image's patches, interpolated if necessary."""
        position = self.position[...]
        if self.config.grid == self.config.positions:
            return position
        square = position[1:].reshape(self.config.positions, self.config.positions, -1)
        # transformers applies antialiasing only in the models with registers
        new = resized(square, self.config.grid, smooth=self.config.registers > 0)
        return jnp.concatenate([position[:1], new.reshape(self.config.grid**2, -1)])


class LayerScale(nnx.Module):
    """Multiplies every token by one learned vector."""

    def __init__(self, width: int):
        """Creates the vector of ones."""
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Returns x · scale."""
        return x * self.scale[...].astype(x.dtype)


class GatedMLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)). Source: Shazeer, arXiv 2002.05202."""

    def __init__(self, width: int, hidden: int, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates the three maps; arguments as for `surm.models.mlp.MLP`."""
        init = nnx.initializers.xavier_uniform()
        self.gate = nnx.Linear(width, hidden, kernel_init=init, dtype=dtype, dot_general=dot_general, rngs=rngs)
        self.up = nnx.Linear(width, hidden, kernel_init=init, dtype=dtype, dot_general=dot_general, rngs=rngs)
        self.down = nnx.Linear(hidden, width, kernel_init=init, dtype=dtype, dot_general=dot_general, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the maps."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """A pre-norm block with layer scale: x + scale1(attention(norm1(x))), then x + scale2(mlp(norm2(x)))."""

    def __init__(self, config: Dinov2Config, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs):
        """Creates norms, attention, MLP and scales."""
        self.norm1 = LayerNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        self.attention = Attention(config.width, config.heads, dtype=dtype, rngs=rngs)
        self.scale1 = LayerScale(config.width)
        self.norm2 = LayerNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        if config.gated:
            self.mlp = GatedMLP(config.width, config.mlp_width, dtype=dtype, rngs=rngs)
        else:
            self.mlp = MLP(config.width, config.mlp_width, config.activation, dtype=dtype, rngs=rngs)
        self.scale2 = LayerScale(config.width)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Applies the block."""
        x = x + self.scale1(self.attention(self.norm1(x)))
        return x + self.scale2(self.mlp(self.norm2(x)))


class Dinov2(ImageEncoder):
    """A DINOv2 encoder with a head that returns one logit per class.

    Paths that adapters and conversion tables name: `embed.{patch,class_token,registers,position}`,
    `blocks.I.attention.{query,key,value,output}`, `blocks.I.mlp.{up,down}` (and `gate` if it is gated),
    `blocks.I.{norm1,norm2,scale1,scale2}`, `norm`, `head`.
    """

    def __init__(
        self,
        config: Dinov2Config,
        num_classes: int,
        *,
        dtype: jax.typing.DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Creates a model with random weights; arguments as for `surm.models.vit.ViT`."""
        self.embed = Embedding(config, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.norm = LayerNorm(config.width, epsilon=config.epsilon, dtype=dtype)
        read = config.width * (2 if config.pooling == "class_and_mean" else 1)
        # A zero head would leave the adapters without a gradient in the first step.
        init = nnx.initializers.truncated_normal(0.02)
        self.head = nnx.Linear(read, num_classes, kernel_init=init, dtype=dtype, rngs=rngs)
        self.config = config
        self.remat = remat

    def features(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch size"]:
        """The normalised representation that the head reads."""
        tokens = self.norm(self.hidden_states(images)[-1])
        of_image, of_patches = tokens[:, 0], tokens[:, 1 + self.config.registers :].mean(axis=1)
        read = {"class": (of_image,), "mean": (of_patches,), "class_and_mean": (of_image, of_patches)}
        return jnp.concatenate(read[self.config.pooling], axis=1)
