"""The models of tests/models/golden as ours, and adapters on them."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import surm
from surm.exchange.names import kind_of
from surm.models import bert, vit
from surm.models.convert import restore
from surm.models.hf_config import config_from_hf
from surm.models.weights import open_weights
from surm.peft import surgery

BASES = pathlib.Path(__file__).parent.parent / "models" / "golden"
GOLDEN = pathlib.Path(__file__).parent / "golden"
OUTPUTS = {"vit": 7, "bert": 5, "roberta": 5}


@functools.cache
def base(kind: str) -> nnx.Module:
    """A model of tests/models/golden, head and all."""
    weights = open_weights(str(BASES / kind))
    shape = config_from_hf(weights.config)
    build = vit.ViT if kind == "vit" else bert.Bert
    empty = nnx.eval_shape(lambda: build(shape, OUTPUTS[kind], rngs=nnx.Rngs(0)))  # all of it comes from the file
    return restore(empty, weights, head=True)


def reshaped(kind: str, /, **changes) -> nnx.Module:
    """The model as if its config were another; what it holds stays."""
    model = nnx.clone(base(kind))
    model.config = dataclasses.replace(model.config, **changes)
    return model


def adapted(kind: str = "vit", **spec) -> nnx.Module:
    """The model with an adapter that does something."""
    spec = {"train": "head", **({"options": "rank=3"} if spec.get("family") == "low_rank" else {}), **spec}
    return noisy(surm.attach(base(kind), surm.PeftSpec(**spec), nnx.Rngs(1)))


def noisy(model: nnx.Module) -> nnx.Module:
    """The model with noise on all that trains; NumPy's, as JAX compiles a program for every shape of its own."""
    graphdef, trained, frozen = surgery.split(model)
    noise = np.random.default_rng(5)
    moved = {place: np.asarray(trained[place]) + 0.3 * noise.normal(size=trained[place].shape).astype(np.float32)
             for place in sorted(trained)}  # fmt: skip
    return surgery.join(graphdef, {place: jnp.asarray(array) for place, array in moved.items()}, frozen)


@functools.cache
def inputs(kind: str) -> jax.Array:
    """What the golden adapters were given, in our layout."""
    computed = load_file(GOLDEN / "computed.safetensors")
    if kind == "vit":
        return jnp.asarray(computed["vit.pixel_values"].transpose(0, 2, 3, 1))
    return jnp.asarray(computed[f"{kind}.input_ids"].astype(np.int32))


def answer(model: nnx.Module) -> np.ndarray:
    """The logits of a model of ours for those inputs, its update merged: so there is one program for all adapters."""
    graph, state = nnx.split(surgery.detach(surgery.merge(model)))
    return np.asarray(_answer(graph, state, inputs(kind_of(model))))


@functools.partial(jax.jit, static_argnums=0)
def _answer(graph, state, x):
    return nnx.merge(graph, state)(x)


def change(folder: pathlib.Path, **fields) -> None:
    """Changes fields of an adapter's config."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of an adapter."""
    return load_file(folder / "adapter_model.safetensors")


def put(folder: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the tensors of an adapter."""
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, folder / "adapter_model.safetensors")


def one_line(error: pytest.ExceptionInfo) -> str:
    """The message of an error, which is to be one line."""
    assert "\n" not in str(error.value)
    return str(error.value)
