"""The arrows between the rooms of the package never point back: read off the imports of every file."""

import ast
import functools
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = {
    "errors": "",
    "version": "",
    "matrices": "",
    "machine": "errors",
    "files": "errors machine",
    "ops": "matrices",
    "peft": "errors files matrices ops version",
    "models": "errors files machine ops",
    "exchange": "errors files machine models peft",
    "data": "errors files machine models",
    "tasks": "data errors files machine models",
    "config": "data errors machine models peft tasks",
    "report": "errors files machine tasks version",
    "rundir": "config errors files machine matrices report",
    "training": "config data errors exchange files machine matrices models ops peft report rundir tasks version",
    "cli": "config errors files machine",
    "sweeps": "cli config errors files machine report rundir",
    "train": "cli config machine report rundir training",
    "sweep": "cli errors machine sweeps",
    "__main__": "cli errors machine report sweep train training",
}
"""What each room, a folder or a file of `surm/`, may import: rooms above it in this list alone."""
WITHOUT_JAX = ("report", "errors", "version", "files")
FREE = {"jax", "jaxtyping", *sys.stdlib_module_names}


@functools.cache
def imported(path: pathlib.Path) -> frozenset[str]:
    """Every module that a file imports, anywhere in it, `from a import b` counted as a.b too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def files(surm: pathlib.Path) -> list[pathlib.Path]:
    """Every file but the package's own `__init__`, which names what users import from any room."""
    return sorted(path for path in surm.rglob("*.py") if path != surm / "__init__.py")


def wrong(surm: pathlib.Path) -> list[str]:
    """Arrows that no rule allows."""
    found = []
    for file in files(surm):
        room = file.relative_to(surm).parts[0].removesuffix(".py")
        allowed = {room, *ROOMS[room].split()}
        others = {name.split(".")[1] for name in imported(file) if name.startswith("surm.")} & ROOMS.keys()
        found += [f"{room} -> {other} ({file.name})" for other in sorted(others - allowed)]
    return found


def test_no_arrow_points_back():
    assert wrong(ROOT / "surm") == []


def test_every_rule_is_needed_and_points_to_a_room_above():
    rooms = [*ROOMS]
    seen = {file.relative_to(ROOT / "surm").parts[0].removesuffix(".py") for file in files(ROOT / "surm")}
    assert seen == {*rooms}
    for place, (room, above) in enumerate(ROOMS.items()):
        assert {*above.split()} <= {*rooms[:place]}, room
        names = {name for file in files(ROOT / "surm") for name in imported(file)
                 if file.relative_to(ROOT / "surm").parts[0].removesuffix(".py") == room}  # fmt: skip
        assert {*above.split()} <= {name.split(".")[1] for name in names if name.startswith("surm.")}, room


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("peft/layers.py", "from surm.models import vit", "peft -> models"),
        ("matrices/algebra/dft.py", "import surm.ops.matmul", "matrices -> ops"),
        ("errors.py", "from surm import files", "errors -> files"),
        ("rundir/log.py", "def later():\n    from surm.training.loop import Loop", "rundir -> training"),
    ],
)
def test_an_arrow_that_is_turned_is_found(tmp_path, file, line, said):
    place = tmp_path / "surm" / file
    place.parent.mkdir(parents=True)
    place.write_text(line + "\n")
    assert wrong(tmp_path / "surm") == [f"{said} ({place.name})"]


def test_the_root_is_no_drawer():
    entries = [entry for entry in (ROOT / "surm").iterdir() if entry.name != "__pycache__"]
    assert len([entry for entry in entries if entry.is_dir()]) <= 13
    assert len([entry for entry in entries if entry.is_file()]) <= 8


@pytest.mark.parametrize("file", files(ROOT / "surm" / "matrices"), ids=lambda path: path.name)
def test_matrices_import_jax_alone(file):
    others = {name for name in imported(file) if name.split(".")[0] not in FREE}
    assert all(name.startswith("surm.matrices") or name == "surm" for name in others), others


@pytest.mark.parametrize("room", WITHOUT_JAX)
def test_who_only_reads_waits_for_no_jax(room):
    for file in files(ROOT / "surm"):
        if file.relative_to(ROOT / "surm").parts[0].removesuffix(".py") == room:
            assert not {name.split(".")[0] for name in imported(file)} & {"jax", "flax"}, file


def test_what_reports_take_from_tasks_waits_for_no_jax_either():
    taken = {name for file in files(ROOT / "surm" / "report") for name in imported(file) if "surm.tasks" in name}
    assert taken <= {"surm.tasks.metric", "surm.tasks.metric.Metric", "surm.tasks.metric.of_result"}
    assert imported(ROOT / "surm" / "tasks" / "__init__.py") == set()
    assert not [name for name in imported(ROOT / "surm" / "tasks" / "metric.py") if "jax" in name or "flax" in name]


def test_only_one_module_knows_orbax():
    knowing = [path.name for path in files(ROOT / "surm") if any(n.startswith("orbax") for n in imported(path))]
    assert knowing == ["checkpoint.py"]


def test_nothing_is_loaded_by_pickle():
    for file in files(ROOT / "surm"):
        assert not {"pickle", "cloudpickle", "dill", "joblib", "torch"} & imported(file), file
        assert "allow_pickle=True" not in file.read_text(), file
