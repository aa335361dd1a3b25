"""README's steps for a new family, followed to the letter: from no file to a run, in a copy of the package."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
STEPS = (ROOT / "README.md").read_text().split("## Add a family\n")[1].split("\n## ")[0]
FILES = re.findall(r'```python title="(.*?)"\n(.*?)```', STEPS, re.DOTALL)
EDITS = re.findall(r'```diff title="(.*?)"\n(.*?)```', STEPS, re.DOTALL)
FEW = ["--config.optim.steps=2", "--config.data.train_examples=64"]


def edit(file: pathlib.Path, diff: str) -> None:
    """Puts what a diff adds where its other lines stand, which is in one place."""
    before, after = ("".join(line[1:] + "\n" for line in diff.splitlines() if line[0] in " " + sign) for sign in "-+")
    text = file.read_text()
    assert text.count(before) == 1, before
    file.write_text(text.replace(before, after))


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> pathlib.Path:
    """The package and its tests of families, after the steps."""
    there = tmp_path_factory.mktemp("copy")
    for folder in ("surm", "configs", "tests/matrices"):
        shutil.copytree(ROOT / folder, there / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (
        "pyproject.toml",
        "tests/__init__.py",
        "tests/conftest.py",
        "tests/described.py",
        "tests/durations.py",
        "tests/durations.txt",
    ):
        shutil.copy(ROOT / file, there / file)
    assert len(FILES) == 2 and len(EDITS) == 2
    for name, text in FILES:
        assert not (there / name).exists()
        (there / name).write_text(text)
    for name, diff in EDITS:
        edit(there / name, diff)
    return there


def ran(copy: pathlib.Path, *words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(copy), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True)


def test_it_trains_by_the_command_of_the_readme(copy):
    (command,) = re.findall(r"^ {4,}python (-m surm\.train .*)$", STEPS.replace("\\\n", ""), re.MULTILINE)
    done = ran(copy, *shlex.split(command), *FEW)
    assert done.returncode == 0, done.stderr
    result = json.loads((copy / "runs" / "diagonal" / "result.json").read_text())
    assert result["family"] == "diagonal" and {one["learning_rate"] for one in result["layers"].values()} == {1e-2}
    assert result["adapter_parameters"] == 6 * 3 * 192  # blocks, their query, key and value, their width


def test_the_laws_hold_for_it_and_its_own_test_passes(copy):
    of_pytest = ["-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", "diagonal"]
    done = ran(copy, "-m", "pytest", *of_pytest, "tests/matrices")
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 30


def test_a_part_that_is_misspelt_stops_the_import(copy, tmp_path):
    other = shutil.copytree(copy / "surm" / "matrices", tmp_path / "surm" / "matrices")
    (tmp_path / "surm" / "__init__.py").write_text("")
    edit(other / "diagonal.py", '-LINEAR = ("d",)  # sums of such matrices are sums of d\n+LINEAER = ("d",)')
    done = ran(tmp_path, "-c", "import surm.matrices")
    assert done.returncode == 1
    said = "TypeError: surm.matrices.diagonal: no part of a family is called LINEAER; the nearest is LINEAR"
    assert said in done.stderr.splitlines()[-1]
