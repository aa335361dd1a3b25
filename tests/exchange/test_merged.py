"""What export_merged writes is read by our own loader; tests/parity says that transformers reads it too."""

import dataclasses
import json

import jaxtyping
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import surm
from surm import InputError
from surm.data.tokenizer_files import CLASS_OF_MODEL, SAVED
from surm.exchange import export_merged, tokenizer_files
from surm.models import bert, vit
from surm.models.convert import restore
from surm.models.hf_config import config_from_hf
from surm.models.weights import open_weights
from surm.peft.together.several import combine
from tests.data import small_texts
from tests.exchange.models import BASES, OUTPUTS, adapted, answer, base, one_line, reshaped

KINDS = ("vit", "bert", "roberta")


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_goes_back_as_it_came(kind, tmp_path):
    export_merged(tmp_path, base(kind))
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path, BASES / kind))
    for key, array in expected.items():
        if "roberta.pooler" not in key:
            np.testing.assert_array_equal(found.pop(key), array, err_msg=key)
    assert not found
    config, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, BASES / kind))
    # our model has no dropout, which acts in training alone
    different = {key for key in config if config[key] != theirs.get(key) and "dropout" not in key}
    assert different <= {"hidden_act", "problem_type"}, different
    assert config_from_hf(config) == config_from_hf(theirs) == base(kind).config


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_and_the_head_are_in_it(kind, tmp_path):
    model = adapted(kind, family="toeplitz", scale=0.1)
    before = answer(model)
    export_merged(tmp_path, model, labels=[f"class {i}" for i in range(OUTPUTS[kind])])
    weights = open_weights(str(tmp_path))
    build = vit.ViT if kind == "vit" else bert.Bert
    shape = config_from_hf(weights.config)
    again = restore(nnx.eval_shape(lambda: build(shape, OUTPUTS[kind], rngs=nnx.Rngs(0))), weights, head=True)
    np.testing.assert_allclose(answer(again), before, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(answer(model), before)
    assert weights.config["id2label"]["1"] == "class 1" and weights.config["label2id"]["class 1"] == 1
    with open(tmp_path / "model.safetensors", "rb") as file:
        assert b'"format":"pt"' in file.read(2000)  # transformers 4 asks for it


def test_several_adapters_are_added_up(tmp_path):
    both = combine({"one": adapted(family="low_rank"), "other": adapted(family="c3a")}, head="one")
    export_merged(tmp_path, both)
    weights = open_weights(str(tmp_path))
    np.testing.assert_allclose(answer(restore(base("vit"), weights, head=True)), answer(both), rtol=1e-4, atol=1e-5)


def test_activations_and_dropout_are_those_of_the_model(tmp_path):
    model = reshaped("bert", activation="gelu_tanh", epsilon=1e-3, dropout=0.25)
    export_merged(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    assert dataclasses.replace(config_from_hf(config), dropout=0.25) == model.config
    assert config["hidden_dropout_prob"] == 0.25 and config["attention_probs_dropout_prob"] == 0.0
    assert config["id2label"] == {str(i): f"LABEL_{i}" for i in range(5)}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: adapted("vit", method="adapter"), "has an adapter, which is not linear and cannot be merged"),
        (lambda: reshaped("vit", pooling="mean"), "the mean of the tokens .* ViTForImageClassification the first"),
        (lambda: reshaped("vit", embedding_norm=True, patch_bias=False), "given CLIP's vision tower"),
        (lambda: reshaped("bert", pooling="mean"), "the first token .* surm export --encoder_only"),
    ],
)
def test_what_transformers_has_no_classifier_for_is_refused(model, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        export_merged(tmp_path / "none", model())
    one_line(error)
    assert not (tmp_path / "none").exists()


def test_the_tokenizers_files_are_copied(tmp_path):
    there = tmp_path / "base"
    there.mkdir()
    (there / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    (there / "vocab.txt").write_bytes("[PAD]\nÄ\n".encode("latin-1"))
    (there / "README.md").write_text("no part of it")
    for number, name in enumerate((there, there / "model.safetensors")):
        export_merged(tmp_path / str(number), base("bert"), tokenizer=name)
        held = {file.name: file.read_bytes() for file in (tmp_path / str(number)).iterdir()}
        assert set(held) == {"model.safetensors", "config.json", "tokenizer_config.json", "vocab.txt"}
        assert all(held[name] == (there / name).read_bytes() for name in ("vocab.txt", "tokenizer_config.json"))


def test_a_tokenizer_json_by_itself_is_used_as_it_stands(tmp_path):
    file = small_texts.write_tokenizer(tmp_path)
    export_merged(tmp_path / "out", base("bert"), tokenizer=file)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == file.read_bytes()
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    assert settings == {"tokenizer_class": "PreTrainedTokenizerFast"} | special


@pytest.mark.parametrize(
    ("config", "settings", "vocabulary", "expected"),
    [
        ({"model_type": "camembert"}, {"a": 1}, "Unigram", {"tokenizer_class": "CamembertTokenizer", "a": 1}),
        ({"model_type": "bert"}, None, "WordPiece", {"tokenizer_class": "BertTokenizer"}),
        ({"model_type": "ernie"}, None, "WordPiece", {"tokenizer_class": "BertTokenizer"}),
        ({"model_type": "data2vec-text"}, None, "BPE", {"tokenizer_class": "RobertaTokenizer"}),
        ({"model_type": "bert"}, None, "BPE", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ({"model_type": "bert", "tokenizer_class": "Mine"}, None, "BPE", {"tokenizer_class": "Mine"}),
        (None, {"pad_token": "x"}, "BPE", {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "x"}),
    ],
)
def test_the_class_of_a_tokenizer_is_named_where_no_file_does(config, settings, vocabulary, expected, tmp_path):
    given = {
        "config.json": config,
        "tokenizer_config.json": settings,
        "tokenizer.json": {"model": {"type": vocabulary}},
    }
    for name, value in given.items():
        if value is not None:
            (tmp_path / name).write_text(json.dumps(value))
    assert json.loads(tokenizer_files.read(tmp_path)["tokenizer_config.json"]) == expected


@pytest.mark.parametrize("kind", CLASS_OF_MODEL)
def test_the_class_that_is_named_is_that_of_training(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "vocab.txt").write_text("[PAD]")
    settings = json.loads(tokenizer_files.read(tmp_path)["tokenizer_config.json"])
    same = {SAVED: tokenizer_files.AS_IT_STANDS}  # another name, which transformers 4 knows too
    assert settings == {"tokenizer_class": same.get(CLASS_OF_MODEL[kind], CLASS_OF_MODEL[kind])}


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path):
    for name in (tmp_path, tmp_path / "none"):
        with pytest.raises(
            InputError, match=r"no tokenizer in '.*'; expected a folder with tokenizer.json or vocab.txt"
        ):
            export_merged(tmp_path / "out", base("bert"), tokenizer=name)
    assert not (tmp_path / "out").exists()


def test_one_output_is_a_regression(tmp_path):
    model = bert.Bert(base("bert").config, 1, rngs=nnx.Rngs(0))
    export_merged(tmp_path, model)
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"] == "regression"


def test_labels_must_be_one_an_output(tmp_path):
    for labels in (["yes", "no"], "seven"):
        with pytest.raises(InputError, match="but the model has 7 outputs; expected a name for each") as error:
            export_merged(tmp_path, base("vit"), labels=labels)
        one_line(error)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (list("abcabd") + ["e"], "labels names 'a', 'b' more than once; expected a different name for each output"),
        (["a", 1, None, *"defg"], "labels holds 1, None; expected strings"),
        ([[], *"bcdefg"], r"labels holds \[\]; expected strings"),
        (range(7), "labels holds 0, 1, 2, 3, 4, 5, 6; expected strings"),
    ],
)
def test_labels_are_different_strings(labels, message, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or the annotations refuse some of them first
    with pytest.raises(InputError, match=message) as error:
        export_merged(tmp_path / "none", base("vit"), labels=labels)
    one_line(error)
    assert not (tmp_path / "none").exists()


def test_public_names():
    assert surm.exchange.export_merged is export_merged
