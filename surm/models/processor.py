"""How a picture becomes the pixels that a model was trained on: what an image processor's file says, as one record.

    pixels = (factor · crop(resize(picture)) − mean) / std

`surm.models.processor_files` reads one from the files beside weights; `surm.data.pictures` does the first two steps,
`surm.data.pipeline.normalize` the others, on the device.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from surm.errors import InputError

BILINEAR = 2  # as Pillow numbers its filters
RESCALE = 1 / 255


@dataclasses.dataclass(frozen=True)
class Squash:
    """Resizing to a height and a width, whatever the proportions."""

    height: int
    width: int

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what a picture of such a size becomes."""
        return self.height, self.width

    def to_json(self) -> dict[str, int]:
        """As the entry `size` of a processor's file."""
        return {"height": self.height, "width": self.width}


@dataclasses.dataclass(frozen=True)
class ShortestEdge:
    """Resizing that keeps proportions, by the shorter side; `longest` is what the other may have, None for any."""

    edge: int
    longest: int | None = None

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what a picture of such a size becomes; the longer side is cut to whole pixels."""
        short, long = min(height, width), max(height, width)
        limited = self.longest is not None and long / short * self.edge > self.longest
        exact = self.longest * short / long if limited else self.edge
        edge = round(exact)
        other = long if edge == short else int(exact * long / short)
        edge, other = max(edge, 1), max(other, 1)
        return (edge, other) if height <= width else (other, edge)

    def to_json(self) -> dict[str, int]:
        """As the entry `size` of a processor's file."""
        longest = {} if self.longest is None else {"longest_edge": self.longest}
        return {"shortest_edge": self.edge} | longest


@dataclasses.dataclass(frozen=True)
class Within:
    """Resizing that keeps proportions, to the largest size within a height and a width."""

    height: int
    width: int

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what a picture of such a size becomes, cut to whole pixels."""
        scale = min(self.height / height, self.width / width)
        return max(int(height * scale), 1), max(int(width * scale), 1)

    def to_json(self) -> dict[str, int]:
        """As the entry `size` of a processor's file."""
        return {"max_height": self.height, "max_width": self.width}


