"""What import_peft refuses, by name, and what it overlooks; the golden adapters say that it reads right."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from flax import nnx

import surm
from surm import InputError
from surm.exchange import import_peft, peft_import
from surm.peft import surgery
from tests.exchange.models import GOLDEN, adapted, answer, base, change, one_line, put, tensors

PLACE = "base_model.model.vit.layers.0.attention.q_proj."
PATCH = "base_model.model.vit.embeddings.patch_embeddings.projection."
CLASSIFIER = "base_model.model.classifier.weight"


@pytest.fixture
def folder(tmp_path):
    """A LoRA of PEFT's, of all layers one rank and scale, that may be changed."""
    return copied("transformers5/vit_lora", tmp_path)


def copied(name, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(folder, message, kind="vit"):
    with pytest.raises(InputError, match=message) as error:
        import_peft(folder, base(kind))
    one_line(error)


@pytest.mark.parametrize(
    "field",
    [
        {"bias": "some"}, {"lora_bias": True}, {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
        {"init_lora_weights": "pissa"}, {"init_lora_weights": "pissa_niter_4"}, {"init_lora_weights": "olora"},
        {"target_parameters": ["x"]}, {"layer_replication": [[0, 1]]}, {"trainable_token_indices": [1]},
        {"alora_invocation_tokens": [1]}, {"use_qalora": True}, {"kasa_config": {"beta": 0.1}},
        {"what_a_later_peft_adds": True},
    ],
)  # fmt: skip
def test_options_that_change_the_answer_are_refused_by_name(field, folder):
    change(folder, **field)
    name, value = next(iter(field.items()))
    refused(folder, rf"adapter_config.json' says {name}={str(value)[:3] if value is True else ''}.*supported: ")


@pytest.mark.parametrize(
    "field",
    [
        {"init_lora_weights": "gaussian"}, {"init_lora_weights": "eva", "eva_config": {"rho": 2}}, {"loftq_config": {}},
        {"loftq_config": {"loftq_bits": 4}}, {"fan_in_fan_out": True}, {"megatron_config": {"a": 1}},
        {"ensure_weight_tying": True}, {"bias": "none"}, {"merge_weights": True},
        {"layers_to_transform": [0], "layers_pattern": "layers"}, {"exclude_modules": ["k_proj"]},
        {"target_modules": ".*q_proj"}, {"what_a_later_peft_adds": None}, {"lora_dropout": 0.5},
    ],
)  # fmt: skip
def test_options_that_do_not_are_overlooked(field, folder):
    expected = answer(import_peft(folder, base("vit")))
    change(folder, **field)
    model = import_peft(folder, base("vit"))
    np.testing.assert_array_equal(answer(model), expected)
    assert surgery.spec_of(model).dropout == field.get("lora_dropout", 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "says peft_type='IA3'; supported: LORA, C3A, LOKR, ADALORA"),
        ({"peft_type": None}, "says peft_type=None; supported"),
        ({"peft_type": "C3A"}, "says alpha_pattern={.*}, which is not supported; supported: block_size, .*, bias"),
        ({"format": "surm-adapter-1"}, "in surm's own format; surm.load_adapter"),
        ({"lora_alpha": "16"}, "lora_alpha='16' in the adapter's config, expected a finite number"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan in"),
        ({"alpha_pattern": {"q_proj": True}}, r"alpha_pattern\['q_proj'\]=True in"),
        ({"alpha_pattern": ["q_proj"]}, r"alpha_pattern=\['q_proj'\] in the adapter's config, expected an object"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern holds '\(', which is not a regular expression"),
        ({"lora_dropout": 1}, "lora_dropout=1 in the adapter's config, expected a number of at least 0 and below 1"),
    ],
)
def test_fields_that_cannot_be_read_are_refused(fields, message, folder):
    change(folder, **fields)
    refused(folder, message)


def test_reasons_why_a_field_is_not_followed_are_said(folder):
    change(folder, init_lora_weights="pissa")
    refused(
        folder, r"supported: True, .* \(these initial values change the frozen weights too; PEFT's save_pretrained with"
    )
    change(folder, init_lora_weights=True, trainable_token_indices=[1, 2])
    refused(folder, r"trainable_token_indices=\[1, 2\], which is not supported \(merge it in PEFT, which puts the rows")


def test_adapters_of_another_library_are_named(folder):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({"config": {"reduction_factor": 16}, "model_class": "BertAdapterModel"}))
    refused(folder, "has no peft_type, so it is not a file of Hugging Face PEFT; AdapterHub's library")
    file.write_text("{}")
    refused(folder, "has no peft_type, so it is not a file of Hugging Face PEFT$")


def test_numbers_that_are_not_finite_are_named(folder):
    put(folder, tensors(folder) | {PLACE + "lora_A.weight": np.full((2, 16), np.nan, np.float32)})
    refused(folder, "adapter_model.safetensors' holds .*q_proj.lora_A.weight with numbers that are not finite")


PUBLIC = pathlib.Path(__file__).parents[3] / "shared" / "adapter_configs"
NOT_FOLLOWED = {
    "027": "peft_type='PREFIX_TUNING'", "047": "cannot be read as JSON", "064": "enable_lora=", "097": "AdapterHub",
    "099": "enable_lora=", "104": "'LOHA'", "105": "'OFT'", "106": "'IA3'", "108": "use_bdlora=",
    "111": "velora_config=",
}  # fmt: skip


@pytest.mark.skipif(not PUBLIC.is_dir(), reason=f"the public configs are not at {PUBLIC}")
def test_public_configs_are_read_or_refused_for_a_reason(folder):
    """Of each its own fields, on tensors that are there; what it says of layers and ranks is another model's."""
    refusals = {}
    for file in sorted(PUBLIC.glob("*.json")):
        shutil.copy(file, folder / "adapter_config.json")
        try:
            peft_import._read_config(epath.Path(folder))
        except InputError as error:
            refusals[file.stem] = str(error)
    assert len(list(PUBLIC.glob("*.json"))) == 111
    assert refusals.keys() == NOT_FOLLOWED.keys()
    assert [name for name, why in NOT_FOLLOWED.items() if why not in refusals[name]] == []


def test_missing_and_damaged_files_are_refused(folder):
    weights = folder / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-10])
    refused(folder, "is not a whole safetensors file")
    weights.unlink()
    refused(folder, "has no adapter_model.safetensors$")
    (folder / "adapter_model.bin").write_bytes(b"")
    refused(folder, "adapter_model.bin is a pickle, which surm never loads: load it in PEFT and save it")
    (folder / "adapter_config.json").write_text("{")
    refused(folder, "cannot be read as JSON")
    (folder / "adapter_config.json").write_text("[]")
    refused(folder, "holds a JSON list, expected an object")
    (folder / "adapter_config.json").unlink()
    refused(folder, "no adapter in .*: adapter_config.json is missing")


