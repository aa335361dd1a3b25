"""Adapters that PEFT saved on transformers 4 and 5: they answer as there, and go back as they came."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import surm.exchange
from surm.exchange.peft_files import UNREAD
from surm.peft import select, surgery
from tests.exchange.models import GOLDEN, answer, base, tensors

CASES = [folder.relative_to(GOLDEN).as_posix() for folder in sorted(GOLDEN.glob("*/*"))]


def test_there_are_six_of_each_version_and_two_of_the_newer():
    assert len(CASES) == 12 + 2


@pytest.fixture(scope="module", params=CASES)
def case(request):
    kind = request.param.split("/")[1].split("_")[0]
    return request.param, surm.exchange.import_peft(GOLDEN / request.param, base(kind))


def test_the_logits_are_those_of_peft(case):
    name, model = case
    expected = load_file(GOLDEN / "computed.safetensors")[f"{name.split('/')[1]}.logits"]
    assert np.abs(answer(model) - expected).max() < 1e-5 * np.abs(expected).max()


def test_it_goes_back_as_it_came(case, tmp_path):
    name, model = case
    surm.exchange.export_peft(tmp_path, model, names=name.split("/")[0], base_model_name="there")
    expected, found = tensors(GOLDEN / name), tensors(tmp_path)
    # a layer of AdaLoRA's that has lost all components has no update; if its bias trained it is saved whole
    lost = (*UNREAD, *(key.removesuffix("lora_A") for key, array in expected.items() if not array.size))
    expected, found = ({key: array for key, array in arrays.items() if not any(part in key for part in lost)}
                       for arrays in (expected, found))  # fmt: skip
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    config, theirs = (json.loads((folder / "adapter_config.json").read_text()) for folder in (tmp_path, GOLDEN / name))
    assert config.keys() <= theirs.keys()
    same = config.keys() & {"peft_type", "bias", "block_size", "inference_mode"}
    assert {key: config[key] for key in same} == {key: theirs[key] for key in same}
    assert {module for module in config["modules_to_save"] if f"base_model.model.{module}." not in lost} <= {
        *theirs["modules_to_save"]
    }
    assert config["base_model_name_or_path"] == "there"


def test_the_spec_says_what_peft_trained():
    model = surm.exchange.import_peft(GOLDEN / "transformers4" / "vit_lora", base("vit"))
    spec = surgery.spec_of(model)
    assert (spec.family, spec.options["rank"], spec.scale, spec.train) == ("low_rank", 2, 3.0, ("head",))
    assert spec.targets == (
        r"blocks\.0\.attention\.query",
        r"blocks\.1\.attention\.query",
        r"blocks\.1\.attention\.value",
    )
    assert spec.rules == {
        r"blocks\.0\.attention\.value": {"options": {"rank": 2}, "scale": 0.5},
        r"blocks\.1\.mlp\.up": {"options": {"rank": 3}, "scale": 2.0},
    }
    assert sorted(select.dotted(path) for path, _ in surgery.wrapped_layers(model)) == [
        "blocks.0.attention.query", "blocks.0.attention.value",
        "blocks.1.attention.query", "blocks.1.attention.value", "blocks.1.mlp.up",
    ]  # fmt: skip
    both = surgery.spec_of(surm.exchange.import_peft(GOLDEN / "transformers5" / "roberta_lora", base("roberta")))
    assert both.train == ("head", "pooler")
    every = surgery.spec_of(surm.exchange.import_peft(GOLDEN / "transformers5" / "vit_lokr", base("vit")))
    assert every.targets == (r"blocks\.\d+\.attention\.query", r"blocks\.\d+\.attention\.value")
    assert every.options["rank"] == 4 and every.scale == 1.5
