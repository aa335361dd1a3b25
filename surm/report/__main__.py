"""Makes one page of many runs.

    python -m surm.report runs/sweep --out report
    python -m surm.report experiments/glue_methods/results --out report

Reads every result.json under the given folders (and the training results that experiments committed under `results`),
groups seeds, compares results on the same data, and writes index.html, report.md and report.tex, replacing older files.
Files that are not results, and unfinished runs, are reported and skipped. Does not import jax.
"""

import argparse
import sys
from collections.abc import Sequence

from surm import files
from surm.machine.status import status_of
from surm.report import compare, page, tables
from surm.report.collect import collect


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
      arguments: the arguments after the program's name; None for those of the process.

    Returns:
      The exit status: 0, or 2 if there is nothing to report.
    """
    parser = argparse.ArgumentParser(
        prog="python -m surm.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="folders of runs or results, or files")
    parser.add_argument("--out", default="report", help="folder to write to (default: report)")
    parser.add_argument("--title", default="surm: results")
    given = parser.parse_args(arguments)

    def write() -> int:
        print("\n".join(report(given.runs, given.out, given.title)))
        return 0

    return status_of(write)


def report(runs: Sequence[str], out: str, title: str) -> list[str]:
    """Writes the page and the tables.

    Args:
      runs: folders or files.
      out: the folder to write to; created if it does not exist.
      title: the title of the page.

    Returns:
      Lines for the user: skipped files, tables found, the page's path.

    Raises:
      InputError: if a path is missing, nothing under the paths is a result, or `out` is a file.
    """
    found = collect(runs)
    compared = compare.tables(found.results)
    folder = files.made_folder(out)
    files.replace(folder / "report.md", tables.markdown(compared))
    files.replace(folder / "report.tex", tables.latex(compared))
    files.replace(folder / "index.html", page.page(found, compared, title))
    said = [f"skipped {file}: {why}" for file, why in found.skipped.items()]
    said += [f"{table.task}: {_count(table.rows, 'row')}, the best {table.rows[0].label}" for table in compared]
    return [*said, f"{_count(found.results, 'result')} in {folder / 'index.html'}"]


def _count(things: Sequence[object], word: str) -> str:
    """The number of things, with their name in singular or plural."""
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"


if __name__ == "__main__":
    sys.exit(main())