@pytest.mark.parametrize(
    ("change_of", "message"),
    [
        (lambda held: {PLACE + "lora_A.weight": held[PLACE + "lora_A.weight"]}, "has the tensors lora_A.weight; "),
        (lambda held: held | {PLACE + "lora_magnitude_vector": np.ones(16)}, "lora_magnitude_vector; supported"),
        (lambda held: held | {PLACE + "lora_A.weight": np.ones((2, 16, 1))}, r"lora_A.weight has shape \(2, 16, 1\)"),
        (lambda held: held | {PLACE + "lora_A.weight": np.ones((5, 16))}, r"shapes \(5, 16\), \(16, 2\), which"),
        (
            lambda held: held | {PLACE + "lora_A.weight": np.ones((2, 24))},
            r"adapts vit.layers.0.attention.q_proj of 16×24, but blocks.0.attention.query of this model is 16×16",
        ),
        (lambda held: {key.replace("layers.0", "layers.7"): a for key, a in held.items()}, "the last of the 2 blocks"),
        (
            lambda held: {key.replace("vit.layers", "model.layers"): a for key, a in held.items()},
            r"holds model.layers.0.* which this vit lacks; expected keys such as .*q_proj",
        ),
        (
            lambda held: held | {PATCH + "lora_A.weight": np.ones((2, 192)), PATCH + "lora_B.weight": np.ones((16, 2))},
            "is embed.patch here, a convolution in transformers; expected a linear layer",
        ),
        (lambda held: held | {old(key): a for key, a in held.items() if PLACE in key}, "blocks.0.* twice, once as"),
        (lambda held: held | {"base_model.model.score.weight": np.ones((2, 2))}, "holds score.weight, which this vit"),
        (lambda held: held | {CLASSIFIER: np.ones((9, 16))}, r"head.kernel has shape \(16, 9\)"),
        (lambda held: {k: a for k, a in held.items() if "classifier.bias" not in k}, "missing head.bias"),
        (lambda held: {k: a for k, a in held.items() if "lora" not in k}, "holds no tensor of LORA, with 'lora_'"),
    ],
)  # fmt: skip
def test_tensors_of_another_model_are_refused(change_of, message, folder):
    put(folder, change_of(tensors(folder)))
    refused(folder, message)


