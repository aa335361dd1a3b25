"""Reads image processors from preprocessor_config.json, processor_config.json, or the metadata of weights.

A processor does the same as the class that its file names in transformers 5.23, in the version with Pillow (the version
with torchvision rounds differently). Unsupported fields and values raise an InputError that names them. A field that
the class does not read is ignored with a note. A missing field has the default value of the class.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from surm.errors import InputError
from surm.models.processor import RESCALE, Processor, ShortestEdge, Squash, Within

_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_VIT: dict[str, Any] = {
    "do_resize": True, "size": {"height": 224, "width": 224}, "default_to_square": True, "resample": 2,
    "do_center_crop": False, "crop_size": None, "do_rescale": True, "rescale_factor": RESCALE,
    "do_normalize": True, "image_mean": 0.5, "image_std": 0.5, "do_convert_rgb": False, "do_pad": False,
}  # fmt: skip
_CLIP = {
    **_VIT, "size": {"shortest_edge": 224}, "default_to_square": False, "resample": 3, "do_center_crop": True,
    "crop_size": 224, "image_mean": _CLIP_MEAN, "image_std": _CLIP_STD, "do_convert_rgb": True,
}  # fmt: skip
CLASSES: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": _VIT,
    "DeiTImageProcessor": {**_VIT, "size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224},
    "BeitImageProcessor": {**_VIT, "resample": 3, "crop_size": 224},
    "CLIPImageProcessor": _CLIP,
    "ChineseCLIPImageProcessor": _CLIP,
    "BitImageProcessor": _CLIP,
    "SiglipImageProcessor": {**_VIT, "default_to_square": False, "resample": 3, "do_convert_rgb": True},
    "ConvNextImageProcessor": {
        **_VIT, "size": {"shortest_edge": 384}, "default_to_square": False, "resample": 3, "crop_pct": 224 / 256,
    },
}  # fmt: skip
"""The default values of the fields of each class."""
OF_MODELS = {
    "vit": "ViTImageProcessor", "vit_mae": "ViTImageProcessor", "vit_msn": "ViTImageProcessor",
    "deit": "DeiTImageProcessor", "clip": "CLIPImageProcessor", "clip_vision_model": "CLIPImageProcessor",
    "metaclip_2": "CLIPImageProcessor", "metaclip_2_vision_model": "CLIPImageProcessor",
    "chinese_clip": "ChineseCLIPImageProcessor", "chinese_clip_vision_model": "ChineseCLIPImageProcessor",
    "dinov2": "BitImageProcessor", "siglip": "SiglipImageProcessor", "siglip_vision_model": "SiglipImageProcessor",
}  # fmt: skip
"""The class for a `model_type`, if the file names no class."""
# Fields that name the file, or say how transformers passes arrays on; no pixel depends on them.
WITHOUT_EFFECT = {
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "data_format",
    "input_data_format", "return_tensors", "device", "disable_grouping", "image_seq_length", "do_reduce_labels",
    "reduce_labels", "_valid_processor_keys", "_name_or_path", "transformers_version",
}  # fmt: skip
SIZES = (
    '{"height": H, "width": W}, {"shortest_edge": N}, with a "longest_edge" too, or {"max_height": H, "max_width": W}'
)


def of_weights(
    own: dict[str, Any], read: Callable[[str], dict[str, Any] | None], name: str, config: dict[str, Any]
) -> Processor | None:
    """The processor of pretrained weights, from their metadata or else from the files beside them.

    Args:
      own: the metadata; if it only has a mean and std, there is no processor, and the files are ignored.
      read: a function from a file name to the JSON object in that file beside the weights, or None if it is missing.
      name: the name of the weights, for messages.
      config: the config.json of the weights.

    Returns:
      The processor; None if there is none.

    Raises:
      InputError: if a field or value cannot be followed.
    """
    if "processor" in own:
        if not isinstance(own["processor"], dict):
            raise InputError(f"the metadata of {name!r} says processor={own['processor']!r:.80}; expected an object")
        return parsed(own["processor"], f"the metadata of {name!r}", config)
    if "mean" in own or "std" in own:
        return None
    return _beside(read, name, config)


def is_clip(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a CLIP model; all of these expect the same mean and standard deviation."""
    return OF_MODELS.get(str(config.get("model_type")), "").endswith("CLIPImageProcessor")


