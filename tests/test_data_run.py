"""Whole runs on data in the forms that people have it: what is said, what is left, what a run goes on with."""

import contextlib
import pathlib
import signal

import numpy as np
import pytest
from PIL import Image

import surm
from surm import train
from surm.data.splits import Dataset

ROOT = pathlib.Path(__file__).parent.parent
SMALL = [f"--config={ROOT / 'configs' / 'vit_digits.py'}", "--config.model.weights=none",
         "--config.model.name=vit_micro", "--config.optim.steps=2", "--config.optim.batch_size=4",
         "--config.peft.method=head"]  # fmt: skip


def command(folder: pathlib.Path, source: pathlib.Path, *more: str) -> list[str]:
    return ["surm.train", f"--workdir={folder}", *SMALL, f"--config.data.source={source}", *more]


def write_images(root: pathlib.Path) -> pathlib.Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index, mode in enumerate(("RGB", "L", "CMYK", "P")):
                pixels = rng.integers(0, 256, (20 + index, 30 + 2 * index, 3), np.uint8)
                suffix = "png" if mode == "P" else "jpg"
                Image.fromarray(pixels).convert(mode).save(root / split / name / f"{index}.{suffix}")
    return root


def test_a_folder_of_images_trains_and_its_classes_are_known(tmp_path, capsys):
    assert train.main(command(tmp_path / "run", write_images(tmp_path / "pets"))) == 0
    assert "2 classes, with their training examples: cat 4, dog 4" in capsys.readouterr().out
    run = surm.load_run(tmp_path / "run")
    assert run.result["classes"] == ["cat", "dog"] and run.result["num_outputs"] == 2
    assert run.predict(np.zeros((3, 25, 40, 3), np.uint8)).shape == (3, 2)


def write_npz(file: pathlib.Path, labels: np.ndarray) -> pathlib.Path:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 3), np.uint8)
    np.savez(file, x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    return file


LABELS = np.array([3, 7, 200])[np.arange(300) % 3]


def stopped(run: list[str], monkeypatch, by: str) -> None:
    """Begins a run that is asked to stop before its first step; `0.1.0` writes what that version did."""
    with monkeypatch.context() as patched:
        patched.setattr(train.stopping, "requests", lambda: contextlib.nullcontext([signal.SIGTERM]))
        if by == "0.1.0":
            patched.setattr(Dataset, "fingerprint", Dataset.fingerprint_of_0_1)
        assert train.main(run) == 128 + signal.SIGTERM


@pytest.mark.parametrize("by", [pytest.param("0.1.0", marks=pytest.mark.slow), "this version"])
def test_a_run_goes_on_with_the_same_data_alone(tmp_path, monkeypatch, capsys, by):
    source = write_npz(tmp_path / "d.npz", LABELS)
    run = command(tmp_path / "run", source)
    stopped(run, monkeypatch, by)
    changed = LABELS.copy()
    changed[[7, 8]] = LABELS[[8, 7]]  # neither is among the 64 that 0.1.0 looked at, every fifth
    write_npz(source, changed)
    if by == "this version":
        assert train.main(run) == 2
        assert "they differ in the examples" in capsys.readouterr().err
    write_npz(source, LABELS)
    assert train.main(run) == 0
    assert surm.load_run(tmp_path / "run").result["classes"] == ["3", "7", "200"]
