"""Splits maps of one input that a file stores as one map; `surm.models.tables.Joint` joins them for files."""

import re
from collections.abc import Callable

import numpy as np

from surm.models import lazy
from surm.models.decoder_shape import DecoderConfig
from surm.models.lazy import Named, Stored

QUERY_KEY_VALUE, GATE_UP = ("query", "key", "value"), ("gate", "up")


def split_maps(arrays: Named, config: DecoderConfig) -> Named:
    """Splits joint maps, which the tables of files call `attention.joint`, `attention.grouped` and `mlp.joint`.

    Args:
      arrays: the arrays of a file, under surm's paths; none is read.
      config: the shape of the model.

    Returns:
      The arrays with the maps apart. A map that does not fit the shape is left as it is, so that `restore` names it.
    """
    found: dict[str, Stored] = {}
    for path, stored in lazy.of(arrays).stored.items():
        match = re.fullmatch(rf"(.*\.)({'|'.join(map(re.escape, _SPLITS))})\.(kernel|bias)", path)
        names, split, outputs = _SPLITS[match[2]] if match else ((), None, None)
        if match is None or stored.shape[-1:] != (outputs(config),):
            found[path] = stored
            continue
        module = match[2].partition(".")[0]
        for place, name in enumerate(names):
            part = lambda array, split=split, place=place: split(array, config)[place]  # noqa: E731
            found[f"{match[1]}{module}.{name}.{match[3]}"] = stored.then(part)
    return lazy.Arrays(found)


def _one_after_another(array: np.ndarray, config: DecoderConfig) -> list[np.ndarray]:
    """Queries, keys and values: all queries, then all keys, then all values."""
    inner, shared = config.heads * config.head_size, config.key_value_heads * config.head_size
    return np.split(array, [inner, inner + shared], axis=-1)


def _grouped(array: np.ndarray, config: DecoderConfig) -> list[np.ndarray]:
    """Queries, keys and values: every key head follows the query heads that share it, and its value head follows."""
    group = config.heads // config.key_value_heads
    heads = array.reshape(*array.shape[:-1], config.key_value_heads, group + 2, config.head_size)
    parts = heads[..., :group, :], heads[..., group, :], heads[..., group + 1, :]
    return [part.reshape(*array.shape[:-1], -1) for part in parts]


def _halves(array: np.ndarray, config: DecoderConfig) -> list[np.ndarray]:
    return np.split(array, 2, axis=-1)


def _of_attention(config: DecoderConfig) -> int:
    return (config.heads + 2 * config.key_value_heads) * config.head_size


_SPLITS: dict[str, tuple[tuple[str, ...], Callable, Callable[[DecoderConfig], int]]] = {
    "attention.joint": (QUERY_KEY_VALUE, _one_after_another, _of_attention),
    "attention.grouped": (QUERY_KEY_VALUE, _grouped, _of_attention),
    "mlp.joint": (GATE_UP, _halves, lambda config: 2 * config.mlp_width),
}
"""The maps in a joint one, how it is split, and the number of its outputs."""
