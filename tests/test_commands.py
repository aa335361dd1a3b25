"""The command `surm`: what it hands on, what it shows, how it refuses."""

import dataclasses
import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import surm
from surm import __main__ as command
from surm import files, train
from surm.exchange import low_rank
from surm.machine import status
from surm.models import bert, convert, vit, weights
from surm.models.processor import plain
from surm.report import inspection
from tests.conftest import SMALL
from tests.peft.randomize import randomize
from tests.test_train import RANDOM, arguments

GOLDEN = pathlib.Path(__file__).parent / "exchange" / "golden" / "transformers5" / "vit_lora"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands") / "run"
    assert command.main(["train", *arguments(folder, *RANDOM, "--config.optim.steps=3")[1:]]) == 0
    return folder


def printed(capsys, *given: str, status: int = 0) -> str:
    assert command.main(given) == status
    out, err = capsys.readouterr()
    assert bool(err) == bool(status)
    return err if status else out


def test_without_a_command_it_says_what_there_is(capsys):
    assert all(f"surm {name} " in printed(capsys, "--help") for name in command.COMMANDS)
    assert command.main([]) == 2


def test_a_misspelt_command_is_refused_with_the_nearest(capsys):
    assert printed(capsys, "trian", status=2) == "error: no command is called 'trian'; nearest: train\n"


def test_train_is_the_module(run):
    assert json.loads((run / "result.json").read_text())["steps"] == 3
    assert train.main(["x", "--nonsense"]) == command.main(["train", "--nonsense"]) == 2


def test_generate_refuses_a_run_on_classes_in_a_line(run, capsys):
    said = printed(capsys, "generate", str(run), "--prompt", "Hello", status=2)
    assert said == "error: generate is for language models, but this run trained 'labels': use predict\n"


def test_inspect_shows_what_a_run_and_its_adapter_are(run, capsys):
    result = json.loads((run / "result.json").read_text())
    text = printed(capsys, "inspect", str(run), str(run / "adapter"))
    for part in (f"{result['trainable_parameters']:,} of {result['total_parameters']:,} parameters", "a finished run",
                 f"accuracy {result['eval']['accuracy']:.4f}", "update circulant", f"{run}/adapter\n"):  # fmt: skip
        assert part in text, part
    assert f"{result['trainable_parameters']:,} numbers, such as blocks.0" in text and "\033" not in text
    assert "\033[1mmethod" in inspection.shown(run, colour=True)


def test_inspect_shows_an_adapter_of_hugging_faces_and_a_run_that_is_not_finished(run, tmp_path, capsys):
    assert "an adapter of Hugging Face PEFT: LORA" in printed(capsys, "inspect", str(GOLDEN))
    for name in ("config.json", ".lock", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "split": "train", "values": {}}\n{"step": 3, "sp')
    text = printed(capsys, "inspect", str(tmp_path))
    assert "a run that is not finished" in text and "2 steps" in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.rmdir(), "there is no folder"),
        (lambda folder: None, "holds neither result.json nor adapter_config.json, so it is no run and no adapter"),
        (lambda folder: (folder / "result.json").write_text("{"), "result.json' cannot be read as JSON (JSONDec"),
        (lambda folder: (folder / "result.json").write_text("[]"), "holds a JSON list, expected an object"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "missing or damaged: there is no such file"),
    ],
)
def test_inspect_refuses_in_a_line(tmp_path, capsys, make, message):
    make(tmp_path)
    said = printed(capsys, "inspect", str(tmp_path), status=2)
    assert message in said and said.count("\n") == 1


def test_a_result_with_parts_missing_is_shown_as_far_as_it_goes(tmp_path, capsys):
    (tmp_path / "result.json").write_text('{"eval": {"accuracy": 0.5}, "config": null}')
    said = printed(capsys, "inspect", str(tmp_path))
    assert "accuracy 0.5000" in said and not {"trained", "rates", "steps"} & {*said.split()}


def test_mistakes_between_classes_of_one_name_are_shown(tmp_path, capsys):
    result = {"eval": {"accuracy": 0.5}, "classes": ["crane", "crane", "dog"]}
    result["confusion"] = [[1, 2, 0], [5, 1, 0], [0, 3, 1]]
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert "crane as crane: 5, dog as crane: 3, crane as crane: 2\n" in printed(capsys, "inspect", str(tmp_path)) + "\n"


