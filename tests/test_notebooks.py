"""The notebooks run from a clean kernel, on small runs trained here, and what is committed is a whole such run."""

import contextlib
import json
import pathlib
import re
import shlex
import signal

import nbclient
import nbformat
import numpy as np
import pytest
import sklearn.datasets
from nbclient.exceptions import CellExecutionError

from surm import matrices, train
from surm.cli import command_line
from surm.cli.flags import SWEEP
from surm.sweeps import plan
from tests.data import small_texts
from tests.language import small_decoder

ROOT = pathlib.Path(__file__).parent.parent
FILE = ROOT / "notebooks" / "read_a_run.ipynb"
SHORT = ["--config.optim.steps=2", "--config.optim.batch_size=4", "--config.log_every_steps=1",
         "--config.peft.targets=blocks.0.*(query|value)"]  # fmt: skip


def committed() -> nbformat.NotebookNode:
    return nbformat.read(FILE, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: nbformat.NotebookNode) -> tuple[set[str], list[tuple[str, ...]]]:
    """Of what a cell shows: the streams, which may come in pieces, and of everything else its types."""
    streams = {output.name for output in cell.outputs if output.output_type == "stream"}
    others = [(output.output_type, *sorted(output.get("data", {}))) for output in cell.outputs]
    return streams, [kind for kind in others if kind != ("stream",)]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    """What trains the shipped backbone on a few digits in a moment."""
    file = tmp_path_factory.mktemp("images") / "digits.npz"
    digits, labels = sklearn.datasets.load_digits(return_X_y=True)
    digits = digits.reshape(-1, 8, 8).astype(np.uint8) * 15
    np.savez(file, x_train=digits[:40], y_train=labels[:40], x_test=digits[40:60], y_test=labels[40:60])
    return [f"--config={ROOT / 'configs' / 'vit_digits.py'}", f"--config.data.source={file}", *SHORT]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> list[str]:
    """What trains a small BERT on pairs of sentences."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "RTE").mkdir()
    rows = [f"{one} works\t{one} {two}\t{label}"
            for one in small_texts.SUBJECTS
            for two, label in (("is wonderful", "entailment"), ("fails", "not_entailment"))]  # fmt: skip
    for name in ("train", "dev"):
        (folder / "RTE" / f"{name}.tsv").write_text("\n".join(["sentence1\tsentence2\tlabel", *rows]) + "\n")
    return [f"--config={ROOT / 'configs' / 'bert_glue.py'}", f"--config.data.source={folder / 'RTE'}",
            f"--config.data.tokenizer={small_texts.write_tokenizer(folder)}", "--config.data.lengths=24",
            "--config.model.weights=none", "--config.model.name=bert_tiny", *SHORT]  # fmt: skip


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> list[str]:
    """What trains a small decoder on chats."""
    folder = tmp_path_factory.mktemp("chats")
    weights, data = small_decoder.write(folder / "weights", depth=1), small_decoder.write_chats(folder / "data")
    return [f"--config={ROOT / 'configs' / 'lm_text.py'}:data={data}", f"--config.model.weights={weights}",
            "--config.data.lengths=48", "--config.peft.targets=.*query", "--config.optim.epochs=0",
            *SHORT[:3]]  # fmt: skip


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """A kernel that knows this checkout, and nothing of the person's own settings."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Runs all cells in a kernel of their own, in the notebook's folder."""
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(FILE.parent)}}
    return nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()


@pytest.mark.slow
def test_it_runs_from_a_clean_kernel_and_shows_what_is_committed(images, texts, chats, clean, tmp_path, monkeypatch):
    assert train.main(["surm.train", *texts, f"--workdir={tmp_path / 'text'}"]) == 0
    assert train.main(["surm.train", *chats, f"--workdir={tmp_path / 'language'}"]) == 0
    for family in ("low_rank", "circulant"):
        more = [f"--workdir={tmp_path / 'families' / family}", f"--config.peft.family={family}"]
        assert train.main(["surm.train", *images, *more]) == 0
    places = {
        "IMAGE_RUN": "families/circulant",
        "TEXT_RUN": "text",
        "LANGUAGE_RUN": "language",
        "FAMILY_RUNS": "families",
    }
    for name, folder in places.items():
        monkeypatch.setenv(f"SURM_{name}", str(tmp_path / folder))
    ran = executed(committed())
    assert [cell.source for cell in code(ran)] == [cell.source for cell in code(committed())]
    for cell, kept in zip(code(ran), code(committed()), strict=True):
        assert kinds(cell) == kinds(kept), cell.source


def test_what_is_committed_is_one_whole_run():
    cells = code(committed())
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert cell.outputs, cell.source
        streams, others = kinds(cell)
        assert streams <= {"stdout"} and ("error",) not in others, cell.source


def test_what_is_committed_is_small_and_says_nothing_of_the_machine():
    assert FILE.stat().st_size < 1_000_000
    notebook = committed()
    for output in (output for cell in code(notebook) for output in cell.outputs):
        output.get("data", {}).pop("image/png", None)
    text = json.dumps(notebook)
    assert not re.findall(r"(?<![\w./-])/(?:\w[\w.-]*/)+", text)
    assert not re.findall(r"(?i)localhost|x86_64|aarch64|\bcores\b|processor|https?://", text)


def test_an_unfinished_run_is_one_line_that_says_what_to_do(images, clean, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(train.stopping, "requests", lambda: contextlib.nullcontext([signal.SIGTERM]))
        assert train.main(["surm.train", *images, f"--workdir={tmp_path / 'stopped'}"]) == 128 + signal.SIGTERM
    assert not (tmp_path / "stopped" / "result.json").exists()
    monkeypatch.setenv("SURM_IMAGE_RUN", str(tmp_path / "stopped"))
    notebook = committed()
    with pytest.raises(CellExecutionError) as raised:
        executed(notebook)
    assert raised.value.ename == "InputError" and "\n" not in raised.value.evalue
    assert "stopped' holds an unfinished run: " in raised.value.evalue
    assert "start the same command again" in raised.value.evalue
    assert not any(cell.execution_count for cell in code(notebook)[1:])


def test_the_sweep_that_it_names_is_of_every_family():
    said = "\n".join(cell.source for cell in committed().cells)
    (flags, *others) = dict.fromkeys(re.findall(r"surm sweep (--config=\S+ --workdir=[\w/]+)", said))
    assert not others
    arguments = [flag.replace("configs/", f"{ROOT}/configs/") for flag in shlex.split(flags)]
    runs = plan.plan(command_line.parse(["surm.sweep", *arguments], SWEEP))
    assert [run.config.peft.family for run in runs] == [*matrices.FAMILIES]
    assert {run.config.optim.learning_rate for run in runs} == {None}