def _beside(read: Callable[[str], dict[str, Any] | None], name: str, config: dict[str, Any]) -> Processor | None:
    file, nested = "processor_config.json", (read("processor_config.json") or {}).get("image_processor")
    alone = read("preprocessor_config.json")
    if nested is None:  # the file of transformers 4; transformers 5 also reads the nested entry first
        file, nested = "preprocessor_config.json", alone
    if nested is None:
        return None
    if not isinstance(nested, dict):
        raise InputError(f"{file} of {name!r} says image_processor={nested!r:.80}; expected an object")
    found = parsed(nested, f"{file} of {name!r}", config)
    if alone is not None and alone is not nested and not _says(alone, found, config):
        note = f"{file} of {name!r} differs from preprocessor_config.json there, and is used, as in transformers 5"
        found = dataclasses.replace(found, notes=(*found.notes, note))
    return found


def _says(stated: dict[str, Any], expected: Processor, config: dict[str, Any]) -> bool:
    """Whether a second file describes the same processor."""
    try:
        return parsed(stated, "", config) == expected
    except InputError:
        return False


def parsed(stated: dict[str, Any], origin: str, config: dict[str, Any]) -> Processor:
    """Parses one processor.

    Args:
      stated: the JSON object, as transformers 4 or 5 writes it.
      origin: the file that holds it, for messages.
      config: the config.json of the weights, whose `model_type` decides on the class if `stated` names none.

    Returns:
      The processor, not yet fitted to a model.

    Raises:
      InputError: if a field or value cannot be followed; the message names it.

    Examples:
      >>> parsed({"image_processor_type": "CLIPImageProcessor", "size": 336}, "", {}).resize
      ShortestEdge(edge=336, longest=None)
    """
    kind, notes = _class_of(stated, origin, config)
    fields = {**CLASSES[kind], **stated}  # null does not mean the default, but false or no value
    _refuse(fields, origin)
    resize, crop = _sizes(kind, fields, origin)
    rescales, normalises = _flag(fields, "do_rescale", origin), _flag(fields, "do_normalize", origin)
    if unread := sorted(key for key in stated if key not in CLASSES[kind].keys() | WITHOUT_EFFECT):
        notes.append(f"{origin} has {', '.join(unread)}, which {kind} does not read: ignored, as in transformers")
    return Processor(
        resize=resize,
        resample=_whole(fields, "resample", origin, least=0, most=5),
        crop=crop,
        factor=_number(fields, "rescale_factor", origin) if rescales else 1.0,
        mean=_numbers(fields, "image_mean", origin) if normalises else 0.0,
        std=_numbers(fields, "image_std", origin, above_0=True) if normalises else 1.0,
        white=_flag(fields, "do_convert_rgb", origin),
        origin=origin,
        notes=tuple(notes),
    )


def _class_of(stated: dict[str, Any], origin: str, config: dict[str, Any]) -> tuple[str, list[str]]:
    """The class of a processor, with a note if it is a guess."""
    named = stated.get("image_processor_type") or stated.get("feature_extractor_type")
    if named is None:
        model = config.get("model_type")
        if model in OF_MODELS:
            return OF_MODELS[model], []
        guess = f"{origin} names no image_processor_type: it is read as that of a ViTImageProcessor"
        return "ViTImageProcessor", [guess]
    kind = str(named).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if kind not in CLASSES:
        known = ", ".join(CLASSES)
        raise InputError(
            f"{origin} says image_processor_type={named!r}, which is not supported; expected one of {known}; if one of "
            "them computes the same pixels, name it there"
        )
    return kind, []


def _refuse(fields: dict[str, Any], origin: str) -> None:
    """Refuses fields that would change pixels and are not supported."""
    if _flag(fields, "do_pad", origin):
        raise InputError(f"{origin} says do_pad=True; expected false, since padding is not supported")
    if fields.get("use_square_size"):
        raise InputError(
            f"{origin} says use_square_size={fields['use_square_size']!r}; expected size as height and width"
        )


