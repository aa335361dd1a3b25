"""Kinds of model that are one of our architectures by another name, and every activation, against transformers."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file
from transformers.activations import ACT2CLS, ACT2FN

import surm
from surm.models import decoder_files
from surm.models.bert import Bert
from surm.models.convert import restore
from surm.models.hf_config import HF_DEFAULTS, config_from_hf
from surm.models.hf_fields import HF_ACTIVATIONS
from surm.models.vit import ViT
from surm.models.weights import open_weights
from surm.ops.activations import ACTIVATIONS
from tests.exchange.models import noisy
from tests.parity import torch_models
from tests.parity.test_architectures import CASES, SMALL

TOLERANCE = 1e-5  # of the largest entry
WITHOUT_PARAMETERS = sorted(ACT2CLS.keys() - {"prelu", "xielu"})
TEXTS = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {"type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", {"type_vocab_size": 1, "pad_token_id": 3}),
    "camembert": ("Camembert", {"type_vocab_size": 1}),
    "data2vec-text": ("Data2VecText", {"type_vocab_size": 1, "hidden_act": "silu"}),
    "ernie": ("Ernie", {}),
    "electra": ("Electra", {"embedding_size": 48}),
}
IMAGES = {
    "vit": ("ViT", "ForImageClassification", {"hidden_act": "swish"}),
    "vit_msn": ("ViTMSN", "ForImageClassification", {}),
    "vit_mae": (
        "ViTMAE",
        "ForPreTraining",
        {
            "mask_ratio": 0.0,
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 32,
        },
    ),
    "clip_vision_model": ("CLIPVision", "Model", {}),
    "chinese_clip_vision_model": ("ChineseCLIPVision", "Model", {}),
    "metaclip_2_vision_model": ("MetaClip2Vision", "Model", {}),
}
WHOLE = {"clip", "chinese_clip", "metaclip_2"}  # of which the vision tower is taken, by vision_config

ENCODERS = [kind for kind in HF_DEFAULTS if kind not in decoder_files.KINDS]  # test_decoders.py has the others


def test_every_kind_is_compared():
    later = {case.build(**SMALL, **case.options).config.model_type for case in CASES.values()}
    assert TEXTS.keys() | IMAGES.keys() | WHOLE | later == {*ENCODERS}


@pytest.mark.parametrize("kind", ENCODERS)
def test_what_a_config_leaves_out_is_transformers_default(kind):
    theirs = transformers.AutoConfig.for_model(kind)
    said = getattr(theirs, "vision_config", theirs).to_dict()
    stated = {key: value for key, value in HF_DEFAULTS[kind].items()}
    assert stated == {key: said[key] for key in stated}


@pytest.mark.parametrize("name", WITHOUT_PARAMETERS)
def test_activations_agree(name):
    x = np.concatenate([np.linspace(-12, 12, 4801), np.random.default_rng(0).normal(size=999)]).astype(np.float32)
    ours, theirs = ACTIVATIONS[HF_ACTIVATIONS[name]](jnp.asarray(x)), ACT2FN[name](torch.tensor(x)).numpy()
    assert np.abs(np.asarray(ours) - theirs).max() < 2e-6 * max(1, np.abs(theirs).max() / 12)


def test_no_other_activation_is_named():
    assert set(HF_ACTIVATIONS) == set(WITHOUT_PARAMETERS)


def _error(ours, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _texts(kind: str):
    """A random classifier of a kind."""
    name, options = TEXTS[kind]
    sizes = torch_models._text_sizes(48, 2, 4, 20)
    config = getattr(transformers, f"{name}Config")(**{**sizes, "num_labels": 5, **options})
    return torch_models._randomised(getattr(transformers, f"{name}ForSequenceClassification")(config))


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_agree(kind, tmp_path):
    theirs = _texts(kind)
    inputs = torch_models.texts(theirs)
    expected = torch_models.text_reference(theirs, inputs)
    theirs.save_pretrained(tmp_path)
    weights = open_weights(str(tmp_path))
    with_head = kind != "electra"
    model = restore(Bert(config_from_hf(weights.config), 5, rngs=nnx.Rngs(0)), weights, head=with_head)
    given = {key: jnp.asarray(value) for key, value in inputs.items()}
    states = model.hidden_states(**given)
    errors = [_error(ours * inputs["mask"][..., None], expected[f"hidden_{i}"]) for i, ours in enumerate(states)]
    errors += [_error(model(**given), expected["output"])] if with_head else []
    print(kind, errors)  # pytest -rP
    assert len(errors) == 3 + with_head and max(errors) < TOLERANCE


@pytest.mark.parametrize("kind", TEXTS)
def test_an_adapter_and_a_whole_model_go_back_under_the_kinds_own_names(kind, tmp_path):
    theirs, alone = _texts(kind), kind == "electra"  # its classifier is none of ours
    inputs = torch_models.texts(theirs)
    (theirs.electra if alone else theirs).save_pretrained(tmp_path / "base")
    weights = open_weights(str(tmp_path / "base"))
    shape = dataclasses.replace(config_from_hf(weights.config), pooling="mean" if alone else "class")
    base = restore(Bert(shape, 5, rngs=nnx.Rngs(0)), weights, head=not alone)
    spec = surm.PeftSpec(family="low_rank", options="rank=3", targets=r".*\.(query|up)", train=() if alone else "head")
    model = noisy(surm.attach(base, spec, nnx.Rngs(1)))
    given = {"input_ids": torch.tensor(inputs["tokens"]).long(), "attention_mask": torch.tensor(inputs["mask"]).long()}
    auto = transformers.AutoModel if alone else transformers.AutoModelForSequenceClassification
    ours = {name: jnp.asarray(inputs[name]) for name in ("tokens", "mask")}

    def same(loaded) -> None:
        with torch.no_grad():
            found = loaded.eval()(**given)
        right = model.hidden_states(**ours)[-1] * ours["mask"][..., None] if alone else model(**ours)
        found = found.last_hidden_state * given["attention_mask"][..., None] if alone else found.logits
        assert _error(right, found.numpy()) < TOLERANCE

    surm.export_peft(tmp_path / "adapter", model, encoder_only=alone)
    same(peft.PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base"), tmp_path / "adapter"))
    if alone:
        with pytest.raises(surm.InputError, match="that of ElectraForSequenceClassification a GELU"):
            surm.export_merged(tmp_path / "whole", model)
        return
    surm.export_merged(tmp_path / "whole", model)
    loaded = auto.from_pretrained(tmp_path / "whole")
    assert loaded.config.model_type == kind
    same(loaded)


@pytest.mark.parametrize("kind", IMAGES)
def test_images_agree(kind, tmp_path):
    name, task, options = IMAGES[kind]
    config = getattr(transformers, f"{name}Config")(**torch_models._sizes(48, 2, 4, 32, 8), **options)
    config.num_labels = 7
    theirs = torch_models._randomised(getattr(transformers, f"{name}{task}")(config))
    theirs.save_pretrained(tmp_path)
    weights = open_weights(str(tmp_path))
    with_head = "classifier.weight" in load_file(tmp_path / "model.safetensors")
    model = restore(ViT(config_from_hf(weights.config), 7, rngs=nnx.Rngs(0)), weights, head=with_head)
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    given = {"pixel_values": torch.tensor(images).permute(0, 3, 1, 2), "output_hidden_states": True}
    given |= {"noise": torch.arange(16.0)[None].repeat(2, 1)} if kind == "vit_mae" else {}
    with torch.no_grad():
        result = theirs(**given)
    errors = [
        _error(ours, state.numpy())
        for ours, state in zip(model.hidden_states(jnp.asarray(images)), result.hidden_states, strict=True)
    ]
    errors += [_error(model(jnp.asarray(images)), result.logits.numpy())] if with_head else []
    print(kind, errors)
    assert len(errors) == 3 + with_head and max(errors) < TOLERANCE
