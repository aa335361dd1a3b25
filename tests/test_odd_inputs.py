"""Bad and odd inputs, a row each: the value that is right, or the one line that refuses it. See tests/odd_inputs."""

import importlib
import pkgutil

import numpy as np
import pytest

from surm.errors import InputError
from tests import odd_inputs
from tests.odd_inputs.row import Line, Odd

TABLES = [module.name for module in pkgutil.iter_modules(odd_inputs.__path__) if module.name != "row"]
ROWS = [
    pytest.param(row, id=f"{table}: {row.name}")
    for table in TABLES
    for row in importlib.import_module(f"tests.odd_inputs.{table}").ROWS
]


@pytest.mark.parametrize("row", ROWS)
def test_an_odd_input(row: Odd, tmp_path):
    if not isinstance(row.right, Line):
        found = row.act(tmp_path)
        np.testing.assert_equal(found, row.right)
        return
    with pytest.raises(InputError) as refused:
        row.act(tmp_path)
    assert row.right.text in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists(), "something half-written is left"
