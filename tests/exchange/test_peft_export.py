"""What export_peft writes, and what it refuses; test_golden_adapters.py and tests/parity say that PEFT agrees."""

import json

import numpy as np
import pytest
from flax import nnx

import surm
from surm import InputError
from surm.exchange import export_peft, import_peft
from surm.peft import surgery
from surm.peft.together.several import combine
from tests.exchange.models import adapted, answer, base, one_line, reshaped, tensors

QV = r".*\.(query|value)"
# options of a family, its targets, the type it goes as, the family it comes back as
CASES = {
    "low_rank": ({"options": "rank=3", "scale": 2.0, "dropout": 0.1}, "LORA", "low_rank"),
    "c3a": ({"options": "block_size=4", "scale": 3.0}, "C3A", "c3a"),
    "c3a uneven": ({"targets": (QV, r".*\.0\.mlp\.up"), "options": "block_size=None"}, "C3A", "c3a"),
    "block_circulant": ({"options": "block_size=8", "scale": 0.5}, "C3A", "c3a"),
    "circulant": ({"scale": 0.2}, "C3A", "c3a"),
    "circulant single": ({"options": "hadamard=False"}, "C3A", "c3a"),
    "low_rank taken away": ({"options": "rank=3", "scale": -0.5}, "LORA", "low_rank"),
    "low_rank dora": ({"options": "rank=3", "magnitude": True, "scale": 0.5}, "LORA", "low_rank"),
    "low_rank ruled": (
        {"options": "rank=3", "rules": r".*\.0\.attention\.value => rank=2, scale=0.5; .*\.1\.attention\..* => off"},
        "LORA",
        "low_rank",
    ),
    "c3a mixed": ({"rules": ".*value => family=circulant; .*0.*down => family=block_circulant"}, "C3A", "c3a"),
    "kronecker": ({"options": "rank=4", "scale": 1.5}, "LOKR", "kronecker"),
    "kronecker ruled": (
        {"options": "rank=4", "rules": r".*\.0\.attention\.value => scale=3"},
        "LOKR",
        "kronecker",
    ),
    "kronecker oblong": ({"targets": r".*\.mlp\.down", "options": "rank=4"}, "LOKR", "kronecker"),
}
DENSE = ("attention.output", "intermediate", "output")
OLD_DENSE = [f"vit.encoder.layer.{index}.{name}.dense" for index in (0, 1) for name in DENSE]


def config_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def options_of(case):
    spec, peft_type, back = CASES[case]
    return {"targets": QV, "family": case.split()[0]} | spec, peft_type, back


@pytest.mark.parametrize("case", CASES)
def test_every_family_comes_back_with_its_answers(case, tmp_path):
    spec, peft_type, back = options_of(case)
    model = adapted("vit", **spec)
    model.eval()
    export_peft(tmp_path, surm.merge(model), base_model_name="some/base")
    again = import_peft(tmp_path, base("vit"))
    np.testing.assert_allclose(answer(again), answer(model), rtol=1e-4, atol=1e-5)
    assert config_in(tmp_path)["peft_type"] == peft_type
    assert config_in(tmp_path)["base_model_name_or_path"] == "some/base"
    read = surgery.spec_of(again)
    assert (read.family, read.train) == (back, ("head",))
    if case == "low_rank":
        assert (read.scale, read.dropout, dict(read.options)) == (2.0, 0.1, {"rank": 3})


def test_what_a_layer_has_of_its_own_is_written_for_it(tmp_path):
    place = "vit.layers.0.attention.v_proj"
    export_peft(tmp_path, adapted("vit", **options_of("low_rank ruled")[0]))
    config = config_in(tmp_path)
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (3, {place: 2}, {place: 1})
    export_peft(tmp_path, adapted("vit", **options_of("kronecker ruled")[0]))
    config = config_in(tmp_path)
    assert (config["r"], config["alpha"], config["alpha_pattern"]) == (4, 4, {place: 12})
    export_peft(tmp_path, adapted("vit", **options_of("c3a uneven")[0]))
    assert config_in(tmp_path)["block_size"] == 16
    assert "block_size_pattern" in config_in(tmp_path)
    oblong = {"family": "block_circulant", "targets": (r".*\.0\.attention\.query", r"head")}
    export_peft(tmp_path, adapted("vit", train=(), **oblong))
    assert config_in(tmp_path)["block_size_pattern"] == {"classifier": 1}


@pytest.mark.parametrize(
    ("kind", "names", "targets", "expected"),
    [
        ("vit", "transformers5", QV, ["q_proj", "v_proj"]),
        ("vit", "transformers4", QV, ["query", "value"]),
        ("bert", "transformers5", QV, ["query", "value"]),
        ("vit", "transformers5", r"blocks\.1\..*query", ["vit.layers.1.attention.q_proj"]),
        ("vit", "transformers5", r".*\.mlp\.down", ["fc2"]),
        ("bert", "transformers4", r".*\.mlp\.down", [f"bert.encoder.layer.{i}.output.dense" for i in (0, 1)]),
        ("roberta", "transformers5", "head", ["out_proj"]),
        ("vit", "transformers4", r".*\.(output|up|down)", OLD_DENSE),  # ViTModel's pooler is a dense, too
    ],
)
def test_target_modules_name_the_layers_and_no_others(kind, names, targets, expected, tmp_path):
    export_peft(tmp_path, adapted(kind, family="low_rank", targets=targets, train=()), names=names)
    assert config_in(tmp_path)["target_modules"] == expected
    assert config_in(tmp_path)["modules_to_save"] is None


