"""Reads the folder of a run: the names of its files, its state, its metrics. Does not import jax."""

import json
from typing import Any, Literal

from etils import epath

from surm.errors import InputError

CONFIG, METRICS, RESULT, LOCK = "config.json", "metrics.jsonl", "result.json", ".lock"
CALIBRATION = "calibration.json"
"""The measurements by which a run chooses its paths, if there are any; see `surm.training.calibration`."""
REMEDY = "; remove the workdir or name another"

State = Literal["finished", "unfinished", "none"]


def state_of(folder: epath.Path) -> State:
    """Whether a folder belongs to a finished run, to one that began and has no result, or to none."""
    if (folder / RESULT).is_file():
        return "finished"
    begun = (folder / CONFIG).is_file() and any((folder / name).exists() for name in (LOCK, METRICS))
    return "unfinished" if begun else "none"


def metrics(file: epath.Path, text: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, each with `step`, `split` and `values`.

    Args:
      file: the file, which need not exist.
      text: its future contents, if they are not written yet.

    Returns:
      The lines, without an incomplete last line, which a crash may leave.

    Raises:
      InputError: if a line before the last holds anything else.
    """
    try:
        text = text if text is not None else file.read_text() if file.is_file() else ""
        *whole, last = text.split("\n")
        return [_line(line) for line in [*whole, *([last] if last.endswith("}}") else [])]]
    except ValueError as error:  # JSON's and Unicode's errors are ValueErrors
        raise InputError(f"{str(file)!r} is damaged ({error}){REMEDY}") from error


def _line(text: str) -> dict[str, Any]:
    line = json.loads(text)
    if not isinstance(line, dict) or not {"step", "split", "values"} <= line.keys():
        raise ValueError(f"a line is {text!r:.80}, expected an object with step, split and values")
    return line
