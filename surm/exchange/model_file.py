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
from surm.models.architecture import LANGUAGE
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
    a config trains from it by `model.weights`. A text model's tokenizer is not in the file.

    Args:
      path: the file, whose name ends in .safetensors. It is written in one step; its folder is created if needed.
      model: a model with the shape of a preset, without an adapter or with one that merges. Left untouched.
      mean: one number per channel, which is subtracted from pixels in 0..1.
      std: one number per channel, by which the result is divided.
      processor: the whole preparation of images, such as `surm.load_run(DIR).task.processor`, which replaces mean and
        std. Without it, the file means that images are resized to a square bilinearly, without keeping their ratio.

    Raises:
      InputError: if the model is a language model or not of `surm.models.catalogue`, or no preset has its shape, if the
        adapter does not merge or a number is not finite, if mean and std are not one number per channel, or if the path
        is a folder or has another ending.
    """
    path = files.path(path)
    if path.suffix != ".safetensors" or path.is_dir():
        raise InputError(f"{str(path)!r} is a folder or does not end in .safetensors; expected a file that does")
    architecture = catalogue.of(model)
    if architecture.reads == LANGUAGE:
        raise InputError(
            f"{str(path)!r} cannot hold a language model, which needs its tokenizer beside it: expected the path of a "
            "folder, for surm.export_merged or surm merge"
        )
    if processor is not None:
        mean, std = (each(value, processor.channels) for value in (processor.mean, processor.std))
    channels = model.config.channels if architecture.reads == "image" else len(mean)
    fits = channels == len(mean) == len(std)
    if not fits or not all(math.isfinite(number) for number in mean) or not min(std, default=0) > 0:
        raise InputError(f"mean={mean!r}, std={std!r}; expected one number per channel, std above 0")
    merged = surgery.detach(surgery.merge(model))
    about = {"model": _preset(merged.config), "mean": list(mean), "std": list(std)}
    if processor is not None and not processor.squashes:  # earlier versions can read files without it
        about["processor"] = processor.to_json()
    data = tensors.encoded(names.parameters(merged), {"surm": json.dumps(about, allow_nan=False)})
    files.made_folder(path.parent)
    files.replace(path, data)


def _preset(shape: Any) -> str:
    """The name of the preset with the shape, apart from fields that act only in training."""
    architecture = catalogue.of_shape(shape)
    usual = {field.name: field.default for field in dataclasses.fields(shape) if field.name in architecture.in_training}
    shape = dataclasses.replace(shape, **usual)
    for name, other in architecture.presets.items():
        if other == shape:
            return name
    raise InputError(f"no preset has the model's shape {shape}; the presets are: {', '.join(architecture.presets)}")