@pytest.mark.parametrize(
    ("kind", "train", "modules", "task"),
    [
        ("vit", "head", ["classifier"], None),
        ("bert", "head", ["classifier"], "SEQ_CLS"),
        ("bert", ("head", "pooler"), ["bert.pooler.dense", "classifier"], "SEQ_CLS"),
        ("roberta", "head", ["classifier"], "SEQ_CLS"),
        ("bert", r".*\.0\.norm1\.bias", ["bert.encoder.layer.0.attention.output.LayerNorm"], None),
        ("vit", ("norm", "embed.patch"), ["vit.embeddings.patch_embeddings.projection", "vit.layernorm"], None),
        ("vit", "embed", ["vit.embeddings"], None),
    ],
)
def test_modules_to_save_hold_all_of_what_trains_a_part(kind, train, modules, task, tmp_path):
    model = adapted(kind, family="low_rank", train=train)
    export_peft(tmp_path, model)
    config, held = config_in(tmp_path), tensors(tmp_path)
    assert (config["modules_to_save"], config["task_type"]) == (modules, task)
    if kind == "roberta":
        assert held["base_model.model.classifier.dense.weight"].shape == (16, 16)
    np.testing.assert_allclose(answer(import_peft(tmp_path, base(kind))), answer(model), rtol=1e-5, atol=1e-6)


def test_an_encoder_alone_is_written_without_prefix_and_head(tmp_path):
    plain = reshaped("bert", pooling="mean")
    model = surm.attach(plain, surm.PeftSpec(family="low_rank", options="rank=3", train="head"), nnx.Rngs(0))
    with pytest.raises(InputError, match="reads the mean of the tokens .*; encoder_only=True") as error:
        export_peft(tmp_path / "none", model)
    one_line(error)
    assert not (tmp_path / "none").exists()
    export_peft(tmp_path, model, encoder_only=True)
    assert config_in(tmp_path)["modules_to_save"] is None
    assert {key.split(".")[2] for key in tensors(tmp_path)} == {"encoder"}
    assert surgery.spec_of(import_peft(tmp_path, plain)).train == ()
    # a classifier that saw the first token is not one for the mean
    export_peft(tmp_path, adapted("bert", family="low_rank"))
    with pytest.raises(InputError, match="holds a classifier, but the model's head reads the mean") as error:
        import_peft(tmp_path, plain)
    one_line(error)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"family": "toeplitz"},
            "family 'toeplitz' cannot be written in PEFT's files; supported: LORA: low_rank; .*to_low_rank",
        ),
        ({"method": "bottleneck"}, "method='bottleneck' cannot be written in PEFT's files, expected 'update'"),
        ({"method": "head"}, "method='head' cannot be written in PEFT's files"),
        ({"family": "circulant", "targets": r".*\.up"}, r"layers\.0\.mlp\.fc1: a circulant matrix of 32×16 is not"),
        (
            {"targets": ".*key", "rules": ".*value => family=low_rank"},
            "family 'circulant' with 'low_rank' cannot be written",
        ),
        ({"magnitude": True}, "k_proj has magnitude=True, which PEFT has for family='low_rank', not for C3A"),
        ({"family": "kronecker", "options": "rank=4", "magnitude": True}, "magnitude=True, .* not for LoKr"),
        ({"family": "low_rank", "targets": ".*y", "rules": ".*e => magnitude=True"}, "some layers have magnitude=True"),
        ({"family": "kronecker", "options": "rank=2"}, "kronecker with rank=2 of 16×16 is not a LoKr: .*to_low_rank"),
        ({"family": "kronecker", "options": "rank=4,terms=2"}, "kronecker with terms=2; LoKr has one term"),
        ({"family": "low_rank", "targets": r"embed\.patch"}, "embed.patch has an update, but is a convolution"),
    ],
)
def test_what_peft_cannot_hold_is_refused(spec, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        export_peft(tmp_path / "none", adapted("vit", **spec))
    one_line(error)
    assert not (tmp_path / "none").exists()


def test_a_head_that_an_adapter_of_surm_0_1_0_trained_and_updated_is_refused(tmp_path):
    spec = surm.PeftSpec(family="low_rank", targets="head", train="head")  # what attach refuses now
    saved = ("head.base.kernel", "head.delta.parameters.a")
    old = surgery.reattach(base("vit"), spec, nnx.Rngs(0), saved=saved)
    with pytest.raises(InputError, match="head.* trains and its layer has an update"):
        export_peft(tmp_path / "none", old)
    assert not (tmp_path / "none").exists()


def test_other_arguments_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(InputError, match="no adapter to export"):
        export_peft(tmp_path, base("vit"))
    with pytest.raises(InputError, match="names='5'"):
        export_peft(tmp_path, adapted(family="low_rank"), names="5")
    with pytest.raises(InputError, match="head has an update, which encoder_only=True would leave out"):
        export_peft(tmp_path, adapted(family="low_rank", targets="head", train=()), encoder_only=True)
    both = combine({"one": adapted(family="low_rank"), "other": adapted(family="circulant")}, head="one")
    with pytest.raises(InputError, match="the model has several adapters, 'one', 'other'; expected one adapter"):
        export_peft(tmp_path, both)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        export_peft(tmp_path / "file", adapted(family="low_rank"))
    model = adapted(family="low_rank")
    model.config = reshaped("vit", pooling="mean").config
    with pytest.raises(InputError, match="transformers has no such .* surm.save_adapter") as error:
        export_peft(tmp_path, model, encoder_only=True)
    one_line(error)
