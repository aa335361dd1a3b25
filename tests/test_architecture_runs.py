"""The real command on every later architecture of the catalogue, from a folder as transformers writes it."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import surm
from surm import __main__ as command
from surm import train
from surm.models.hf_config import config_from_hf
from surm.models.weights import open_weights
from tests import small_runs
from tests.data import small_texts

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = pathlib.Path(__file__).parent / "models" / "golden"
ADAPTED = (r"--config.peft.targets=.*\.(query|up)", "--config.peft.family=low_rank", "--config.peft.options=rank=2")
SHORT = ("--config.optim.steps=3", "--config.optim.batch_size=8", "--config.log_every_steps=1")


def of_texts(folder: pathlib.Path) -> list[str]:
    """Flags of a run on small tables."""
    source, tokenizer = small_texts.write_sst2(folder), small_texts.write_tokenizer(folder)
    read = ("--config.data.lengths=6,12", f"--config.data.tokenizer={tokenizer}")
    config = f"--config={ROOT / 'configs' / 'bert_glue.py'}:task=sst2"
    return [config, f"--config.data.source={source}", *read, "--config.peft.train=head|pooler"]


def of_images(folder: pathlib.Path) -> list[str]:
    """Flags of a run on small pictures."""
    config = f"--config={ROOT / 'configs' / 'vit_cifar.py'}"
    return [config, f"--config.data.source={small_runs.images(folder)}", "--config.peft.train=head"]


FLAGS = {"distilbert": of_texts, "dinov2": of_images}
EXAMPLES = {"text": [text for text, _ in small_texts.sentences(3)], "image": np.zeros((3, 8, 8, 3), np.uint8)}


def flags_of(name: str, folder: pathlib.Path) -> list[str]:
    """Flags of a short run from a golden folder."""
    return [*FLAGS[name](folder), f"--config.model.weights={GOLDEN / name}", *ADAPTED, *SHORT]


@pytest.fixture(scope="module", params=FLAGS)
def trained(request, tmp_path_factory) -> tuple[str, pathlib.Path]:
    """The name of an architecture's golden folder, and a run from it."""
    folder = tmp_path_factory.mktemp(request.param)
    assert train.main(["x", f"--workdir={folder / 'run'}", *flags_of(request.param, folder)]) == 0
    return request.param, folder / "run"


def test_a_run_adapts_the_layers_that_are_named_and_opens_again(trained):
    name, run = trained
    held = load_file(run / "adapter" / "adapter_model.safetensors")
    shape = config_from_hf(open_weights(str(GOLDEN / name)).config)
    layers = {f"blocks.{i}.{place}" for i in range(shape.depth) for place in ("attention.query", "mlp.up")}
    assert {key.split(".delta.")[0] for key in held if ".delta." in key} == layers
    loaded = surm.load_run(run)
    assert type(loaded.model.config) is type(shape)
    assert np.isfinite(loaded.predict(EXAMPLES[loaded.result["kind"]])).all()


def test_a_run_is_merged_exported_and_started_from(trained, tmp_path):
    name, run = trained
    assert command.main(["merge", str(run), "--out", str(tmp_path / "whole")]) == 0
    base, whole = (json.loads((folder / "config.json").read_text()) for folder in (GOLDEN / name, tmp_path / "whole"))
    assert whole["model_type"] == base["model_type"] and config_from_hf(whole) == config_from_hf(base)
    assert command.main(["export", str(run), "--out", str(tmp_path / "peft")]) == 0
    again = ["--config.optim.steps=1", f"--config.init_adapter={tmp_path / 'peft'}"]
    flags = [*flags_of(name, tmp_path), *again]
    assert train.main(["x", f"--workdir={tmp_path / 'run'}", *flags]) == 0


def test_a_pooler_that_a_bare_encoder_lacks_must_train(tmp_path, capsys):
    held = load_file(GOLDEN / "distilbert" / "model.safetensors")
    folder = tmp_path / "bare"
    folder.mkdir()
    bare = {key: array for key, array in held.items() if "classifier" not in key}
    save_file(bare, folder / "model.safetensors")
    (folder / "config.json").write_bytes((GOLDEN / "distilbert" / "config.json").read_bytes())
    flags = [*flags_of("distilbert", tmp_path), f"--config.model.weights={folder}"]
    assert train.main(["x", f"--workdir={tmp_path / 'run'}", *flags, "--config.peft.train=head"]) == 2
    assert "has no pooler, so it starts at random and must train" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert train.main(["x", f"--workdir={tmp_path / 'run'}", *flags]) == 0
