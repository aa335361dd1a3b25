"""Results as they are committed: JSON that names its command, its versions and its machine."""

import json
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from surm import files

ROOT = pathlib.Path(__file__).parents[2]
"""The clone."""


def of(script: str) -> pathlib.Path:
    """The folder of the results of a script, by its `__file__`."""
    return pathlib.Path(script).with_name("results")


def own_command(*arguments: str) -> str:
    """The command as a result names it.

    Args:
      arguments: those that it names; by default all that were given.
    """
    script = pathlib.Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    return f"python {shown} {shlex.join(arguments or sys.argv[1:])}".rstrip()


def write(file: pathlib.Path, found: Mapping[str, Any]) -> None:
    """Writes a result, with the command and the versions in it where it does not bring its own."""
    from surm.training.result import versions

    made = {"command": own_command(), "versions": versions()}
    _replace(file, {**made, **found})


def _replace(file: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Writes JSON by two spaces, a list of numbers in one line."""
    text = json.dumps(result, indent=2)
    lists = re.compile(r"\[\n[^\[\]{}\"]*\]")  # no text holds the end of a line
    file.parent.mkdir(exist_ok=True)
    files.replace(file, lists.sub(lambda found: f"[{' '.join(found[0][1:-1].split())}]", text) + "\n")


def put(
    file: pathlib.Path,
    field: str,
    rows: Sequence[Mapping[str, Any]],
    made: Mapping[str, Any],
    name: Callable[[Mapping[str, Any]], str],
    order: Callable[[Mapping[str, Any]], Any] | None = None,
) -> None:
    """Puts rows into a file of many commands, a line each, in place of those of the same name.

    Args:
      file: the table, made if absent.
      field: where it holds its rows.
      rows: the new ones.
      made: what each name's rows were made with; the command is put beside it.
      name: of a row, such as `circulant float32`.
      order: by which the rows are sorted; by default new names come last.
    """
    table = files.json_object(file) or {"made": {}, field: []}
    own = {key: {"command": own_command(), **of_name} for key, of_name in made.items()}
    every = [*(row for row in table[field] if name(row) not in own), *rows]
    lines = ",\n".join(map(json.dumps, sorted(every, key=order) if order else every))
    file.parent.mkdir(exist_ok=True)
    files.replace(file, f'{{"made": {json.dumps(table["made"] | own)},\n"{field}": [\n{lines}\n]}}\n')


def read(file: pathlib.Path) -> dict[str, Any]:
    """What a result holds; InputError if it is not there or cannot be read."""
    return files.read_object(file)


def every(folder: pathlib.Path, pattern: str) -> list[dict[str, Any]]:
    """All results of a folder whose names fit a pattern, in the order of the names."""
    return [read(file) for file in sorted(folder.glob(pattern))]