def _sizes(
    kind: str, fields: dict[str, Any], origin: str
) -> tuple[Squash | ShortestEdge | Within | None, tuple[int, int] | None]:
    """How images are resized and cropped."""
    resize = _resize(fields, origin) if _flag(fields, "do_resize", origin) else None
    crop = _crop(fields, origin) if _flag(fields, "do_center_crop", origin) else None
    if kind == "ConvNextImageProcessor" and resize is not None:
        if crop is not None:
            raise InputError(f"{origin} says do_center_crop=True; expected false, since {kind} crops by crop_pct")
        return _convnext(resize, fields, origin)
    return resize, crop


def _convnext(
    resize: Squash | ShortestEdge | Within, fields: dict[str, Any], origin: str
) -> tuple[Squash | ShortestEdge, tuple[int, int] | None]:
    """ConvNeXt's rule: below 384 pixels a centre crop of a larger image, otherwise the whole image."""
    if not isinstance(resize, ShortestEdge):
        raise InputError(f'{origin} says size={fields["size"]!r}; expected {{"shortest_edge": N}}')
    edge, part = resize.edge, _number(fields, "crop_pct", origin)
    return (Squash(edge, edge), None) if edge >= 384 else (ShortestEdge(int(edge / part)), (edge, edge))


def _resize(fields: dict[str, Any], origin: str) -> Squash | ShortestEdge | Within:
    given = _named(fields["size"], square=_flag(fields, "default_to_square", origin))
    numbers = {key: _whole(given, key, origin, field="size") for key in given}
    match sorted(given):
        case ["height", "width"]:
            return Squash(**numbers)
        case ["shortest_edge"]:
            return ShortestEdge(numbers["shortest_edge"])
        case ["longest_edge", "shortest_edge"]:
            return ShortestEdge(numbers["shortest_edge"], numbers["longest_edge"])
        case ["max_height", "max_width"]:
            return Within(numbers["max_height"], numbers["max_width"])
    raise InputError(f"{origin} says size={fields['size']!r:.80}; expected a number, {SIZES}")


def _crop(fields: dict[str, Any], origin: str) -> tuple[int, int]:
    size = _named(fields["crop_size"], square=True)
    if sorted(size) != ["height", "width"]:
        expected = 'a number or {"height": H, "width": W}'
        raise InputError(
            f"{origin} says crop_size={fields['crop_size']!r:.80} and do_center_crop=True; expected {expected}"
        )
    height, width = (_whole(size, key, origin, field="crop_size") for key in ("height", "width"))
    return height, width


def _named(size: object, *, square: bool) -> dict[str, Any]:
    """A size as a dictionary, which early versions wrote as a number or a pair; empty if the value is no size."""
    if isinstance(size, int) and not isinstance(size, bool):
        return {"height": size, "width": size} if square else {"shortest_edge": size}
    if isinstance(size, list | tuple) and len(size) == 2:
        return {"height": size[0], "width": size[1]}
    return {key: value for key, value in size.items() if value is not None} if isinstance(size, dict) else {}


def _flag(fields: dict[str, Any], key: str, origin: str) -> bool:
    if not isinstance(fields[key], bool | None):
        raise InputError(f"{origin} says {key}={fields[key]!r:.80}; expected true or false")
    return bool(fields[key])


def _whole(
    fields: dict[str, Any], key: str, origin: str, *, field: str = "", least: int = 1, most: int | None = None
) -> int:
    value = fields[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        given = f"{field}={fields!r:.80}" if field else f"{key}={value!r:.80}"
        to = "" if most is None else f" to {most}"
        raise InputError(
            f"{origin} says {given}; expected a whole number from {least}{to}{f' as {key}' if field else ''}"
        )
    return value


def _number(fields: dict[str, Any], key: str, origin: str) -> float:
    value = fields[key]
    if not _finite(value) or value <= 0:
        raise InputError(f"{origin} says {key}={value!r:.80}; expected a number above 0")
    return float(value)


def _numbers(fields: dict[str, Any], key: str, origin: str, *, above_0: bool = False) -> float | tuple[float, ...]:
    """A number for all channels, or one per channel."""
    value = fields[key]
    listed = value if isinstance(value, list | tuple) else [value]
    if not listed or not all(_finite(number) and (number > 0 or not above_0) for number in listed):
        limit = " above 0" if above_0 else ""
        raise InputError(f"{origin} says {key}={value!r:.80}; expected a number{limit}, or one{limit} per channel")
    return tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
