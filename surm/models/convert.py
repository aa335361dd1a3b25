"""Published weights into our models: convert names and shapes by a table, check against the model, set.

weights = open_weights("hf:google/vit-base-patch16-224")
model = ViT(config_from_hf(weights.config), num_classes=10, rngs=nnx.Rngs(0))
model = restore(model, weights)
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from surm.errors import InputError
from surm.models.tables import TABLES, Table, keep
from surm.models.vit import ViT, ViTConfig, resize_positions
from surm.models.weights import Weights, few

Model = TypeVar("Model", bound=nnx.Module)


def convert(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames and reshapes published arrays to our variables; the table is recognised by the keys.

    Args:
      arrays: key in the file -> array.

    Returns:
      Our variable path -> array. Keys that mean nothing to the table keep their name.

    Raises:
      InputError: if no table fits, or two keys are the same variable.

    Examples:
      >>> arrays = {"embeddings.class_embedding": np.ones(8), "pre_layrnorm.weight": np.ones(8)}
      >>> {path: array.shape for path, array in convert(arrays).items()}
      {'embed.class_token': (1, 8), 'embed.norm.scale': (8,)}
    """
    table = _table(arrays)
    converted, origin = {}, {}
    for key, array in arrays.items():
        short = re.sub(f"^{table.prefix}", "", key)
        if re.fullmatch(table.ignored, short):
            continue
        path, transform = _apply(table, short)
        if path in converted:
            raise InputError(f"keys {origin[path]!r} and {key!r} are both the variable {path!r}")
        converted[path], origin[path] = transform(array), key
    return converted


def _table(keys: Iterable[str]) -> Table:
    keys = list(keys)
    for table in TABLES:
        if any(re.fullmatch(f"(?:{table.prefix})?(?:{table.marker})", key) for key in keys):
            return table
    known = ", ".join(table.name for table in TABLES)
    raise InputError(f"weights of an unknown model, with keys {few(sorted(keys), 4)}; known: {known}")


def _apply(table: Table, key: str) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    for rule in table.rules:
        if match := re.fullmatch(rule.pattern, key):
            return match.expand(rule.path), rule.transform
    return key, keep


def restore(model: Model, weights: Weights, *, head: bool = False) -> Model:
    """Loads weights into a copy of a model; the model itself is left as it was.

    Learned positions are resized where the model's patch grid differs from the file's.

    Args:
      model: gives the structure, the dtypes and, without `head`, the head.
      weights: from `open_weights`.
      head: whether the classifier comes from the file too; it must then be there, in the model's shape.

    Returns:
      A new model of the same structure, all of it from the file (but for the head).

    Raises:
      InputError: if variables are missing, superfluous or of another shape; all three are listed.
    """
    model = nnx.clone(model)
    variables = {".".join(map(str, path)): v for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    arrays = convert(weights.arrays)
    if not head:
        variables, arrays = _without_head(variables), _without_head(arrays)
    if isinstance(model, ViT):
        arrays = _resized_positions(arrays, model.config)
    _check(weights.name, arrays, variables)
    for path, variable in variables.items():
        variable.set_value(jnp.asarray(arrays[path], variable.dtype))
    return model


def _without_head(named: dict) -> dict:
    return {path: value for path, value in named.items() if not path.startswith("head.")}


def _resized_positions(arrays: dict[str, np.ndarray], config: ViTConfig) -> dict[str, np.ndarray]:
    position = arrays.get("embed.position")
    extra = int(config.pooling == "class")
    if position is None or position.ndim != 2:
        return arrays
    patches = len(position) - extra
    # One row more or less than a square is no square: a class token on one side alone stays a mismatch.
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        return arrays
    resized = resize_positions(jnp.asarray(position, jnp.float32), config.grid, extra)
    return {**arrays, "embed.position": np.asarray(resized)}


def _check(name: str, arrays: dict[str, np.ndarray], variables: dict[str, nnx.Variable]) -> None:
    different = [
        f"{path}: file {_shape(arrays[path])}, model {tuple(variables[path].shape)}"
        for path in sorted(arrays.keys() & variables.keys())
        if _shape(arrays[path]) != str(tuple(variables[path].shape))
    ]
    parts = {
        "missing in the file": sorted(variables.keys() - arrays.keys()),
        "not in the model": sorted(arrays.keys() - variables.keys()),
        "different": different,
    }
    found = [f"{title}: {few(paths)}" for title, paths in parts.items() if paths]
    if found:
        raise InputError(f"{name!r} does not fit the model; " + "; ".join(found))


def _shape(array: np.ndarray) -> str:
    # Whole numbers are quantised weights or something else altogether, never to be cast to a kernel.
    whole = "" if jnp.issubdtype(array.dtype, jnp.floating) else f" of {array.dtype}"
    return f"{array.shape}{whole}"


_VIT = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "image_size": 224, "patch_size": 16, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}  # fmt: skip
_CLIP = {**_VIT, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
# A published config.json leaves out what equals the publisher's default.
HF_DEFAULTS: dict[str, dict] = {"vit": _VIT, "clip": _CLIP, "clip_vision_model": _CLIP}
HF_ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip


def config_from_hf(config: dict) -> ViTConfig:
    """Reads the shape of a ViT, or of CLIP's vision tower, from a Hugging Face config.json.

    Args:
      config: the JSON object; a whole CLIP's holds the tower under "vision_config".

    Returns:
      The configuration that the weights beside that file fit.

    Raises:
      InputError: if the model type, the activation or a value is not supported.

    Examples:
      >>> config_from_hf({"model_type": "vit", "hidden_size": 384, "num_attention_heads": 6}).width
      384
    """
    kind = _known(config, "model_type", HF_DEFAULTS)
    given = {**config, **_tower(config)}
    fields = {**HF_DEFAULTS[kind], **{key: value for key, value in given.items() if value is not None}}
    if fields["qkv_bias"] is not True:
        raise InputError(f"config.json says qkv_bias={fields['qkv_bias']!r}; expected maps with a bias")
    return ViTConfig(
        image_size=_whole(fields, "image_size"),
        patch_size=_whole(fields, "patch_size"),
        width=_whole(fields, "hidden_size"),
        depth=_whole(fields, "num_hidden_layers"),
        heads=_whole(fields, "num_attention_heads"),
        mlp_width=_whole(fields, "intermediate_size"),
        channels=_whole(fields, "num_channels"),
        activation=HF_ACTIVATIONS[_known(fields, "hidden_act", HF_ACTIVATIONS)],
        epsilon=_positive(fields, "layer_norm_eps"),
        embedding_norm=kind != "vit",
        patch_bias=kind == "vit",
    )


def _known(fields: dict, key: str, known: dict[str, object]) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or value not in known:
        raise InputError(f"config.json says {key}={value!r}; expected {' or '.join(known)}")
    return value


def _tower(config: dict) -> dict:
    parts = [config.get(key) or {} for key in ("vision_config", "vision_config_dict")]
    if not all(isinstance(part, dict) for part in parts):
        raise InputError("config.json has a vision_config that is not an object")
    return {**parts[0], **parts[1]}


def _positive(fields: dict, key: str) -> float:
    value = fields[key]
    if not isinstance(value, int | float) or not value > 0:
        raise InputError(f"config.json says {key}={value!r}; expected a number above 0")
    return float(value)


def _whole(fields: dict, key: str) -> int:
    value = fields[key]
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]  # height and width
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"config.json says {key}={fields[key]!r}; expected a whole number above 0")
    return value
