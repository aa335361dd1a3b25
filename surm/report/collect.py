"""Reads the results that runs and experiments left in folders and files."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from surm import files
from surm.errors import InputError
from surm.report import run_folder
from surm.tasks.metric import of_result

NEEDED = {"eval": dict, "metric": str, "config": dict, "method": str, "adapter_parameters": int}
"""The keys that a result must have for a report, with their types."""
KINDS = {dict: "an object", str: "text", int: "a whole number"}
UNFINISHED = "is not finished; the command that started it continues it"


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run, or of an experiment with several seeds.

    Attributes:
      file: the file it was read from.
      data: the contents of the file.
      values: the values of each metric, one number a seed.
      curves: the lines of the `metrics.jsonl` beside it, if there is one: step, split, values.
    """

    file: epath.Path
    data: dict[str, Any]
    values: dict[str, list[float]]
    curves: list[dict[str, Any]]

    @property
    def task(self) -> str:
        """The data, the number of training examples and the main metric; results are compared if these agree."""
        data = self.data["config"].get("data", {})
        source, examples = str(data.get("source", "")), data.get("train_examples")
        name = source if ":" in source else pathlib.PurePath(source).name
        some = f", {examples:,} training examples" if isinstance(examples, int) and examples else ""
        split = " on validation" if data.get("eval_split") == "validation" else ""
        return f"{name or 'unknown data'}{some}, {self.data['metric']}{split}"


@dataclasses.dataclass(frozen=True)
class Found:
    """The results under some paths.

    Attributes:
      results: the results that can be read.
      skipped: files that should be results, and runs without one, each with the reason.
    """

    results: list[Result]
    skipped: dict[epath.Path, str]


def collect(paths: Iterable[str | os.PathLike]) -> Found:
    """Reads all results under some paths.

    Args:
      paths: folders of runs, of sweeps or of committed results, or files. In a folder every `result.json` at any depth
        counts, and every other JSON file in it or in a folder called `results`, unless it belongs to a run.

    Returns:
      The results in the order of their paths; a population is replaced by its members.

    Raises:
      InputError: if a path does not exist, or there is no result under any.
    """
    given = [files.path(path) for path in paths]
    there = {path: _there(path) for path in given}
    results, skipped = [], {folder: UNFINISHED for path in given for folder in _unfinished(there[path])}
    for file in dict.fromkeys(file for path in given for file in _files(path, there[path])):
        try:
            data = read(file)
            curves = run_folder.metrics(file.with_name(run_folder.METRICS))
        except InputError as error:
            skipped[file] = str(error).removeprefix(f"{str(file)!r} ")
            continue
        if "population" not in data:  # its members have results of their own
            results.append(Result(file, data, _values(data), curves))
    if not results:
        where = ", ".join(map(str, given)) or "nothing"
        first = next((f" ({file}: {why})" for file, why in skipped.items()), "")
        raise InputError(f"no result under {where}{first}; expected folders of finished runs, which hold result.json")
    return Found(results, skipped)


def read(file: epath.Path) -> dict[str, Any]:
    """Reads the result in a file; raises InputError if the file does not hold a result."""
    data = files.read_object(file)
    if "metric" not in data and isinstance(data.get("eval"), dict):  # old results had a single metric
        (data["metric"], *_) = [*(name for name in data["eval"] if name != "loss"), None]
    for name, kind in NEEDED.items():
        if name not in data:
            raise InputError(f"has no {name!r}, so it is not the result of a run, or an older version wrote it")
        if not isinstance(data[name], kind):
            raise InputError(f"has {data[name]!r} as {name!r}, expected {KINDS[kind]}")
    if not all_numbers(data["eval"]) or data["metric"] not in data["eval"]:
        raise InputError(f"'eval' is {data['eval']!r}, expected numbers, {data['metric']!r} among them")
    for name in data["eval"]:
        of_result(data, name)  # refuses an unknown direction or unit
    return data


def _there(path: epath.Path) -> list[epath.Path]:
    """The file of a path, or the files below it."""
    if not path.exists():
        raise InputError(f"there is no {str(path)!r}; expected a folder of runs, or a result")
    return [*files.below(path)] if path.is_dir() else [path]


def _unfinished(there: list[epath.Path]) -> list[epath.Path]:
    """The folders of unfinished runs among files; a lock is a file, or a folder in an object store."""
    begun = {file.parent for file in there if file.name == run_folder.CONFIG}
    return sorted(folder for folder in begun if run_folder.state_of(folder) == "unfinished")


def _files(path: epath.Path, there: list[epath.Path]) -> list[epath.Path]:
    if there == [path]:
        return there
    of_run = any(path / name in there for name in (run_folder.RESULT, run_folder.CONFIG, run_folder.METRICS))
    beside = [file for file in there if file.parent == path and not of_run]
    committed = [file for file in there if file.parent.name == "results"]
    named = {file for file in there if file.name == run_folder.RESULT}
    return sorted(named | {file for file in (*beside, *committed) if file.suffix == ".json"})


def all_numbers(values: Mapping[str, Any]) -> bool:
    """Whether all values are finite numbers."""
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values.values())


def _values(data: Mapping[str, Any]) -> dict[str, list[float]]:
    """The values of each metric: of an experiment's seeds, or of the one run."""
    seeds = data.get("seeds") or {}
    return {name: list(seeds[name]) if isinstance(seeds.get(name), list) else [value]
            for name, value in data["eval"].items()}  # fmt: skip
