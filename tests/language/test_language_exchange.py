"""What `surm export` and `surm merge` make of a language run is read again, with tokenizer, template and ends."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import surm
from surm import __main__ as command
from surm.data import tokenizer
from surm.models import convert, decoder, hf_config, weights
from surm.peft import surgery
from surm.tasks.chat import ChatTemplate
from surm.training import runs
from tests.language import exported_runs, small_decoder

pytest.importorskip("gguf")
PROMPTS = [question for question, _ in small_decoder.QUESTIONS[:3]]
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return exported_runs.make(tmp_path_factory.mktemp("folder"), gguf=False)


@pytest.fixture(scope="module")
def of_gguf(tmp_path_factory):
    return exported_runs.make(tmp_path_factory.mktemp("gguf"), gguf=True)


def read(folder) -> decoder.Decoder:
    opened = weights.open_weights(str(folder))
    shape = hf_config.config_from_hf(opened.config)
    return convert.restore(nnx.eval_shape(lambda: decoder.Decoder(shape, rngs=nnx.Rngs(0))), opened)


def answer(model) -> np.ndarray:
    """The logits of a model, its update merged, so that there is one program for all."""
    graph, state = nnx.split(surgery.detach(surgery.merge(model)))
    return np.asarray(_answer(graph, state))


_answer = jax.jit(lambda graph, state: nnx.merge(graph, state)(jnp.asarray(TOKENS)), static_argnums=0)


def test_the_adapter_names_its_base_and_comes_back(made, of_gguf):
    for one, base in ((made, str(made.weights)), (of_gguf, None)):
        config = json.loads((one.peft / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["task_type"]) == (base, "CAUSAL_LM")
        assert config["target_modules"] == ["down_proj", "q_proj"]
        own = surm.load_run(one.run).model
        again = surm.import_peft(one.peft, surgery.detach(own))
        np.testing.assert_allclose(answer(again), answer(own), atol=1e-5)
        assert np.abs(answer(own) - answer(surgery.detach(own))).max() > 0.03


@pytest.mark.parametrize(
    ("name", "base"), [("hf:some/model@v2", "some/model"), ("hf:some/model/file.gguf", ""), ("hf:some/model/sub", "")]
)
def test_a_file_on_the_hub_is_no_base_that_others_open(tmp_path, name, base):
    opened = weights.open_weights(str(small_decoder.write(tmp_path, depth=1)))
    model = nnx.eval_shape(lambda: decoder.Decoder(small_decoder.config(depth=1), rngs=nnx.Rngs(0)))
    assert runs._base_model_name(dataclasses.replace(opened, name=name), model) == base


def test_a_merged_folder_has_everything_beside_the_weights(made):
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert {file.name for file in made.merged.iterdir()} == files
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (made.merged / name).read_bytes() == (made.weights / name).read_bytes()
    assert json.loads((made.merged / "generation_config.json").read_text()) == {"eos_token_id": [306]}
    np.testing.assert_allclose(answer(read(made.merged)), answer(surm.load_run(made.run).model), atol=1e-5)


def test_a_gguf_file_gives_its_tokenizer_and_template_along(made, of_gguf):
    assert {file.name for file in of_gguf.merged.iterdir()} == {file.name for file in made.merged.iterdir()}
    own, theirs = (tokenizer.opened(place).tokenizer for place in (of_gguf.weights, of_gguf.merged))
    for text in (*PROMPTS, "<|im_start|>user\nred  12<|im_end|>", "  Größe\t42"):
        assert own.encode(text).ids == theirs.encode(text).ids
    template = ChatTemplate.of(of_gguf.merged)
    assert template.source == small_decoder.TEMPLATE and template.special["eos_token"] == "<|im_end|>"
    np.testing.assert_allclose(answer(read(of_gguf.merged)), answer(read(made.merged)), atol=1e-5)


def test_a_merged_folder_is_the_base_of_another_run(of_gguf, tmp_path):
    exported_runs.trained(of_gguf.merged, small_decoder.write_chats(tmp_path / "chats"), tmp_path / "run")
    run = surm.load_run(tmp_path / "run")
    np.testing.assert_allclose(answer(surgery.detach(run.model)), answer(surm.load_run(of_gguf.run).model), atol=1e-5)
    assert len(run.generate(PROMPTS, max_new_tokens=4)) == len(PROMPTS)


def test_half_the_size_rounds_once(made, tmp_path):
    assert command.main(["merge", str(made.run), "--out", str(tmp_path), "--dtype", "bfloat16"]) == 0
    halved, whole = (weights.open_weights(str(folder)) for folder in (tmp_path, made.merged))
    assert halved.config["torch_dtype"] == "bfloat16"
    for key, array in whole.arrays.items():
        np.testing.assert_array_equal(halved.arrays[key], array.astype(halved.arrays[key].dtype), strict=True)
        assert halved.arrays[key].dtype.name == "bfloat16"


def test_what_does_not_fit_is_refused_and_nothing_written(made, of_gguf, tmp_path, capsys):
    for arguments, message in (
        (("merge", str(made.run), "--out", str(tmp_path / "x.safetensors")), "cannot hold a language model"),
        (("merge", str(made.run), "--out", str(tmp_path / "x"), "--dtype", "int8"), "dtype='int8', expected float32"),
        (("export", str(made.run), "--out", str(tmp_path / "x"), "--encoder_only"), "for models with a classifier"),
    ):
        assert command.main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    model = surm.load_run(of_gguf.run).model
    with pytest.raises(surm.InputError, match=r"labels=\['a'\], but a language model has none"):
        surm.export_merged(tmp_path / "x", model, labels=["a"])
    with pytest.raises(surm.InputError, match="a tokenizer in a form that transformers does not open; surm merge"):
        surm.export_merged(tmp_path / "x", model, tokenizer=of_gguf.weights)
    assert not list(tmp_path.iterdir())
