"""Biases that train beside updates, in PEFT's files; test_golden_adapters.py and tests/parity say that PEFT agrees."""

import json
import re

import numpy as np
import pytest

from surm import InputError
from surm.exchange import export_peft, import_peft
from surm.peft import surgery
from tests.exchange.models import GOLDEN, adapted, answer, base, change, one_line, put, tensors
from tests.exchange.test_peft_import import copied

QV = r".*\.(query|value)"
ROOT = "base_model.model."
QUERY = "vit.layers.0.attention.q_proj"


def exported(folder, kind="vit", **spec):
    model = adapted(kind, **{"family": "low_rank", "targets": QV} | spec)
    export_peft(folder, model)
    return model, json.loads((folder / "adapter_config.json").read_text()), tensors(folder)


KEYS = [f"vit.layers.{index}.attention.k_proj" for index in (0, 1)]
NORMS = [f"vit.layers.{index}.layernorm_before" for index in (0, 1)]
OWN = ("head", r"blocks\.\d+\.attention\.query\.bias", r"blocks\.\d+\.attention\.value\.bias")


@pytest.mark.parametrize(
    ("train", "bias", "modules", "back"),
    [
        (("head", r".*\.bias"), "all", ["classifier"], ("head", r".*\.bias")),
        (r".*\.bias", "all", ["classifier"], ("head", r".*\.bias")),
        (("head", QV + r"\.bias"), "lora_only", ["classifier"], OWN),
        (r".*\.(query|key|value)\.bias", "lora_only", KEYS, (*(f"blocks.{i}.attention.key" for i in (0, 1)), *OWN[1:])),
        (("head", r".*\.norm1\.bias"), "none", ["classifier", *NORMS], ("blocks.0.norm1", "blocks.1.norm1", "head")),
    ],
)
def test_biases_go_and_come_back(train, bias, modules, back, tmp_path):
    model, config, held = exported(tmp_path, train=train)
    assert (config["bias"], config["modules_to_save"]) == (bias, modules)
    assert any(".base_layer.bias" in key for key in held) == (bias != "none")
    again = import_peft(tmp_path, base("vit"))
    np.testing.assert_allclose(answer(again), answer(model), rtol=1e-5, atol=1e-6)
    assert tuple(one.replace("\\.", ".") for one in surgery.spec_of(again).train) == tuple(
        one.replace("\\.", ".") for one in back
    )


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_biases_of_texts_go_and_come_back(kind, tmp_path):
    model, config, held = exported(tmp_path, kind, train=("head", r".*\.bias"))
    assert (config["bias"], config["modules_to_save"]) == ("all", ["classifier"])
    assert f"{ROOT}{kind}.embeddings.LayerNorm.bias" in held
    np.testing.assert_allclose(answer(import_peft(tmp_path, base(kind))), answer(model), rtol=1e-5, atol=1e-6)


def test_the_values_of_all_biases_are_the_models(tmp_path):
    model, _, held = exported(tmp_path, train=("head", r".*\.bias"))
    plain = surgery.detach(model)
    np.testing.assert_array_equal(held[f"{ROOT}{QUERY}.base_layer.bias"], plain.blocks[0].attention.query.bias[...])
    np.testing.assert_array_equal(held[f"{ROOT}vit.layernorm.bias"], plain.norm.bias[...])
    assert f"{ROOT}vit.layernorm.weight" not in held


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"train": r"blocks\.0\.attention\.query\.bias"},
            r"^blocks.0.attention.query.bias trains and blocks.0.attention.value.bias does not; PEFT saves the",
        ),
        (
            {"train": r".*\.bias", "family": "kronecker", "options": "rank=4"},
            r"blocks.0.attention.query.bias trains, but PEFT's adapter type for the update of its layer cannot save "
            "biases; .*surm.to_low_rank makes a LoRA",
        ),
    ],
)
def test_what_peft_has_no_word_for_is_refused(spec, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        exported(tmp_path / "none", **spec)
    one_line(error)
    assert not (tmp_path / "none").exists()


def test_a_layer_that_trains_whole_is_a_module_to_save(tmp_path):
    model, config, _ = exported(tmp_path, train=("head", r".*\.query"))
    assert config["modules_to_save"] == ["classifier", *(f"vit.layers.{i}.attention.q_proj" for i in (0, 1))]
    assert config["target_modules"] == ["v_proj"]
    np.testing.assert_allclose(answer(import_peft(tmp_path, base("vit"))), answer(model), rtol=1e-5, atol=1e-6)


def test_an_encoder_alone_has_the_biases_of_an_encoder(tmp_path):
    model = adapted("bert", family="low_rank", targets=QV, train=("head", r".*\.bias"))
    export_peft(tmp_path, model, encoder_only=True)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["bias"] == "all"
    assert not any("classifier" in key for key in tensors(tmp_path))
    again = surgery.spec_of(import_peft(tmp_path, base("bert")))
    assert not any(re.fullmatch(pattern, "head.bias") for pattern in again.train)
    assert any(re.fullmatch(pattern, "pooler.bias") for pattern in again.train)


def test_names_before_peft_0_8_are_read(tmp_path):
    model, _, held = exported(tmp_path, train=("head", r".*\.bias"))
    put(tmp_path, {key.replace(".base_layer.bias", ".bias"): array for key, array in held.items()})
    np.testing.assert_allclose(answer(import_peft(tmp_path, base("vit"))), answer(model), rtol=1e-5, atol=1e-6)


def test_biases_that_the_file_should_hold_and_does_not_are_said(tmp_path, capsys):
    folder = copied("transformers5/vit_lora", tmp_path)
    expected = answer(import_peft(folder, base("vit")))
    assert capsys.readouterr().out == ""
    change(folder, bias="lora_only")
    np.testing.assert_array_equal(answer(import_peft(folder, base("vit"))), expected)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert (
        "says bias='lora_only', but does not hold blocks.0.attention.query.bias, blocks.0.attention.value.bias" in said
    )
    assert "and 3 more: those of the base are used (PEFT before 0.21 did not write the biases of 'lora_only')" in said


def test_a_bias_is_no_update(tmp_path):
    folder = copied("transformers5/vit_biases", tmp_path)
    put(folder, {key: array for key, array in tensors(folder).items() if "v_proj.lora" not in key})
    with pytest.raises(InputError, match=r"holds no tensor of vit.layers.0.attention.v_proj, which target_modules"):
        import_peft(folder, base("vit"))


def test_pefts_copies_of_what_is_saved_are_passed_over():
    held = tensors(GOLDEN / "transformers5" / "vit_biases")
    assert f"{ROOT}classifier.original_module.bias" in held and f"{ROOT}classifier.modules_to_save.bias" in held
    assert surgery.spec_of(import_peft(GOLDEN / "transformers5" / "vit_biases", base("vit"))).train[0] == "head"


def test_a_c3a_has_them_too_by_its_own_word(tmp_path):
    train = ("head", QV + r"\.bias")
    model, config, _ = exported(tmp_path, family="c3a", options="block_size=4", train=train)
    assert config["bias"] == "c3a_only"
    np.testing.assert_allclose(answer(import_peft(tmp_path, base("vit"))), answer(model), rtol=1e-5, atol=1e-6)
    change(tmp_path, bias="lora_only")
    with pytest.raises(InputError, match="says bias='lora_only'; supported: 'none', 'all', 'c3a_only'"):
        import_peft(tmp_path, base("vit"))