def old(key):
    return key.replace("vit.layers", "vit.encoder.layer").replace("attention.q_proj", "attention.attention.query")


@pytest.mark.parametrize("pair", ["bert vit", "vit bert", "roberta bert", "bert roberta"])
def test_adapters_of_other_architectures_are_refused(pair):
    kind, other = pair.split()
    message = f"which this {other} lacks; expected keys such as {other}"
    refused(GOLDEN / "transformers5" / f"{kind}_lora", message, other)


def test_lokrs_of_other_shapes_are_refused(tmp_path):
    folder = copied("transformers5/vit_lokr", tmp_path)
    held = tensors(folder)
    put(folder, held | {PLACE + "lokr_w1": np.ones((1, 1)), PLACE + "lokr_w2": np.ones((16, 16))})
    refused(folder, "has a LoKr of 1×1 and 16×16, which is a sum of 16 kroneckers here, larger than .*save_as_lora")
    put(folder, held | {PLACE + "lokr_t2": np.ones((4, 4))})
    refused(folder, "has the tensor lokr_t2; supported: lokr_w1 and lokr_w2")


def test_a_lokr_needs_a_rank(tmp_path):
    folder = copied("transformers5/vit_lokr", tmp_path)
    change(folder, rank_pattern={"0.*q_proj": 0})
    refused(folder, "r=0 in the adapter's config for vit.layers.0.attention.q_proj, expected at least 1")


def test_a_lokrs_factors_are_multiplied_out(tmp_path):
    folder = copied("transformers5/vit_lokr", tmp_path)
    held = tensors(folder)
    expected = answer(import_peft(folder, base("vit")))
    u, s, vt = np.linalg.svd(held.pop(PLACE + "lokr_w2"))
    put(folder, held | {PLACE + "lokr_w2_a": u * s, PLACE + "lokr_w2_b": vt})
    np.testing.assert_allclose(answer(import_peft(folder, base("vit"))), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 3}, "q_proj has LoRA tensors of rank 2, but its config says 3"),
        ({"rank_pattern": {"0.*q_proj": 5}}, "q_proj has LoRA tensors of rank 2, but its config says 5"),
        ({"r": "2"}, "r='2' in the adapter's config, expected a finite number"),
        ({"use_rslora": "yes"}, "says use_rslora='yes'; supported: False, True, None"),
    ],
)
def test_a_config_that_contradicts_its_tensors_is_refused(tmp_path, changes, message):
    folder = copied("transformers5/vit_lora", tmp_path)
    change(folder, **changes)
    refused(folder, message)


def test_a_dora_needs_its_magnitudes(tmp_path):
    folder = copied("transformers5/vit_dora", tmp_path)
    held = tensors(folder)
    put(folder, {key: array for key, array in held.items() if key != PLACE + "lora_magnitude_vector"})
    refused(folder, "the config says use_dora, but vit.layers.0.attention.q_proj has no lora_magnitude_vector")
    put(folder, held | {PLACE + "lora_magnitude_vector": np.ones(15)})
    refused(folder, r"q_proj has LoRA tensors of shapes \(2, 16\), \(16, 2\), \(15,\), which do not fit together")
    put(folder, held)
    change(folder, use_dora=False)
    refused(folder, "has the tensors lora_A.weight, lora_B.weight, lora_magnitude_vector; supported: lora_A.weight, ")


def test_what_differs_from_layer_to_layer_becomes_rules(tmp_path):
    folder = copied("transformers5/vit_c3a", tmp_path)
    put(folder, tensors(folder) | {PLACE + "c3a_kernel": np.ones((4, 4, 4))})
    spec = surgery.spec_of(import_peft(folder, base("vit")))
    assert spec.options == {"block_size": 8} and r"blocks\.0\.attention\.query" not in spec.targets
    assert spec.rules == {r"blocks\.0\.attention\.query": {"options": {"block_size": 4}, "scale": 1.0}}


def test_an_adapter_that_is_there_is_replaced_and_the_model_left_alone(folder):
    model = adapted("vit", family="toeplitz")
    before = answer(model)
    np.testing.assert_array_equal(answer(import_peft(folder, model)), answer(import_peft(folder, base("vit"))))
    np.testing.assert_array_equal(answer(model), before)