@pytest.mark.parametrize("measured", ['"eval": {"accuracy": "high"}', '"accuracy": 0.5', '"eval": 0.5'])
def test_a_result_without_numbers_is_none(tmp_path, capsys, measured):
    (tmp_path / "result.json").write_text(f'{{{measured}, "steps": 3}}')
    assert command.main(["inspect", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert (
        "as 'eval', expected numbers; it is not the result of a run, or an older version wrote it" in said
        and said.count("\n") == 1
    )


def test_who_reads_no_further_is_told_nothing(run):
    program = "import sys; from surm.__main__ import main; sys.exit(main(sys.argv[1:]))"
    ended, there = os.pipe()
    os.close(ended)
    done = subprocess.run(
        [sys.executable, "-c", program, "inspect", str(run)], stdout=there, stderr=subprocess.PIPE, check=False
    )
    os.close(there)
    assert done.returncode == 141 and done.stderr == b""


def test_an_interrupt_among_the_imports_ends_it_at_once():
    program = """if True:
        import os, signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored
        class Interrupted:
            def find_spec(self, name, *rest):
                if name == "jax":
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Interrupted())
        from surm.__main__ import main
        main(["train", "--config=configs/vit_digits.py", "--workdir=runs/none"])
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == b"stopped by SIGINT at once; the same command continues from the last checkpoint\n"
    before = signal.getsignal(signal.SIGINT)
    assert command.main(["train", "--nonsense"]) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_what_cannot_be_written_is_told_by_its_own_name(tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    file = tmp_path / "page.html"
    assert status.status_of(lambda: files.replace(file, "text") or 0) == 2
    assert capsys.readouterr().err == f"error: '{file}': No space left on device\n"
    assert not [*tmp_path.iterdir()]


def test_inspect_imports_no_jax(run):
    program = "import sys; from surm.__main__ import main; main(sys.argv[1:]); sys.exit(3 * ('jax' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program, "inspect", str(run)], check=False, capture_output=True)
    assert done.returncode == 0 and b"a finished run" in done.stdout and b"\033" not in done.stdout


class Opened:
    """A run as `surm.load_run` opens it, of a model that transformers has."""

    def __init__(self, family: str):
        spec = surm.PeftSpec(family=family, targets=r".*\.(query|value)", train="head")
        self.model = randomize(surm.attach(vit.ViT(SMALL, 5, rngs=nnx.Rngs(0)), spec, nnx.Rngs(1)))
        self.result = {"classes": ["cat", "dog", "owl", "fly", "ant"]}
        self.task = types.SimpleNamespace(processor=plain(0.5, 0.25, side=16, channels=3), tokenizer=None)
        self.base_model_name = ""
        self.beside = {"labels": self.result["classes"], "processor": self.task.processor, "tokenizer": None}


def test_export_and_merge_write_what_peft_and_transformers_read(tmp_path, capsys, monkeypatch, images):
    run = Opened("c3a")
    monkeypatch.setattr(surm, "load_run", lambda folder, step: run)
    assert "written to" in printed(capsys, "export", "run", "--out", str(tmp_path / "peft"))
    again = surm.import_peft(tmp_path / "peft", vit.ViT(SMALL, 5, rngs=nnx.Rngs(0)))
    run.model.eval()
    np.testing.assert_allclose(again(images), run.model(images), atol=1e-5)
    monkeypatch.setattr(low_rank, "_POOR", -1.0)
    assert command.main(["export", "run", "--out", str(tmp_path / "lora"), "--rank", "2"]) == 0
    said = capsys.readouterr()
    assert "relative error" in said.out and said.err.startswith("warning: the low-rank update is not")
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    printed(capsys, "merge", "run", "--out", str(tmp_path / "merged"))
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["id2label"]["2"] == "owl"
    processor = json.loads((tmp_path / "merged" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 16, "width": 16} and processor["image_std"] == [0.25] * 3


def test_merge_writes_a_file_of_its_own_that_answers_as_the_run(tmp_path, run, capsys):
    printed(capsys, "merge", str(run), "--out", str(tmp_path / "new" / "merged.safetensors"))
    opened = weights.open_weights(str(tmp_path / "new" / "merged.safetensors"))
    trained = surm.load_run(run)
    assert (opened.model, opened.mean, opened.std) == ("vit_micro", (0.5,) * 3, (0.5,) * 3)
    fresh = vit.ViT(vit.preset(opened.model), trained.result["num_outputs"], rngs=nnx.Rngs(9))
    again = dataclasses.replace(trained, model=convert.restore(fresh, opened, head=True))
    digits = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8)
    np.testing.assert_allclose(again.predict(digits), trained.predict(digits), atol=1e-5)


def test_a_kept_step_is_exported_and_merged(tmp_path, run, capsys):
    kept = json.loads((run / "result.json").read_text())["steps"]
    printed(capsys, "merge", str(run), "--out", str(tmp_path / "a.safetensors"), "--step", str(kept))
    for name in ("merge", "export"):
        error = printed(capsys, name, str(run), "--out", str(tmp_path / "b"), "--step", "2", status=2)
        assert f"keeps no checkpoint of step 2, but of {kept}; config.keep_checkpoints" in error
    said = printed(capsys, "merge", str(run), "--out", str(tmp_path / "best.safetensors"), "--step", "best")
    assert f"the best of the steps kept, {kept}, on the test split is {kept}" in said
    printed(capsys, "merge", str(run), "--out", str(tmp_path / "whole.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert (tmp_path / "best.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not (tmp_path / "b").exists()


def test_a_model_file_wants_a_preset_and_its_ending(tmp_path, small_vit):
    with pytest.raises(surm.InputError, match="no preset has the model's shape ViTConfig.*the presets are: vit_micro"):
        surm.save_model(tmp_path / "model.safetensors", small_vit)
    with pytest.raises(surm.InputError, match=r"'model.bin' is a folder or does not end in .safetensors"):
        surm.save_model("model.bin", small_vit)
    micro = vit.ViT(vit.preset("vit_micro"), 2, rngs=nnx.Rngs(0))
    with pytest.raises(surm.InputError, match=r"std=\[0.5, 0.5, 0.0\]; expected one number per channel, std above 0"):
        surm.save_model(tmp_path / "model.safetensors", micro, mean=[0.5] * 3, std=[0.5, 0.5, 0.0])
    with pytest.raises(surm.InputError, match=r"mean=\[0.5\], std=\[1.0\]; expected one number per channel"):
        surm.save_model(tmp_path / "model.safetensors", micro, mean=[0.5], std=[1.0])
    assert not [*tmp_path.iterdir()]


def test_a_text_model_is_saved_whatever_its_dropout(tmp_path):
    shape = bert.preset("bert_tiny", dropout=0.1)
    model = bert.Bert(shape, 3, rngs=nnx.Rngs(0))
    surm.save_model(tmp_path / "model.safetensors", model)
    opened = weights.open_weights(str(tmp_path / "model.safetensors"))
    again = convert.restore(bert.Bert(bert.preset(opened.model), 3, rngs=nnx.Rngs(1)), opened, head=True)
    tokens = jnp.arange(10).reshape(2, 5)
    model.eval()
    np.testing.assert_array_equal(again(tokens), model(tokens))


def test_what_cannot_be_exported_ends_in_a_line(tmp_path, run, capsys):
    for name in ("export", "merge"):
        said = printed(capsys, name, str(run), "--out", str(tmp_path / name), status=2)
        assert said.count("\n") == 1 and "surm.save_adapter writes the adapter" in said
        assert "surm.save_model, or surm merge RUN --out NAME.safetensors, writes the whole model if it" in said
        assert not (tmp_path / name).exists()
        said = printed(capsys, name, str(tmp_path / "nowhere"), "--out", str(tmp_path / name), status=2)
        assert said.startswith("error: ") and "nowhere" in said


def test_the_rate_of_a_head_is_shown_where_one_has_trained_or_nothing_is_known(tmp_path, capsys):
    shown = {}
    for name, counts in {"with": (30, 90, 20), "without": (20, 90, 20), "unknown": ()}.items():
        sizes = dict(zip(("trainable_parameters", "total_parameters", "adapter_parameters"), counts, strict=False))
        config = {"optim": {"head_learning_rate": 0.005}}
        result = {"eval": {"loss": 0.5}, "config": config, "learning_rate": 0.01, **sizes}
        (tmp_path / "result.json").write_text(json.dumps(result))
        said = printed(capsys, "inspect", str(tmp_path))
        shown[name] = re.search(r"rates +(.*)", said)[1]
    assert shown == {"with": "0.01, head 0.005", "without": "0.01", "unknown": "0.01, head 0.005"}
