"""Writes tests/durations.txt from what pytest said at the end of a run: seconds by file, and the longest tests.

    PYTEST_ADDOPTS=--durations=0 make test > log
    python tests/durations.py log "where, how quiet the machine was, of which commit"

tests/conftest.py starts the files in this order, the longest first, so that no worker is alone with one at the end.
"""

import pathlib
import re
import sys
from collections import Counter

FILE = pathlib.Path(__file__).parent / "durations.txt"
LONGEST = 150
_LINE = re.compile(r"([\d.]+)s (call|setup|teardown) +(tests/[^:\s]+)(\S*::.+)")


def written(log: str, said: str) -> str:
    """The text of the list.

    Args:
      log: the output of pytest.
      said: of the run, a line.
    """
    found = [(float(m[1]), m[2], m[3], m[4]) for m in map(_LINE.match, log.splitlines()) if m]
    files: Counter[str] = Counter()
    for seconds, _, file, _ in found:
        files[file] += seconds
    tests = [f"{s:9.2f} {phase} {file}{name}" for s, phase, file, name in sorted(found, reverse=True)[:LONGEST]]
    return "\n".join([f"# {said}", *(f"{s:9.2f} {file}" for file, s in files.most_common()), "", *tests, ""])


def order() -> dict[str, int]:
    """The place of every file that the list names, the longest first."""
    head = FILE.read_text().split("\n\n")[0].splitlines()[1:]
    return {line.split()[1]: place for place, line in enumerate(head)}


if __name__ == "__main__":
    FILE.write_text(written(pathlib.Path(sys.argv[1]).read_text(errors="replace"), sys.argv[2]))
