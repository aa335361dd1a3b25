"""Bad and odd inputs, a row each: the value that is right, or the one line that refuses it. See tests/odd_inputs."""

import importlib
import pkgutil

import jaxtyping
import numpy as np
import pytest

from surm.errors import InputError
from tests import odd_inputs
from tests.odd_inputs.row import Line, Odd


def rows_of() -> dict[str, list[Odd]]:
    """The rows of every file of the table, by its name."""
    names = [module.name for module in pkgutil.iter_modules(odd_inputs.__path__) if module.name != "row"]
    return {name: importlib.import_module(f"tests.odd_inputs.{name}").ROWS for name in names}


def table() -> str:
    """How many there are, as docs/compatibility.md shows it."""
    lines = ["| of | tried | of these refused in a line |", "|---|---:|---:|"]
    counts = {name: (len(rows), sum(isinstance(row.right, Line) for row in rows)) for name, rows in rows_of().items()}
    lines += [f"| {name} | {tried} | {refused} |" for name, (tried, refused) in counts.items()]
    tried, refused = (sum(column) for column in zip(*counts.values(), strict=True))
    return "\n".join([*lines, f"| all | {tried} | {refused} |", ""])


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{name}: {row.name}") for name, rows in rows_of().items() for row in rows]
)
def test_an_odd_input(row: Odd, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or the annotations refuse some of them first
    if not isinstance(row.right, Line):
        found = row.act(tmp_path)
        np.testing.assert_equal(found, row.right)
        return
    with pytest.raises(InputError) as refused:
        row.act(tmp_path)
    assert row.right.text in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists(), "something half-written is left"
