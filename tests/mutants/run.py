"""Runs the tests against every mutant, one at a time in a copy of the tree, and writes which are killed.

    nice -n 19 python tests/mutants/run.py                      against this tree's tests
    nice -n 19 python tests/mutants/run.py --suite=COMMIT       against the tests of another commit
    python tests/mutants/run.py --table                         only writes the table anew

Results are kept in tests/mutants/results.json as they come, so that a run which was cut off goes on; `--again` forgets
those of this suite first. tests/mutants/results.md is the table. A mutant counts as killed if its tests fail with it
(pytest's status 1) and pass without it.
"""

import argparse
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.mutants.mutants import MUTANTS, Mutant  # noqa: E402

HERE = pathlib.Path(__file__).parent
RESULTS, TABLE = HERE / "results.json", HERE / "results.md"
PASSED, FAILED = 0, 1


def copied(place: pathlib.Path, suite: str) -> None:
    """The tracked files of this tree, with the tests of another commit if one is named."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    if suite:
        shutil.rmtree(place / "tests")
        archive = subprocess.run(["git", "archive", suite, "tests"], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(place)], input=archive, check=True)


def status(place: pathlib.Path, tests: str) -> int:
    """What pytest ends with: 0 where all tests passed, 1 where one failed; else it could not run them."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, *shlex.split(tests)],
        cwd=place,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).returncode


def outcome(place: pathlib.Path, mutant: Mutant, unchanged: dict[str, int]) -> str:
    """`killed`, `survives`, or why nothing is known."""
    if mutant.tests not in unchanged:
        unchanged[mutant.tests] = status(place, mutant.tests)
    if unchanged[mutant.tests] != PASSED:
        return f"its tests do not pass without it (status {unchanged[mutant.tests]})"
    file = place / "surm" / mutant.file
    whole = file.read_text()
    try:
        file.write_text(whole.replace(mutant.old, mutant.new))
        found = status(place, mutant.tests)
    finally:
        file.write_text(whole)
    # A fault that keeps the tests from being collected is found as well.
    return "survives" if found == PASSED else "killed"


def write_table(results: dict[str, dict[str, str]]) -> None:
    """Every mutant, and what became of it in each suite."""
    suites = sorted({suite for found in results.values() for suite in found})
    lines = [f"| mutant | was | is | {' | '.join(suites)} |", f"|---|---|---|{'---|' * len(suites)}"]
    for mutant in MUTANTS:
        found = results.get(key(mutant), {})
        texts = [text.replace("|", "\\|") for text in (mutant.old, mutant.new)]
        lines.append(
            f"| {mutant.file} | `{texts[0]}` | `{texts[1]}` | {' | '.join(found.get(s, '–') for s in suites)} |"
        )
    TABLE.write_text("# Mutants\n\nWritten by `python tests/mutants/run.py`.\n\n" + "\n".join(lines) + "\n")


def key(mutant: Mutant) -> str:
    """What names a mutant in the results."""
    return f"{mutant.file}: {mutant.old} -> {mutant.new}"


def main() -> None:
    """Runs what has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="", help="the commit whose tests run; this tree's if there is none")
    parser.add_argument("--only", default="", help="a part of the file's name, of the mutants that run")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--table", action="store_true", help="run nothing")
    chosen = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results = {name: found for name, found in results.items() if name in {key(mutant) for mutant in MUTANTS}}
    suite, unchanged = chosen.suite or "these tests", {}
    with tempfile.TemporaryDirectory(prefix="surm_mutants_") as folder:
        place = pathlib.Path(folder)
        if not chosen.table:
            copied(place, chosen.suite)
        for mutant in () if chosen.table else MUTANTS:
            found = results.setdefault(key(mutant), {})
            if chosen.only in mutant.file and (chosen.again or suite not in found):
                found[suite] = outcome(place, mutant, unchanged)
                print(f"{found[suite]:10} {key(mutant)}", flush=True)
                RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_table(results)


if __name__ == "__main__":
    main()
