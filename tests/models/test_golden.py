"""Tiny models as transformers saves them: ours must compute what was recorded (see make_golden.py)."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from surm.models.catalogue import of_shape
from surm.models.convert import restore
from surm.models.hf_config import config_from_hf
from surm.models.weights import open_weights

GOLDEN = pathlib.Path(__file__).parent / "golden"


def _run(model: nnx.Module, image: jax.Array, cotangent: jax.Array, head: bool) -> dict[str, jax.Array]:
    output, pull = jax.vjp(model if head else model.features, image)
    states = {f"hidden_{index}": tokens for index, tokens in enumerate(model.hidden_states(image))}
    return {"output": output, "gradient": pull(cotangent)[0], **states}


@pytest.mark.parametrize("name", ["vit", "clip", "dinov2"])
def test_recorded_activations_and_gradients_are_met(name):
    weights, recorded = open_weights(str(GOLDEN / name)), load_file(GOLDEN / name / "computed.safetensors")
    head, shape = name != "clip", config_from_hf(weights.config)
    shape = dataclasses.replace(shape, image_size=recorded["image"].shape[1])  # of DINOv2 another than its table's
    model = of_shape(shape).model(shape, 7, rngs=nnx.Rngs(0))
    graph, state = nnx.split(restore(model, weights, head=head))
    image, cotangent = (jnp.asarray(recorded.pop(key)) for key in ("image", "cotangent"))
    found = jax.jit(lambda state: _run(nnx.merge(graph, state), image, cotangent, head))(state)
    assert found.keys() == recorded.keys()
    for key, expected in recorded.items():
        assert found[key].shape == expected.shape
        np.testing.assert_allclose(found[key], expected, atol=1e-5 * np.abs(expected).max(), err_msg=key)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_recorded_hidden_states_and_logits_of_filled_up_texts_are_met(name):
    weights, recorded = open_weights(str(GOLDEN / name)), load_file(GOLDEN / name / "computed.safetensors")
    shape = config_from_hf(weights.config)
    graph, state = nnx.split(restore(of_shape(shape).model(shape, 5, rngs=nnx.Rngs(0)), weights, head=True))
    inputs = {key: jnp.asarray(recorded.pop(key)) for key in ("tokens", "segments", "mask")}
    cotangent = recorded.pop("cotangent")

    @jax.jit
    def run(state):
        model = nnx.merge(graph, state)
        states = enumerate(model.hidden_states(**inputs))
        found = {f"hidden_{index}": tokens * inputs["mask"][..., None] for index, tokens in states}
        return (model(**inputs) * cotangent).sum(), {**found, "output": model(**inputs)}

    gradients, found = jax.grad(run, has_aux=True)(state)
    found["gradient"] = gradients["embed"]["word"]["embedding"][...]
    assert found.keys() == recorded.keys()
    for key, expected in recorded.items():
        assert found[key].shape == expected.shape
        np.testing.assert_allclose(found[key], expected, atol=1e-5 * np.abs(expected).max(), err_msg=key)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_recorded_logits_of_decoders_are_met(name):
    weights, recorded = open_weights(str(GOLDEN / name)), load_file(GOLDEN / name / "computed.safetensors")
    shape = config_from_hf(weights.config)
    graph, state = nnx.split(restore(of_shape(shape).model(shape, rngs=nnx.Rngs(0)), weights))
    tokens, segments = (jnp.asarray(recorded.pop(key)) for key in ("tokens", "segments"))
    cotangent, seen = recorded.pop("cotangent"), (segments > 0)[..., None]

    @jax.jit
    def run(state):
        model = nnx.merge(graph, state)
        states, _ = model.hidden_states(tokens, segments=segments)
        output = model.logits(states[-1]) * seen
        states = [*states[:-1], model.norm(states[-1])]
        return (output * cotangent).sum(), {f"hidden_{i}": x * seen for i, x in enumerate(states)} | {"output": output}

    gradients, found = jax.grad(run, has_aux=True)(state)
    found["gradient"] = gradients["embed"]["word"]["embedding"][...]
    assert found.keys() == recorded.keys()
    for key, expected in recorded.items():
        assert found[key].shape == expected.shape
        tolerance = (3e-5 if key == "gradient" else 1e-5) * np.abs(expected).max()
        np.testing.assert_allclose(found[key], expected, atol=tolerance, err_msg=key)


def test_the_recorded_values_are_not_trivial():
    for name in ("vit", "clip", "bert", "roberta", "distilbert", "dinov2", "llama", "gemma3", "gpt2"):
        for key, array in load_file(GOLDEN / name / "model.safetensors").items():
            assert np.abs(array).min() > 0 and array.std() > 0.01, (name, key)


def test_the_files_stay_small():
    assert sum(file.stat().st_size for file in GOLDEN.rglob("*") if file.is_file()) < 250_000
