"""Writes a whole merged model as one file in surm's own format, which `config.model.weights` takes."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from typing import Any

from flax import nnx

from surm import files
from surm.errors import InputError
from surm.exchange import names
from surm.models import catalogue
from surm.models.processor import Processor, each
from surm.models.weights import HALVES
from surm.peft import surgery, tensors


def save_model(
    path: str | os.PathLike,
    model: nnx.Module,
    *,
    mean: Sequence[float] = HALVES[0],
    std: Sequence[float] = HALVES[1],
    processor: Processor | None = None,
) -> None:
    """Writes a merged model with its head: safetensors under surm's variable paths.

    `surm.models.weights.open_weights` opens it, `convert.restore(model, opened, head=True)` reads it with the head;
    a config trains from it by `model.weights`. A text model's tokenizer is no part of it.

    Args:
      path: the file, which ends in .safetensors; written in one step, its folder made if absent.
      model: of one of the presets' shapes, with an adapter that merges, or none. Left untouched.
      mean: subtracted from a pixel in 0..1, one number a channel.
      std: divides the pixel after that.
      processor: all that becomes of pictures, as `surm.load_run(DIR).task.processor`; takes the place of mean and std,
        which alone mean that pictures are squashed to a square, bilinearly.

    Raises:
      InputError: if it is no model of `surm.models.catalogue`, no preset has its shape, the adapter does not merge, a
        number is not finite, mean and std are not a number a channel, or the path is a folder or has another ending.
    """
    path = files.path(path)
    if path.suffix != ".safetensors" or path.is_dir():
        raise InputError(f"{str(path)!r} is a folder or does not end in .safetensors; expected a file that does")
    architecture = catalogue.of(model)
    if processor is not None:
        mean, std = (each(value, processor.channels) for value in (processor.mean, processor.std))
    channels = model.config.channels if architecture.reads == "image" else len(mean)
    fits = channels == len(mean) == len(std)
    if not fits or not all(math.isfinite(number) for number in mean) or not min(std, default=0) > 0:
        raise InputError(f"mean={mean!r}, std={std!r}; expected a number a channel, std above 0")
    merged = surgery.detach(surgery.merge(model))
    about = {"model": _preset(merged.config), "mean": list(mean), "std": list(std)}
    if processor is not None and not processor.squashes:  # earlier versions read files without it
        about["processor"] = processor.to_json()
    data = tensors.encoded(names.parameters(merged), {"surm": json.dumps(about, allow_nan=False)})
    files.made_folder(path.parent)
    files.replace(path, data)


def _preset(shape: Any) -> str:
    """The one that has the shape; what acts in training alone is none of a trained model's."""
    architecture = catalogue.of_shape(shape)
    usual = {field.name: field.default for field in dataclasses.fields(shape) if field.name in architecture.in_training}
    shape = dataclasses.replace(shape, **usual)
    for name, other in architecture.presets.items():
        if other == shape:
            return name
    raise InputError(f"no preset has the model's shape {shape}; there are: {', '.join(architecture.presets)}")
