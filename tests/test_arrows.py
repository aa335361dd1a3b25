"""The arrows between the parts of the package never point back: read off the imports."""

import ast
import pathlib
import sys

import pytest

SURM = pathlib.Path(__file__).parent.parent / "surm"


def imported(path: pathlib.Path) -> set[str]:
    """Every module that a file imports, anywhere in it, `from a import b` counted as a.b too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(part: str) -> list[pathlib.Path]:
    path = SURM / part
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


@pytest.mark.parametrize("file", files("matrices"), ids=lambda p: p.name)
def test_matrices_import_jax_alone(file):
    allowed = {"jax", "jaxtyping"} | set(sys.stdlib_module_names)
    others = {name for name in imported(file) if name.split(".")[0] not in allowed}
    assert all(name.startswith("surm.matrices") or name in ("surm", "surm.matrices") for name in others), others


@pytest.mark.parametrize(
    ("part", "never"),
    [
        ("peft", ("surm.models", "surm.data", "surm.exchange", "surm.train")),
        ("models", ("surm.peft", "surm.data", "surm.exchange", "surm.train")),
        ("exchange", ("surm.data", "surm.train")),
        ("data", ("surm.peft", "surm.models", "surm.train")),
        ("report", ("jax", "flax", "surm.peft", "surm.models")),
        ("errors.py", ("surm",)),
    ],
)
def test_no_arrow_points_back(part, never):
    for file in files(part):
        for name in imported(file):
            assert not any(name == n or name.startswith(n + ".") for n in never), f"{file} imports {name}"


def test_only_one_module_knows_orbax():
    knowing = [p.name for p in files("") if any(name.startswith("orbax") for name in imported(p))]
    assert knowing == ["checkpoint.py"]


def test_nothing_is_loaded_by_pickle():
    for file in files(""):
        assert not {"pickle", "cloudpickle", "dill", "joblib", "torch"} & imported(file), file
        assert "allow_pickle=True" not in file.read_text(), file
