"""The shape of a decoder: its sizes, and switches for all that kinds of decoders do differently."""

import dataclasses

from surm.errors import InputError, nearest
from surm.models.rotary import Rotary
from surm.ops.activations import ACTIVATIONS

MAPS = ("query", "key", "value", "output", "gate", "up", "down")
"""The linear maps of a block, in attention and MLP."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """All that may differ between the blocks of a decoder. Blocks of the same decoder are alike in everything else.

    Attributes:
      window: how many tokens a token sees, itself included; None for all before it.
      rotary: the rotation of queries and keys; None for none.
    """

    window: int | None = None
    rotary: Rotary | None = Rotary()

    def __post_init__(self):
        if self.window is not None and self.window < 1:
            raise InputError(f"window={self.window}, expected at least 1, or None")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder.

    Attributes:
      vocabulary: number of tokens.
      width: size of a token's representation.
      depth: number of blocks.
      heads: heads of the queries in a block.
      key_value_heads: heads of the keys and of the values; divides `heads`.
      head_size: size of a head.
      mlp_width: hidden size of a block's MLP.
      positions: the longest context that the model was trained with, in tokens.
      layers: windows and rotations of the blocks, which repeat: block i has `layers[i % len(layers)]`.
      activation: one of `surm.ops.activations.ACTIVATIONS`.
      epsilon: added to the mean square or the variance in every norm.
      tied: whether the output map is the transposed table of the words.
      biases: the names of the maps in `MAPS` that have a bias.
      gated: whether the MLP multiplies by an activated gate; otherwise it has the maps `up` and `down` alone.
      centred: whether norms also subtract the mean and have a bias (LayerNorm); otherwise they are RMSNorms.
      norm_offset: is added to the scale of every RMSNorm; 1 where files hold the scale minus 1.
      head_norms: whether queries and keys are normalised, each head for itself, before the rotation.
      branch_norms: whether the outputs of attention and of MLP are normalised before they are added to the tokens.
      scaled_words: whether words are multiplied by √width.
      learned_positions: whether a table of positions is added to the words.
      score_size: scores are divided by √score_size; None for `head_size`.
      score_cap: bounds scores to ±score_cap by score_cap · tanh(score / score_cap); None for no bound.
      logit_cap: bounds logits in the same way.
      kind: the `model_type` of the config.json that the shape was read from; it does not count in comparisons.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    key_value_heads: int
    head_size: int
    mlp_width: int
    positions: int = 2048
    layers: tuple[Layer, ...] = (Layer(),)
    activation: str = "silu"
    epsilon: float = 1e-5
    tied: bool = False
    biases: tuple[str, ...] = ()
    gated: bool = True
    centred: bool = False
    norm_offset: float = 0.0
    head_norms: bool = False
    branch_norms: bool = False
    scaled_words: bool = False
    learned_positions: bool = False
    score_size: int | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    kind: str = dataclasses.field(default="", compare=False)

    def __post_init__(self):
        for name in ("vocabulary", "width", "depth", "heads", "key_value_heads", "head_size", "mlp_width", "positions"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}, expected at least 1")
        if self.heads % self.key_value_heads:
            raise InputError(f"key_value_heads={self.key_value_heads} does not divide heads={self.heads}")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation={self.activation!r}; {nearest(self.activation, ACTIVATIONS)}")
        if unknown := [name for name in self.biases if name not in MAPS]:
            raise InputError(f"biases names {unknown[0]!r}; {nearest(unknown[0], MAPS)}")
        if not self.layers:
            raise InputError("layers is empty, expected at least one record")
        for layer in self.layers:
            if layer.rotary is not None:
                layer.rotary.check(self.head_size)

    @property
    def max_length(self) -> int:
        """The longest context in tokens."""
        return self.positions

    @property
    def every_layer(self) -> tuple[Layer, ...]:
        """The record of every block, `depth` of them."""
        return tuple(self.layers[number % len(self.layers)] for number in range(self.depth))


def repeated(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The shortest beginning of a list of records that gives the whole list when it is repeated.

    Examples:
      >>> len(repeated((Layer(8), Layer(), Layer(8))))
      2
    """
    for length in range(1, len(layers)):
        if all(layer == layers[number % length] for number, layer in enumerate(layers)):
            return layers[:length]
    return layers
