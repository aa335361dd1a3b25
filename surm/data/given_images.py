"""Images that a caller gives, as arrays or as images of Pillow's."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageOps

from surm.data import pictures
from surm.errors import InputError


def images_of(examples: Sequence[Any] | np.ndarray | jax.Array) -> np.ndarray:
    """Images as one array N×H×W×C, or as an array of N objects if they are given one by one.

    Args:
      examples: a uint8 array N×H×W[×C], or a sequence of such images H×W[×C] or of Pillow images.

    Returns:
      The images.

    Raises:
      InputError: if an image has another form.
    """
    if isinstance(examples, np.ndarray | jax.Array) and examples.dtype != object:
        shape = "×".join(map(str, examples.shape))
        if examples.ndim == 3 and examples.shape[-1] in (3, 4):
            raise InputError(
                f"images are an array of {shape}; expected the list [image] if it is one image in colour, or "
                f"images[..., None] if it is {len(examples)} grey images"
            )
        return _with_channels(np.asarray(examples), "images are", "N×H×W[×C]")
    images = np.empty(len(examples), object)
    for number, example in enumerate(examples):
        images[number] = _image(example, f"image {number} is")
    return images


def _image(given: Any, what: str) -> np.ndarray:
    """One image, H×W×C."""
    if isinstance(given, Image.Image):
        return pictures.of_pillow(ImageOps.exif_transpose(given))  # upright, as when a file is read
    if isinstance(given, str | bytes) or not hasattr(given, "__len__"):
        raise InputError(f"{what} {given!r:.80}; expected a uint8 array H×W[×C], or an image of Pillow's")
    try:
        return _with_channels(np.asarray(given), what, "H×W[×C]")
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} no array ({error}); expected uint8 H×W[×C]") from error


def _with_channels(array: np.ndarray, what: str, expected: str) -> np.ndarray:
    dimensions = expected.count("×") + 1
    if array.dtype != np.uint8 or array.ndim not in (dimensions - 1, dimensions) or not array.size:
        raise InputError(f"{what} {array.dtype} of shape {array.shape}, expected uint8 {expected}, 0 to 255")
    return array[..., None] if array.ndim == dimensions - 1 else array
