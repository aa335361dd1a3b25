"""Writes the tables in README.md, experiments/README.md and docs from the committed results, and that of all keys.

    python scripts/write_tables.py           # or make tables
    python scripts/write_tables.py --check   # names those that differ, and fails

A table stands between `<!-- table NAME -->` and `<!-- end -->`. A function of the experiment makes it.
"""

import argparse
import importlib
import pathlib
import re
import sys
from typing import NamedTuple

from surm import files
from surm.cli import help_text
from surm.errors import InputError
from surm.machine.status import status_of

ROOT = pathlib.Path(__file__).parent.parent


class Table(NamedTuple):
    """Where a table stands, its name there, and the function that makes it; the table of all keys has no experiment."""

    page: str
    name: str
    experiment: str
    function: str = "table"


TABLES = (
    Table("README.md", "glue", "glue_methods"),
    Table("README.md", "speed", "speed"),
    Table("README.md", "answers", "written_answers"),
    Table("experiments/README.md", "methods", "step_time"),
    Table("experiments/README.md", "gpu", "gpu"),
    Table("experiments/README.md", "approximation", "approximation"),
    Table("experiments/README.md", "pinwheel", "pinwheel"),
    Table("experiments/README.md", "few images", "pareto"),
    Table("experiments/README.md", "weight movement", "weight_movement"),
    Table("docs/choosing.md", "rates", "glue_methods", "rates_table"),
    Table("docs/choosing.md", "calibration", "calibration"),
    Table("docs/choosing.md", "half kernels", "half_kernels"),
    Table("docs/language_models.md", "decoder speed", "decoder_speed"),
    Table("docs/language_models.md", "memory", "small_memory"),
    Table("docs/pods.md", "pods", "pods"),
    Table("docs/config.md", "keys", ""),
)


def made(table: Table) -> str:
    """The table from the committed results, or from the declarations of the keys."""
    if not table.experiment:
        return help_text.table()
    return getattr(importlib.import_module(f"experiments.{table.experiment}.run"), table.function)()


def with_table(text: str, name: str, rows: str) -> str:
    """A page with a table in its place; InputError if it has none of that name."""
    place = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not place.search(text):
        raise InputError(f"no place for a table {name!r}, expected <!-- table {name} --> and <!-- end -->")
    return place.sub(lambda found: f"{found[1]}{rows}\n{found[2]}", text, count=1)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    only_checks = parser.parse_args().check
    pages, differing = {table.page: (ROOT / table.page).read_text() for table in TABLES}, []
    for table in TABLES:
        after = with_table(pages[table.page], table.name, made(table))
        if after != pages[table.page]:
            differing.append(table)
            pages[table.page] = after
    for page in {table.page for table in differing} if not only_checks else ():
        files.replace(ROOT / page, pages[page])
    for table in differing:
        print(f"{'differs' if only_checks else 'written'}: {table.page}: {table.name}")
    return int(only_checks and bool(differing))


if __name__ == "__main__":
    sys.exit(status_of(main))
