"""A finished run finds its weights again from any folder, and from where it was moved to."""

import importlib.resources
import shutil

import numpy as np
import pytest

import surm
from surm import train
from tests.test_train import arguments, result

WEIGHTS = importlib.resources.files("surm.models") / "assets" / "vit_micro.safetensors"
IMAGES = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8, 1)


def test_weights_are_found_from_another_folder(tmp_path, monkeypatch):
    (there := tmp_path / "there").mkdir()
    (elsewhere := tmp_path / "elsewhere").mkdir()
    shutil.copy(
        importlib.resources.files("surm.models") / "assets" / "vit_micro.safetensors", there / "own.safetensors"
    )
    monkeypatch.chdir(there)
    own = ["--config.model.weights=own.safetensors", "--config.model.name=vit_micro", "--config.model.image_size=0"]
    run = [*arguments("run"), *own, "--config.optim.steps=1"]
    assert train.main(run) == 0
    assert result(there / "run")["full_names"] == {"model.weights": str(there / "own.safetensors")}
    answers = surm.load_run("run").predict(IMAGES)

    monkeypatch.chdir(elsewhere)
    surm.load_run(there / "run")
    shutil.move(there / "run", elsewhere / "moved")
    assert np.array_equal(surm.load_run("moved").predict(IMAGES), answers)

    shutil.move(there / "own.safetensors", tmp_path / "own.safetensors")
    message = "nothing at '.*/there/own.safetensors', where it lay, nor at '.*/elsewhere/own.safetensors'; put it"
    with pytest.raises(surm.InputError, match=message):
        surm.load_run("moved")
    shutil.move(tmp_path / "own.safetensors", elsewhere / "own.safetensors")
    surm.load_run("moved")
