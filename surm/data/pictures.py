"""Pictures as arrays: channels, size and crop, with the same pixels as transformers' processors without torchvision."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from surm.errors import InputError

Picture = UInt8[np.ndarray, "height width channels"]


@runtime_checkable
class Rule(Protocol):
    """The preparation of a picture of any size before normalisation; `surm.models.processor` reads one from a file.

    Attributes:
      channels: the number of channels of the result.
      resample: Pillow's number of the filter.
      crop: height and width of the central crop; a smaller picture is padded with black. None for no crop.
      white: whether transparent pixels become white; otherwise alpha is dropped, as by `convert("RGB")`.
    """

    channels: int
    resample: int
    crop: tuple[int, int] | None
    white: bool

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The height and width before the crop for a picture of this size; InputError if the size is not allowed."""


@dataclasses.dataclass(frozen=True)
class Square:
    """Squashes every picture bilinearly to a square; this is the default rule."""

    side: int
    channels: int = 3
    resample: int = Image.Resampling.BILINEAR
    crop: tuple[int, int] | None = None
    white: bool = False

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The size of the square, for every picture."""
        return self.side, self.side


def prepared(image: Picture, rule: Rule) -> UInt8[np.ndarray, "new_height new_width new_channels"]:
    """Prepares a picture by a rule: first its channels, then its size, then the crop.

    Args:
      image: uint8 H×W×C.
      rule: the rule.

    Returns:
      uint8 with the rule's size and channels; the image itself if nothing is to be done.

    Raises:
      InputError: if the channels cannot become the rule's, or the rule cannot take the size.

    Examples:
      >>> prepared(np.zeros((31, 500, 4), np.uint8), Square(32)).shape
      (32, 32, 3)
    """
    image = _narrowed(image, rule)
    image = _resized(image, rule.resized(*image.shape[:2]), rule.resample)
    if rule.crop is not None:
        image = cropped(image, *rule.crop)
    # A grey picture is repeated last, since three equal channels would be resized alike.
    return image if image.shape[-1] == rule.channels else np.repeat(image, rule.channels, axis=-1)


def conversion(given: int, wanted: int, *, white: bool = False) -> str | None:
    """Describes the conversion of a picture's channels; None if they are kept, or grey is repeated.

    Args:
      given: the number of channels of the picture.
      wanted: the number of channels that the model reads.
      white: as in `Rule`.

    Returns:
      A clause; InputError if nothing can be done.

    Examples:
      >>> conversion(4, 1)
      "alpha is dropped, the luminance is taken (Pillow's L)"
    """
    if given == wanted or (given, wanted) == (1, 3):
        return None
    if given not in (3, 4) or wanted not in (1, 3):
        expected = "; expected 1 (grey), 3 (colour) or 4 (with alpha), as the last axis" if wanted in (1, 3) else ""
        raise InputError(f"an image has {given} channels, but the model reads {wanted}{expected}")
    alpha = "transparent pixels become white" if white else "alpha is dropped"
    steps = ([alpha] if given == 4 else []) + (["the luminance is taken (Pillow's L)"] if wanted == 1 else [])
    return ", ".join(steps)


def cropped(
    image: Shaped[np.ndarray, "old_height old_width channels"], height: int, width: int
) -> Shaped[np.ndarray, "{height} {width} channels"]:
    """The centre of a picture; a smaller picture is padded with black.

    Args:
      image: H×W×C.
      height: the height of the result.
      width: the width of the result.

    Returns:
      height×width×C. If an odd number of pixels is cut, fewer are cut above and left; if an odd number is added, more
      are added above and left.

    Source: `center_crop` of transformers 5.23.
    """
    rows, top = _overlap(image.shape[0], height)
    columns, left = _overlap(image.shape[1], width)
    middle = image[rows, columns]
    if middle.shape[:2] == (height, width):
        return middle
    framed = np.zeros((height, width, image.shape[-1]), image.dtype)
    framed[top : top + middle.shape[0], left : left + middle.shape[1]] = middle
    return framed


def of_pillow(picture: Image.Image) -> Picture:
    """Converts a picture of Pillow to uint8 H×W×C: palettes become colours, transparency a fourth channel.

    Args:
      picture: a picture in one of Pillow's modes with 8 bits a channel, or with 16, which become round(v/257).

    Returns:
      The pixels, with one, three or four channels.

    Raises:
      InputError: if it has more bits, which cannot be scaled because their range is unknown.
    """
    if picture.mode.startswith("I;16"):
        return ((np.asarray(picture)[..., None].astype(np.uint32) + 128) // 257).astype(np.uint8)
    if picture.mode in ("I", "F"):
        raise InputError(f"an image in Pillow's mode {picture.mode!r}; expected 8 or 16 bits, whose range is known")
    clear = "A" in picture.getbands() or picture.info.get("transparency") is not None
    grey = picture.mode in ("1", "L") and not clear
    array = np.asarray(picture.convert("RGBA" if clear else "L" if grey else "RGB"))
    return array[..., None] if array.ndim == 2 else array


def _narrowed(image: np.ndarray, rule: Rule) -> np.ndarray:
    """The image with as many channels as the rule wants, or with one that will be repeated."""
    if conversion(image.shape[-1], rule.channels, white=rule.white) is None:
        return image
    picture = Image.fromarray(image)
    if image.shape[-1] == 4:
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = (Image.alpha_composite(white, picture) if rule.white else picture).convert("RGB")
    array = np.asarray(picture.convert("L") if rule.channels == 1 else picture)
    return array[..., None] if array.ndim == 2 else array


def _resized(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    if image.shape[-1] in (3, 4):
        return _through_pillow(image, size, resample)
    channels = [_through_pillow(image[..., channel], size, resample) for channel in range(image.shape[-1])]
    return np.stack(channels, axis=-1)


def _through_pillow(pixels: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], resample))


def _overlap(given: int, wanted: int) -> tuple[slice, int]:
    """The part of a side that is kept, and its start in the result."""
    if given >= wanted:
        first = (given - wanted) // 2
        return slice(first, first + wanted), 0
    return slice(None), -((given - wanted) // 2)
