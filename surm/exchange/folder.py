"""A folder with one safetensors file and one JSON, as Hugging Face's libraries keep models and adapters."""

import json
import os
import pathlib
from typing import Any

import ml_dtypes  # noqa: F401  lets NumPy hold bfloat16
import numpy as np
import safetensors.numpy

from surm import files
from surm.errors import InputError, one_line


def write(path: str | os.PathLike, arrays: dict[str, dict[str, np.ndarray]], texts: dict[str, dict[str, Any]]) -> None:
    """Writes files to a folder, made if absent, each in one step.

    Args:
      path: the folder.
      arrays: name of a safetensors file -> its arrays by key.
      texts: name of a JSON file -> its object.

    Raises:
      InputError: if the path is a file.
    """
    folder = files.made_folder(path)
    for name, held in arrays.items():
        # safetensors writes memory as it lies; a transposed array would come out scrambled
        contiguous = {key: np.ascontiguousarray(held[key]) for key in sorted(held)}
        files.replace(folder / name, safetensors.numpy.save(contiguous, metadata={"format": "pt"}))
    for name, value in texts.items():
        files.replace(folder / name, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_object(file: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; InputError if the file holds none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(file)!r} cannot be read as JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{str(file)!r} holds a JSON {type(value).__name__}, expected an object")
    return value
