"""The record `Processor`, which describes how an image is preprocessed for a model:

    pixels = (factor · crop(resize(image)) − mean) / std

`surm.models.processor_files` reads one from the files of pretrained weights. `surm.data.pictures` resizes and crops on
the host, and `surm.data.pipeline.normalize` does the rest on the device.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from surm.errors import InputError

BILINEAR = 2  # as Pillow numbers its filters
RESCALE = 1 / 255


@dataclasses.dataclass(frozen=True)
class Squash:
    """Resizes to a fixed height and width, without keeping the aspect ratio."""

    height: int
    width: int

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The height and width after resizing."""
        return self.height, self.width

    def to_json(self) -> dict[str, int]:
        """The entry `size` in a processor's file."""
        return {"height": self.height, "width": self.width}


@dataclasses.dataclass(frozen=True)
class ShortestEdge:
    """Resizes so that the shorter side is `edge`, or less if the longer side would exceed `longest`.

    The aspect ratio is kept; `longest` None sets no limit.
    """

    edge: int
    longest: int | None = None

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The height and width after resizing; the longer side is rounded down to whole pixels."""
        short, long = min(height, width), max(height, width)
        limited = self.longest is not None and long / short * self.edge > self.longest
        exact = self.longest * short / long if limited else self.edge
        edge = round(exact)
        other = long if edge == short else int(exact * long / short)
        edge, other = max(edge, 1), max(other, 1)
        return (edge, other) if height <= width else (other, edge)

    def to_json(self) -> dict[str, int]:
        """The entry `size` in a processor's file."""
        longest = {} if self.longest is None else {"longest_edge": self.longest}
        return {"shortest_edge": self.edge} | longest


@dataclasses.dataclass(frozen=True)
class Within:
    """Resizes to the largest size within a height and a width that keeps the aspect ratio."""

    height: int
    width: int

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The height and width after resizing, rounded down to whole pixels."""
        scale = min(self.height / height, self.width / width)
        return max(int(height * scale), 1), max(int(width * scale), 1)

    def to_json(self) -> dict[str, int]:
        """The entry `size` in a processor's file."""
        return {"max_height": self.height, "max_width": self.width}


@dataclasses.dataclass(frozen=True)
class Processor:
    """The preprocessing of images for a model; it has the fields of a `surm.data.pictures.Rule`, and a normalisation.

    Attributes:
      resize: how images are resized; None if they must have the right size already.
      resample: the number of the resampling filter in Pillow.
      crop: height and width of the centre crop, which pads smaller images with black; None for no crop.
      factor: multiplies a pixel of 0..255.
      mean: is subtracted after that; one number for all channels, or one per channel.
      std: divides the result; one number for all channels, or one per channel.
      white: whether transparent pixels become white (`do_convert_rgb`); otherwise the alpha channel is dropped.
      channels: number of channels that the model reads.
      side: height and width of the images that the model reads; 0 before `fitted`.
      origin: the file that the processor was read from, for messages.
      notes: remarks on entries of that file that are ignored.
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
        """The height and width after resizing and before the crop; raises InputError if no rule makes a size fit."""
        if self.resize is not None:
            return self.resize.resized(height, width)
        if self.crop is None and (height, width) != (self.side, self.side):
            raise InputError(
                f"an image of {height}×{width}, but {self.origin} says do_resize=False and the model reads "
                f"{self.side}×{self.side}; provide images of that size, or set do_resize to true there"
            )
        return height, width

    def fitted(self, side: int, channels: int) -> "Processor":
        """Adapts the processor to a model; if its output has another size, all its sizes are scaled by one factor.

        Args:
          side: height and width of the images that the model reads, in pixels.
          channels: number of channels that the model reads.

        Returns:
          A processor whose results have the shape side×side×channels, with one mean and standard deviation per channel.

        Raises:
          InputError: if the results are not square, or mean or std have another number of channels.

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
        """The side of the output images, 0 if they keep their size; raises InputError if they are not square."""
        if self.crop is None and isinstance(self.resize, ShortestEdge | Within):
            raise InputError(
                f"{self.origin} says size={self.resize.to_json()} and no crop, which keeps the proportions of images, "
                "but the model reads squares; set do_center_crop and crop_size there, or size to height and width"
            )
        made = self.crop or (self.resize.resized(1, 1) if self.resize else (0, 0))
        if made[0] != made[1]:
            raise InputError(f"{self.origin} makes images of {made[0]}×{made[1]}, but the model reads squares")
        return made[0]

    @property
    def squashes(self) -> bool:
        """Whether images are resized bilinearly to a square, without keeping the aspect ratio, and rescaled to 0..1.

        Mean and std then describe the processor completely.
        """
        rule = (self.resize, self.resample, self.crop, self.factor, self.white)
        return rule == (Squash(self.side, self.side), BILINEAR, None, RESCALE, False)

    def to_json(self) -> dict[str, Any]:
        """The contents of a preprocessor_config.json that makes transformers compute the same pixels of RGB images."""
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
    """The processor for weights without one: it resizes bilinearly to a square, without keeping the aspect ratio.

    Args:
      mean: is subtracted from a pixel in 0..1; one number for all channels, or one per channel.
      std: divides the result; one number for all channels, or one per channel.
      side: height and width of the images that the model reads.
      channels: number of channels that the model reads.
      origin: the source of mean and std, for messages.

    Returns:
      The processor, fitted to the model.

    Raises:
      InputError: if mean or std have another number of channels.
    """
    mean, std = (value if isinstance(value, int | float) else tuple(value) for value in (mean, std))
    known = Processor(Squash(side, side), mean=mean, std=std, origin=origin or "the processor")
    return known.fitted(side, channels)


def each(value: float | tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A tuple with one number per channel."""
    return value if isinstance(value, tuple) else (value,) * channels


def _scaled(sizes: dict[str, int | None], ratio: float) -> dict[str, int | None]:
    return {name: None if size is None else max(round(size * ratio), 1) for name, size in sizes.items()}


def _plain(value: float | tuple[float, ...]) -> float | list[float]:
    return list(value) if isinstance(value, tuple) else value