@dataclasses.dataclass(frozen=True)
class Processor:
    """What is done to every picture; a `surm.data.pictures.Rule` with its normalisation.

    Attributes:
      resize: how the size changes; None where it must be right already.
      resample: Pillow's number of the filter.
      crop: height and width of the middle that is kept, with black around what is smaller; None for no crop.
      factor: what multiplies a pixel of 0..255.
      mean: subtracted after that, one number for all channels or a number each.
      std: divides the pixel after that, likewise.
      white: whether transparent pixels show white (`do_convert_rgb`); else alpha is dropped.
      channels: how many the model reads.
      side: height and width of what the model reads; 0 before `fitted`.
      origin: the file it was read from, for messages.
      notes: what of that file is passed over, in words.
    """

    resize: Squash | ShortestEdge | Within | None
    resample: int = BILINEAR
    crop: tuple[int, int] | None = None
    factor: float = RESCALE
    mean: float | tuple[float, ...] = 0.5
    std: float | tuple[float, ...] = 0.5
    white: bool = False
    channels: int = 3
    side: int = 0
    origin: str = dataclasses.field(default="the processor", compare=False)
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, before the crop, of a picture of such a size; InputError if it must be right and is not."""
        if self.resize is not None:
            return self.resize.resized(height, width)
        if self.crop is None and (height, width) != (self.side, self.side):
            raise InputError(
                f"an image of {height}×{width}, but {self.origin} says do_resize=False and the model reads "
                f"{self.side}×{self.side}; bring images of that size, or set do_resize to true there"
            )
        return height, width

    def fitted(self, side: int, channels: int) -> "Processor":
        """The same for a model that reads squares of a side: all sizes are scaled alike where the file's are others.

        Args:
          side: height and width of what the model reads, in pixels.
          channels: how many it reads.

        Returns:
          A processor whose results are side×side×channels, with a mean and a standard deviation for each channel.

        Raises:
          InputError: if its results are no squares, or mean or std are not a number a channel.

        Examples:
          >>> Processor(ShortestEdge(256), crop=(224, 224)).fitted(112, 3).resize
          ShortestEdge(edge=128, longest=None)
        """
        for name, value in (("image_mean", self.mean), ("image_std", self.std)):
            if isinstance(value, tuple) and len(value) != channels:
                raise InputError(
                    f"{self.origin} says {name}={list(value)}, but the model reads {channels} channel"
                    f"{'s' if channels > 1 else ''}; expected a number for each, or one number without brackets for all"
                )
        made = self.made
        ratio = side / made if made else 1
        resize, crop = self.resize, self.crop
        if ratio != 1:
            resize = None if resize is None else type(resize)(**_scaled(dataclasses.asdict(resize), ratio))
            crop = None if crop is None else (side, side)
        mean, std = each(self.mean, channels), each(self.std, channels)
        return dataclasses.replace(self, resize=resize, crop=crop, mean=mean, std=std, channels=channels, side=side)

    @property
    def made(self) -> int:
        """The side of the squares that it makes, 0 where pictures stay as they are; InputError if they are others."""
        if self.crop is None and isinstance(self.resize, ShortestEdge | Within):
            raise InputError(
                f"{self.origin} says size={self.resize.to_json()} and no crop, which leaves images their proportions, "
                "but the model reads squares; set do_center_crop and crop_size there, or size to height and width"
            )
        made = self.crop or (self.resize.resized(1, 1) if self.resize else (0, 0))
        if made[0] != made[1]:
            raise InputError(f"{self.origin} makes images of {made[0]}×{made[1]}, but the model reads squares")
        return made[0]

    @property
    def squashes(self) -> bool:
        """Whether mean and std say all: pictures are squashed to a square, bilinearly, and end in 0..1 before those."""
        rule = (self.resize, self.resample, self.crop, self.factor, self.white)
        return rule == (Squash(self.side, self.side), BILINEAR, None, RESCALE, False)

    def to_json(self) -> dict[str, Any]:
        """As preprocessor_config.json, from which transformers makes the same pixels of pictures in colour."""
        exact = self.resize is None or isinstance(self.resize, Squash)
        kind = "CLIPImageProcessor" if not exact else "DeiTImageProcessor" if self.crop else "ViTImageProcessor"
        size = {} if self.resize is None else {"size": self.resize.to_json()}
        crop = {} if self.crop is None else {"crop_size": {"height": self.crop[0], "width": self.crop[1]}}
        normalised = ({*each(self.mean, 1)}, {*each(self.std, 1)}) != ({0}, {1})
        return {
            "image_processor_type": kind,
            "do_convert_rgb": self.white,
            "do_resize": self.resize is not None,
            "resample": self.resample,
            "do_center_crop": self.crop is not None,
            "do_rescale": self.factor != 1,
            "rescale_factor": self.factor,
            "do_normalize": normalised,
            "image_mean": _plain(self.mean),
            "image_std": _plain(self.std),
        } | size | crop  # fmt: skip


def plain(
    mean: float | Sequence[float], std: float | Sequence[float], *, side: int, channels: int, origin: str = ""
) -> Processor:
    """The processor of weights that bring none: pictures are squashed to the model's square, bilinearly.

    Args:
      mean: subtracted from a pixel in 0..1, one number for all channels or a number each.
      std: divides the pixel after that, likewise.
      side: height and width of what the model reads.
      channels: how many it reads.
      origin: what states mean and std, for messages.

    Returns:
      The processor, fitted; InputError if mean or std are not a number a channel.
    """
    mean, std = (value if isinstance(value, int | float) else tuple(value) for value in (mean, std))
    known = Processor(Squash(side, side), mean=mean, std=std, origin=origin or "the processor")
    return known.fitted(side, channels)


def each(value: float | tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A number a channel."""
    return value if isinstance(value, tuple) else (value,) * channels


def _scaled(sizes: dict[str, int | None], ratio: float) -> dict[str, int | None]:
    return {name: None if size is None else max(round(size * ratio), 1) for name, size in sizes.items()}


def _plain(value: float | tuple[float, ...]) -> float | list[float]:
    return list(value) if isinstance(value, tuple) else value
