"""Writes folders of safetensors and JSON files, the form in which Hugging Face's libraries keep models and adapters."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.core import FrozenDict

from surm import files
from surm.peft import tensors


def write(
    path: str | os.PathLike,
    arrays: dict[str, dict[str, np.ndarray]],
    texts: dict[str, dict[str, Any]],
    copies: Mapping[str, bytes] = FrozenDict(),
) -> None:
    """Writes files to a folder, which is created if needed, each in one step.

    Args:
      path: the folder.
      arrays: for each name of a safetensors file, its arrays by key.
      texts: for each name of a JSON file, its object.
      copies: for each name of any other file, its contents.

    Raises:
      InputError: if the path is a file, or an array holds a number that is not finite; in these cases nothing
        is written.
    """
    made: dict[str, bytes | str] = {name: tensors.encoded(held, {"format": "pt"}) for name, held in arrays.items()}
    made |= {name: json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n" for name, value in texts.items()}
    made |= copies
    folder = files.made_folder(path)
    for name, data in made.items():
        files.replace(folder / name, data)
