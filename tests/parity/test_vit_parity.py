"""Our ViT against transformers, in float32: every hidden state, the output, the gradient of the image."""

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from surm.models.convert import restore
from surm.models.hf_config import config_from_hf
from surm.models.vit import ViT
from surm.models.weights import open_weights
from tests.models.naming import renamed
from tests.parity import torch_models

TOLERANCE = 1e-5  # of the largest entry

OTHER = {"image": 48, "patch": 16, "layer_norm_eps": 1e-3}
CASES = {
    "vit": ("vit", {}),
    "vit_wide_patch": ("vit", {**OTHER, "hidden_act": "gelu_new"}),
    "clip_vision": ("clip_vision", {}),
    "clip_wide_patch": ("clip_vision", {**OTHER, "hidden_act": "gelu"}),
    "clip": ("clip", {}),
}


def _save(model, folder, form: str) -> None:
    model.save_pretrained(folder)
    if form != "saved":
        arrays = load_file(folder / "model.safetensors")
        save_file({renamed(key, form): array for key, array in arrays.items()}, folder / "model.safetensors")


def _ours(folder, classes: int) -> ViT:
    weights = open_weights(str(folder))
    model = ViT(config_from_hf(weights.config), classes, rngs=nnx.Rngs(0))
    return restore(model, weights, head=any("classifier" in key for key in weights.arrays))


def _computed(model: ViT, image, cotangent, head: bool) -> dict[str, np.ndarray]:
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, image):
        model = nnx.merge(graph, state)
        output, pull = jax.vjp(model if head else model.features, image)
        return model.hidden_states(image), output, pull(cotangent)[0]

    hidden, output, gradient = run(state, image)
    states = {f"hidden_{index}": tokens for index, tokens in enumerate(hidden)}
    return {"output": output, "gradient": gradient, **states}


def _error(ours, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_output_and_image_gradient_agree(case, tmp_path):
    kind, options = CASES[case]
    theirs = getattr(torch_models, kind)(**options)
    expected = torch_models.reference(theirs)
    _save(theirs, tmp_path, "saved")
    classes = expected["output"].shape[1] if kind == "vit" else 5
    model = _ours(tmp_path, classes)
    computed = _computed(model, expected["image"], expected["cotangent"], head=kind == "vit")
    assert len(model.blocks) + 1 == sum(name.startswith("hidden_") for name in expected)
    errors = {name: _error(array, expected[name]) for name, array in computed.items()}
    print(case, errors)  # pytest -rP
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize(
    ("kind", "form"), [("vit", "old"), ("vit", "new"), ("vit", "bare"), ("clip_vision", "prefixed")]
)
def test_every_naming_gives_the_same_model(kind, form, tmp_path):
    theirs = getattr(torch_models, kind)(depth=2)
    (tmp_path / "saved").mkdir()
    (tmp_path / form).mkdir()
    _save(theirs, tmp_path / "saved", "saved")
    _save(theirs, tmp_path / form, form)
    expected, found = (nnx.state(_ours(tmp_path / folder, 7)) for folder in ("saved", form))
    jax.tree.map(np.testing.assert_array_equal, expected, found)


def test_the_old_and_new_names_are_those_of_transformers(tmp_path):
    theirs = torch_models.vit(depth=1)
    modules = set(theirs.state_dict())
    assert {renamed(key, "new") for key in modules} == modules
    theirs.save_pretrained(tmp_path)
    saved = set(load_file(tmp_path / "model.safetensors"))
    assert {renamed(key, "old") for key in modules} == saved
