"""docs/compatibility.md says how many odd inputs there are, and names tests that there are."""

import pathlib
import re

from tests.test_odd_inputs import rows_of, table

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "compatibility.md").read_text()


def test_the_table_of_odd_inputs_is_that_of_the_tests():
    (shown,) = re.findall(r"<!-- table odd inputs -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    assert shown == table()


def test_there_are_many():
    assert sum(len(rows) for rows in rows_of().values()) >= 120


def test_every_test_that_it_names_is_there():
    known = "\n".join(
        [str(file.relative_to(ROOT)) + "\n" + file.read_text() for file in (ROOT / "tests").rglob("*.py")]
    )
    named = set(re.findall(r"`(test_\w+)", PAGE)) | set(re.findall(r"`(tests/[\w/.]+)`", PAGE))
    assert len(named) > 30
    assert {name for name in named if name not in known and not (ROOT / name).exists()} == set()
