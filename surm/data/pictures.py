"""Pictures as arrays: channels, size and crop, pixel by pixel as transformers' processors do without torchvision."""

import dataclasses
from typing import Protocol

import numpy as np
from PIL import Image

from surm.errors import InputError


class Rule(Protocol):
    """What becomes of a picture of any size before it is normalised; `surm.models.processor` reads one from a file.

    Attributes:
      channels: how many the result has.
      resample: Pillow's number of the filter.
      crop: height and width of the middle that is kept, with black around what is smaller; None for no crop.
      white: whether transparent pixels show white; else alpha is dropped, as by `convert("RGB")`.
    """

    channels: int
    resample: int
    crop: tuple[int, int] | None
    white: bool

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, before the crop, of a picture of such a size; InputError for one it cannot take."""


@dataclasses.dataclass(frozen=True)
class Square:
    """Every picture is squashed to a square, bilinearly: the rule where nothing says another."""

    side: int
    channels: int = 3
    resample: int = Image.Resampling.BILINEAR
    crop: tuple[int, int] | None = None
    white: bool = False

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The square, whatever the size."""
        return self.side, self.side


def prepared(image: np.ndarray, rule: Rule) -> np.ndarray:
    """A picture as a rule wants it: channels first, then size, then crop.

    Args:
      image: uint8 H×W×C.
      rule: what it shall become.

    Returns:
      uint8 of the rule's size and channels; the image itself where nothing is to be done.

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
    """What is done to a picture's channels, for a line that says so; None where they are kept, or grey is repeated.

    Args:
      given: channels of the picture.
      wanted: channels that the model reads.
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
    alpha = "what is transparent shows white" if white else "alpha is dropped"
    steps = ([alpha] if given == 4 else []) + (["the luminance is taken (Pillow's L)"] if wanted == 1 else [])
    return ", ".join(steps)


def cropped(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of a picture; where the picture is smaller, with black around it.

    Args:
      image: H×W×C.
      height: of the result.
      width: of the result.

    Returns:
      height×width×C; of an odd rest the smaller part is above and left, of an odd border the larger.

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


def of_pillow(picture: Image.Image) -> np.ndarray:
    """A picture that Pillow holds as uint8 H×W×C: palettes become colours, transparency a fourth channel.

    Args:
      picture: in one of Pillow's modes of 8 bits a channel, or of 16, which become round(v/257).

    Returns:
      One, three or four channels.

    Raises:
      InputError: if it has more bits, which cannot be scaled without knowing how far they go.
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
    """With as many channels as the rule wants, or with one that will be repeated."""
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
    """Which part of a side is kept, and where in the result it begins."""
    if given >= wanted:
        first = (given - wanted) // 2
        return slice(first, first + wanted), 0
    return slice(None), -((given - wanted) // 2)
