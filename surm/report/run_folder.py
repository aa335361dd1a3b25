"""The folder of a run for all who read one: the names of its files, its state, its metrics. Needs no jax."""

import json
from typing import Any, Literal

from etils import epath

from surm.errors import InputError

CONFIG, METRICS, RESULT, LOCK = "config.json", "metrics.jsonl", "result.json", ".lock"
REMEDY = "; remove the workdir or name another"

State = Literal["finished", "unfinished", "none"]


def state_of(folder: epath.Path) -> State:
    """Whether a folder is that of a finished run, of one that began and has no result, or of none."""
    if (folder / RESULT).is_file():
        return "finished"
    begun = (folder / CONFIG).is_file() and any((folder / name).exists() for name in (LOCK, METRICS))
    return "unfinished" if begun else "none"


def metrics(file: epath.Path, text: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`: `step`, `split` and `values` each.

    Args:
      file: which need not be there.
      text: what it will hold, where it is not yet written.

    Returns:
      The lines; a last one without its end, as a crash leaves it, is left out.

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