def test_half_precision_is_read_into_the_models(folder):
    put(folder, {key: array.astype(np.float16) for key, array in tensors(folder).items()})
    trained = surgery.split(import_peft(folder, base("vit")))[1]
    assert {array.dtype.name for array in trained.values()} == {"float32"}


def test_what_was_read_trains_on(folder):
    change(folder, lora_dropout=0.5)
    model = import_peft(folder, base("vit"), nnx.Rngs(8))
    assert surm.count_parameters(model).trainable == 4 * 2 * 32 + 3 * 48 + 7 * 17
    dropouts = [layer.dropout for _, layer in surgery.wrapped_layers(model)]
    assert all(dropout.rate == 0.5 and dropout.deterministic for dropout in dropouts)
    model.train()
    assert not any(dropout.deterministic for dropout in dropouts)
    assert (masks(model) != masks(import_peft(folder, base("vit"), nnx.Rngs(9)))).any()
    assert (masks(import_peft(folder, base("vit"))) == masks(import_peft(folder, base("vit")))).all()


def masks(model):
    """The keys that masks are drawn from."""
    streams = [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.RngStream)]
    return np.stack([jax.random.key_data(stream.key[...]) for stream in streams])


def test_a_config_that_leaves_out_defaults_is_read_with_them(folder):
    file = folder / "adapter_config.json"
    change(folder, alpha_pattern={}, lora_alpha=8)
    expected = answer(import_peft(folder, base("vit")))
    file.write_text(json.dumps({"peft_type": "LORA"}))
    np.testing.assert_array_equal(answer(import_peft(folder, base("vit"))), expected)


def without(folder, part):
    put(folder, {key: array for key, array in tensors(folder).items() if part not in key})


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("vit_lora", "classifier", "no tensor of classifier, which modules_to_save .* names as 'classifier'; expected"),
        (
            "roberta_lora",
            "classifier.dense",
            "no tensor of classifier.dense, .* modules_to_save .* names as 'classifier",
        ),
        (
            "vit_lora",
            "v_proj",
            r"no tensor of vit.layers.0.*v_proj, which target_modules in .*config.json names as 'v_p",
        ),
        ("vit_c3a", "v_proj", "adapter_model.safetensors' holds no tensor of vit.layers.0.attention.v_proj"),
        ("bert_lora", "key", "names as 'key'; expected tensors of every named module"),
    ],
)
def test_a_file_that_lacks_what_its_config_names_is_refused(name, part, message, tmp_path):
    folder = copied(f"transformers5/{name}", tmp_path)
    without(folder, part)
    refused(folder, message, name.split("_")[0])


def test_a_file_of_older_names_is_looked_through_in_these(tmp_path):
    folder = copied("transformers4/vit_lora", tmp_path)
    change(folder, target_modules=["query", "value", "q_proj", "fc1"])
    expected = answer(import_peft(folder, base("vit")))
    change(folder, target_modules=["query", "value", "layer.1.intermediate.dense"])
    np.testing.assert_array_equal(answer(import_peft(folder, base("vit"))), expected)
    without(folder, "intermediate")
    refused(folder, "no tensor of vit.encoder.layer.1.intermediate.dense, which target_modules")


@pytest.mark.parametrize(
    "fields",
    [
        {"modules_to_save": ["classifier", "score"]}, {"modules_to_save": None},
        {"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj", "v_proj", "proj"]},
        {"target_modules": ["q_proj", "classifier"]},
        {"target_modules": "all-linear"}, {"target_modules": r".*fc2"},
        {"target_modules": ["fc2"], "layers_to_transform": 0}, {"target_modules": ["fc2"], "exclude_modules": ["fc2"]},
    ],
)  # fmt: skip
def test_names_that_say_nothing_of_the_model_are_left_alone(fields, folder):
    expected = answer(import_peft(folder, base("vit")))
    change(folder, **fields)
    np.testing.assert_array_equal(answer(import_peft(folder, base("vit"))), expected)


def test_a_bare_encoder_has_no_classifier_to_save(folder):
    put(folder, {key.replace(".vit.", "."): a for key, a in tensors(folder).items() if "classifier" not in key})
    assert surgery.spec_of(import_peft(folder, base("vit"))).train == ()
    change(folder, modules_to_save=["classifier", "layernorm"])
    refused(folder, "no tensor of layernorm, which modules_to_save in .* names as 'layernorm'; expected")
