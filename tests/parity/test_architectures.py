"""Every later entry of the catalogue against transformers and PEFT, from random weights as save_pretrained writes them.

A new architecture is a line of `CASES` for each form that it has.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file

import surm
from surm.errors import InputError
from surm.exchange.names import parameters
from surm.models import catalogue, convert, hf_config, weights
from surm.peft import select, surgery
from tests.exchange.models import noisy
from tests.parity import torch_models

TOLERANCE = 1e-5  # of the largest entry
SMALL = {"width": 16, "depth": 2, "heads": 2}


class Case(NamedTuple):
    """One form of an architecture.

    Attributes:
      build: makes the random model in transformers, with a classifier.
      options: for `build`.
      outputs: of the classifier.
      modules: what transformers calls the layers that LoRA is put on, by ours.
      fresh: the first words of the keys that the bare encoder lacks.
      side: of the images; 0 for what the config.json says, another one where positions are interpolated.
    """

    build: Callable[..., Any]
    options: dict[str, Any]
    outputs: int
    modules: dict[str, str]
    fresh: tuple[str, ...] = ("classifier",)
    side: int = 0


_OF_DISTILBERT = {"query": "q_lin", "key": "k_lin", "value": "v_lin", "output": "out_lin", "up": "lin1", "down": "lin2"}
_OF_DINOV2 = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "up": "fc1", "down": "fc2"}
_GATED = _OF_DINOV2 | {"up": "up_proj", "down": "down_proj"}
CASES = {
    "distilbert": Case(torch_models.distilbert, {}, 5, _OF_DISTILBERT, ("classifier", "pre_classifier")),
    "distilbert_relu": Case(
        torch_models.distilbert,
        {"activation": "relu", "sinusoidal_pos_embds": True, "num_labels": 1},
        1,
        _OF_DISTILBERT,
        ("classifier", "pre_classifier"),
    ),
    "dinov2": Case(torch_models.dinov2, {}, 7, _OF_DINOV2),
    "dinov2_enlarged": Case(torch_models.dinov2, {"hidden_act": "gelu_new"}, 7, _OF_DINOV2, side=40),
    "dinov2_shrunk": Case(torch_models.dinov2, {"image": 56}, 7, _OF_DINOV2, side=24),
    "dinov2_gated": Case(torch_models.dinov2, {"use_swiglu_ffn": True, "mlp_ratio": 4}, 7, _GATED),
    "dinov2_registers": Case(torch_models.dinov2, {"registers": 3, "image": 56}, 7, _OF_DINOV2, side=24),
    "dinov2_registers_enlarged": Case(torch_models.dinov2, {"registers": 1}, 7, _OF_DINOV2, side=56),
}


class Pair:
    """The same model as transformers has it and as we have it, with an input."""

    def __init__(self, case: Case, folder):
        self.case, self.folder, self.model = case, folder, case.build(**{**SMALL, **case.options})
        self.model.save_pretrained(folder)
        self.images = hasattr(self.model.config, "image_size")
        self.ours = self.read(folder, head=True)
        if self.images:
            side = self.ours.config.image_size
            pixels = torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(2))
            self.given, self.inputs = (
                {"pixel_values": pixels},
                {"images": jnp.asarray(pixels.permute(0, 2, 3, 1).numpy())},
            )
        else:
            self.inputs = {name: jnp.asarray(array) for name, array in torch_models.texts(self.model).items()}
            self.given = {theirs: torch.tensor(np.asarray(self.inputs[ours])).long()
                          for theirs, ours in {"input_ids": "tokens", "attention_mask": "mask"}.items()}  # fmt: skip

    def read(self, folder, *, head: bool = False, **changes) -> nnx.Module:
        """A folder of transformers as a model of ours."""
        opened = weights.open_weights(str(folder))
        shape = hf_config.config_from_hf(opened.config)
        changes |= {"image_size": self.case.side} if self.case.side else {}
        shape = dataclasses.replace(shape, **changes)
        empty = catalogue.of_shape(shape).model(shape, self.case.outputs, rngs=nnx.Rngs(0))
        return convert.restore(empty, opened, head=head)

    def auto(self, folder):
        """A folder as transformers opens it."""
        kind = "ImageClassification" if self.images else "SequenceClassification"
        return getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder).eval()

    def answer(self, model) -> np.ndarray:
        """The logits of a model of ours."""
        graph, state = nnx.split(model)
        return np.asarray(jax.jit(lambda state, inputs: nnx.merge(graph, state)(**inputs))(state, self.inputs))

    def theirs(self, model) -> np.ndarray:
        """The logits of a model of transformers or PEFT."""
        with torch.no_grad():
            return model.eval()(**self.given).logits.numpy()


@pytest.fixture(scope="session", params=CASES)
def pair(request, tmp_path_factory) -> Pair:
    return Pair(CASES[request.param], tmp_path_factory.mktemp(request.param))


def error(ours, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def test_hidden_states_logits_and_gradient_agree(pair):
    if pair.images:
        expected = torch_models.reference(pair.model, size=pair.case.side)
        inputs, mask = {"images": expected.pop("image")}, 1
    else:
        inputs = {name: np.asarray(array) for name, array in pair.inputs.items()}
        expected, mask = torch_models.text_reference(pair.model, inputs), pair.inputs["mask"][..., None]
    cotangent = expected.pop("cotangent")
    graph, state = nnx.split(pair.ours)

    @jax.jit
    def run(state, inputs):
        model = nnx.merge(graph, state)
        found = {f"hidden_{index}": tokens * mask for index, tokens in enumerate(model.hidden_states(**inputs))}
        return (model(**inputs) * cotangent).sum(), {**found, "output": model(**inputs)}

    given = {name: jnp.asarray(array) for name, array in inputs.items()}
    if pair.images:
        (_, found), gradient = jax.value_and_grad(run, argnums=1, has_aux=True)(state, given)
        found["gradient"] = gradient["images"]
    else:
        (_, found), gradient = jax.value_and_grad(run, has_aux=True)(state, given)
        found["gradient"] = gradient["embed"]["word"]["embedding"][...]
    assert found.keys() == expected.keys()
    errors = {name: error(found[name], expected[name]) for name in expected}
    print(errors)  # pytest -rP
    assert max(errors.values()) < TOLERANCE


def test_the_bare_encoder_is_read_and_lacks_what_it_may_lack(pair, tmp_path):
    bare = pair.model.base_model
    bare.save_pretrained(tmp_path)
    fresh, whole = pair.read(tmp_path), pair.ours
    lacking = convert.lacking(weights.open_weights(str(tmp_path)), whole)
    assert lacking == [
        start for start in catalogue.of(whole).fresh if any(path.startswith(start) for path in select.variables(whole))
    ]
    expected = parameters(whole)
    for path, array in parameters(fresh).items():
        assert np.array_equal(array, expected[path]) or path.startswith(("head.", *lacking)), path
    fields = hf_config.config_from_hf(weights.open_weights(str(tmp_path)).config)
    assert catalogue.of(whole).to_hf(fields) == catalogue.of(whole).to_hf(whole.config)


@pytest.mark.parametrize("targets", ["attention", "mlp"])
def test_peft_answers_as_we_do(pair, targets, tmp_path):
    wanted = r".*\.attention\.(query|key|value|output)" if targets == "attention" else r".*\.mlp\..*"
    spec = surm.PeftSpec(
        family="low_rank", options="rank=3", targets=wanted, train=("head", r".*\.1\.norm1"), scale=2.0
    )
    model = noisy(surm.attach(pair.ours, spec, nnx.Rngs(1)))
    surm.export_peft(tmp_path, model)
    loaded = peft.PeftModel.from_pretrained(pair.auto(pair.folder), tmp_path)
    expected = pair.theirs(loaded)
    assert error(pair.answer(model), expected) < TOLERANCE < error(pair.answer(pair.ours), expected)
    assert error(pair.answer(surm.import_peft(tmp_path, pair.ours)), expected) < TOLERANCE


def test_we_answer_as_peft_does(pair, tmp_path):
    task = {"modules_to_save": ["classifier"]} if pair.images else {"task_type": "SEQ_CLS"}
    targets = [pair.case.modules[name] for name in ("query", "value", "down")]
    adapted = peft.get_peft_model(
        pair.auto(pair.folder), peft.LoraConfig(r=2, lora_alpha=8, target_modules=targets, **task)
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(tmp_path)
    expected = pair.theirs(adapted)
    model = surm.import_peft(tmp_path, pair.ours)
    assert error(pair.answer(model), expected) < TOLERANCE < error(pair.answer(pair.ours), expected)
    layers = {path for path, _ in surgery.specs(model, surgery.spec_of(model)).items()}
    assert layers == {
        f"blocks.{i}.{place}" for i in range(2) for place in ("attention.query", "attention.value", "mlp.down")
    }


def test_an_adapter_of_the_encoder_alone_fits_the_bare_model(pair, tmp_path):
    spec = surm.PeftSpec(family="low_rank", options="rank=3", targets=r".*\.attention\.query", train=("head",))
    model = noisy(surm.attach(pair.ours, spec, nnx.Rngs(1)))
    surm.export_peft(tmp_path, model, encoder_only=True)
    assert not any(
        f".{word}." in key for key in load_file(tmp_path / "adapter_model.safetensors") for word in pair.case.fresh
    )
    bare = pair.auto(pair.folder).base_model
    loaded = peft.PeftModel.from_pretrained(bare, tmp_path).eval()
    with torch.no_grad():
        theirs = loaded(**pair.given, output_hidden_states=True).hidden_states[-1].numpy()
    ours = model.hidden_states(**pair.inputs)[-1]
    mask = 1 if pair.images else np.asarray(pair.inputs["mask"])[..., None]
    assert error(ours * mask, theirs * mask) < TOLERANCE


def test_a_merged_folder_is_opened_by_transformers_and_by_us(pair, tmp_path):
    spec = surm.PeftSpec(family="circulant", targets=r".*\.(query|down)", train=("head",))
    model = noisy(surm.attach(pair.ours, spec, nnx.Rngs(1)))
    surm.export_merged(tmp_path, model)
    loaded = pair.auto(tmp_path)
    assert loaded.config.model_type == pair.model.config.model_type
    assert type(loaded) is type(pair.model)
    expected = pair.theirs(loaded)
    assert error(pair.answer(model), expected) < TOLERANCE < error(pair.answer(pair.ours), expected)
    assert error(pair.answer(pair.read(tmp_path, head=True)), expected) < TOLERANCE
    held = load_file(pair.folder / "model.safetensors")
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == {key for key in held if not key.endswith("mask_token")}  # which only pretraining reads


def test_a_head_of_another_pooling_is_no_classifier(pair, tmp_path):
    other = pair.read(pair.folder, pooling="mean")
    with pytest.raises(InputError, match="pooling='mean'"):
        surm.export_merged(tmp_path / "whole", other)
    assert not (tmp_path / "whole").exists()
