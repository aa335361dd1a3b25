"""Documentation and imports of the families: every function has an example, nothing foreign is imported."""

import ast
import inspect
import pathlib
import sys

import pytest

import surm.matrices

SOURCES = sorted(pathlib.Path(surm.matrices.__file__).parent.glob("*.py"))
FUNCTIONS = ("init", "matvec", "num_params", "project", "to_dense")


@pytest.mark.parametrize("name", surm.matrices.FAMILIES)
def test_every_function_of_a_family_has_an_example(name):
    family = surm.matrices.FAMILIES[name]
    for function in FUNCTIONS + tuple(quick for quick in ("quick_dense", "dense_matvec") if getattr(family, quick)):
        assert ">>>" in inspect.getdoc(getattr(family, function)), function


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_only_jax_jaxtyping_and_the_standard_library_are_imported(path):
    allowed = {"jax", "jaxtyping", "surm", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module]
        else:
            continue
        assert {module.split(".")[0] for module in imported} <= allowed
        assert all(m.startswith("surm.matrices") for m in imported if m.startswith("surm"))
