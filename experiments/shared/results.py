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
    """The folder of a script's results, from its `__file__`."""
    return pathlib.Path(script).with_name("results")


def own_command(*arguments: str) -> str:
    """The command as a result names it, with these arguments or, without any, with all that were given."""
    script = pathlib.Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    return f"python {shown} {shlex.join(arguments or sys.argv[1:])}".rstrip()


def write(file: pathlib.Path, found: Mapping[str, Any]) -> None:
    """Writes a result with the command and the versions, unless it brings its own; lists of numbers take one line."""
    from surm.training.result import versions

    text = json.dumps({"command": own_command(), "versions": versions(), **found}, indent=2)
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
    """Puts rows into a table that several commands write, a line each, in place of the rows of the same name.

    Args:
      file: the table, made if absent.
      field: the key of its rows.
      rows: the new ones.
      made: for each name how its rows were made, to which the command is added.
      name: gives the name of a row, such as `circulant float32`.
      order: the key by which the rows are sorted; by default new names come last.
    """
    table = files.json_object(file) or {"made": {}, field: []}
    own = {key: {"command": own_command(), **of_name} for key, of_name in made.items()}
    every = [*(row for row in table[field] if name(row) not in own), *rows]
    lines = ",\n".join(map(json.dumps, sorted(every, key=order) if order else every))
    file.parent.mkdir(exist_ok=True)
    files.replace(file, f'{{"made": {json.dumps(table["made"] | own)},\n"{field}": [\n{lines}\n]}}\n')


def read(file: pathlib.Path) -> dict[str, Any]:
    """A result's content; InputError if it is not there or cannot be read."""
    return files.read_object(file)


def by_method(folder: pathlib.Path, pattern: str) -> dict[str, dict[str, Any]]:
    """The results of methods in the files that match a pattern, by name, those with the fewest parameters first."""
    found = [read(file) for file in sorted(folder.glob(pattern))]
    found.sort(key=lambda result: (result["adapter_parameters"], result["name"]))
    return {result["name"]: result for result in found}
