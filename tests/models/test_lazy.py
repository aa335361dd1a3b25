"""Arrays that wait in their files: nothing is read before it is asked for, and a model is filled one by one."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from surm import config as configs
from surm.errors import InputError
from surm.models import lazy
from surm.models.convert import outline, restore
from surm.models.decoder import Decoder
from surm.models.dinov2_files import TABLE
from surm.models.hf_config import config_from_hf
from surm.models.weights import Weights, open_weights
from surm.ops import packed
from surm.peft import base_dtype
from surm.training import preparation
from tests.models.test_convert import _model, _parameters, _same, _weights

TINY = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "tie_word_embeddings": True,
}  # fmt: skip


def llama_arrays(config: dict, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face's names."""
    rng, width, wide = np.random.default_rng(0), config["hidden_size"], config["intermediate_size"]
    narrow = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    for block in range(config["num_hidden_layers"]):
        parts = {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (narrow, width),
            "self_attn.v_proj": (narrow, width), "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (wide, width), "mlp.up_proj": (wide, width), "mlp.down_proj": (width, wide),
            "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }  # fmt: skip
        shapes |= {f"model.layers.{block}.{part}.weight": shape for part, shape in parts.items()}
    return {key: rng.normal(size=shape).astype(np.float32).astype(dtype) for key, shape in shapes.items()}


def sharded(folder: pathlib.Path, config: dict, dtype: np.dtype, shards: int) -> pathlib.Path:
    """A folder of a decoder with random weights in several files."""
    arrays = llama_arrays(config, dtype)
    names = {key: f"model-{place % shards + 1}.safetensors" for place, key in enumerate(arrays)}
    for name in {*names.values()}:
        save_file({key: arrays[key] for key in arrays if names[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_array_is_read_when_it_is_asked_for_and_once_for_each_time():
    asked = []
    stored = lazy.Stored((2, 3), np.dtype(np.float32), lambda: asked.append(1) or np.ones((2, 3), np.float32))
    arrays = lazy.Arrays({"a": stored.then(np.transpose)}) | {"b": np.zeros(2)}
    assert arrays.stored["a"].shape == (3, 2) and arrays.keys() == {"a", "b"} and "a" in arrays and len(arrays) == 2
    assert arrays.stored["a"].nbytes == 24 and not asked
    assert arrays["a"].shape == (3, 2) and len(asked) == 1 and {**arrays}["a"].shape == (3, 2) and len(asked) == 2


def test_nothing_is_read_before_a_model_is_filled(tmp_path):
    """The files are emptied behind the header: opening and checking still work, filling says what is wrong."""
    folder = sharded(tmp_path, TINY, np.float32, 2)
    opened = open_weights(str(folder))
    model = outline(lambda: Decoder(config_from_hf(opened.config), rngs=nnx.Rngs(0)))
    assert restore(model, opened).embed.word.embedding.shape == (40, 16)
    file = folder / "model-1.safetensors"
    file.write_bytes(file.read_bytes()[:-3000])
    assert opened.arrays.stored["model.norm.weight"].shape == (16,)
    with pytest.raises(InputError, match=r"model-1\.safetensors' ends at byte .*, expected .* from .* on"):
        restore(model, opened)
    file.unlink()
    with pytest.raises(InputError, match=r"model-1\.safetensors' cannot be read any more"):
        restore(model, opened)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_an_outline_is_filled_as_a_model_with_arrays_is(tmp_path, dtype):
    opened = open_weights(str(sharded(tmp_path, TINY, jnp.bfloat16, 3)))
    config = config_from_hf(opened.config)
    assert opened.arrays["model.norm.weight"].dtype == jnp.bfloat16
    empty = outline(lambda: Decoder(config, rngs=nnx.Rngs(0)), dtype)
    filled = restore(empty, opened)
    assert isinstance(empty.embed.word.embedding.get_raw_value(), jax.ShapeDtypeStruct)
    expected = _parameters(restore(Decoder(config, rngs=nnx.Rngs(0)), opened))
    found = _parameters(filled)
    assert {array.dtype for array in found.values()} == {np.dtype(dtype or np.float32)}
    _same({path: array.astype(np.float32) for path, array in found.items()}, expected)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(filled)))


@pytest.mark.parametrize("form", ["bfloat16", "int8", "int4"])
def test_an_outline_of_packed_matrices_is_filled_with_packed_matrices(tmp_path, form):
    if form != "bfloat16":
        pytest.importorskip("qwix")
    opened = open_weights(str(sharded(tmp_path, TINY | {"vocab_size": 300}, np.float32, 1)))
    make = lambda: Decoder(config_from_hf(opened.config), rngs=nnx.Rngs(0))  # noqa: E731
    empty = outline(lambda: base_dtype.with_base_dtype(make(), form))
    found = restore(empty, opened, put=base_dtype.put(empty))
    expected = base_dtype.with_base_dtype(restore(make(), opened), form)
    assert jax.tree.structure(nnx.split(found)[1]) == jax.tree.structure(nnx.split(expected)[1])
    for one, other in zip(*(jax.tree.leaves(nnx.state(model)) for model in (found, expected)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_an_output_of_its_own_in_the_file_of_a_tied_model_is_packed_too(tmp_path):
    pytest.importorskip("qwix")
    place = sharded(tmp_path, TINY | {"vocab_size": 300}, np.float32, 1)
    own = np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32)
    file = place / "model-1.safetensors"
    save_file(load_file(file) | {"lm_head.weight": own}, file)
    asked = configs.default()
    asked.model.weights, asked.model.base_dtype = str(place), "int4"
    model = preparation.base_model(asked, open_weights(str(place)), "language", None)
    expected = packed.pack(jnp.asarray(own.T), "int4", -2)
    jax.tree.map(np.testing.assert_array_equal, model.lm_head.kernel.get_value(), expected)
    assert not model.config.tied and model(jnp.array([[1, 2]])).shape == (1, 2, 300)


def test_each_part_of_a_joint_array_is_read_apart():
    joint = {
        "dinov2.embeddings.register_tokens": np.ones((1, 2, 4)),
        "encoder.layer.0.mlp.weights_in.weight": np.arange(24.0).reshape(6, 4),
    }
    from surm.models.convert import _apart

    found = _apart(TABLE, lazy.of(joint))
    assert {key: stored.shape for key, stored in found.stored.items()}["encoder.layer.0.mlp.up_proj.weight"] == (3, 4)
    np.testing.assert_array_equal(found["encoder.layer.0.mlp.up_proj.weight"], np.arange(12.0, 24).reshape(3, 4))


def test_what_a_variable_holds_is_made_by_the_caller():
    seen = []

    def put(path, array, dtype):
        seen.append((path, array.nbytes))
        return jnp.asarray(array, dtype) * 2

    model = _model()
    doubled, plain = _parameters(restore(model, _weights(), put=put)), _parameters(restore(model, _weights()))
    sizes = [size for _, size in seen]
    assert sizes == sorted(sizes, reverse=True) and {path for path, _ in seen} == doubled.keys() - {
        "head.kernel",
        "head.bias",
    }
    _same({path: plain[path] * 2 for path, _ in seen}, {path: doubled[path] for path, _ in seen})


def test_weights_of_a_dict_are_as_good_as_those_of_a_file():
    weights = _weights()
    held = Weights("own", dict(weights.arrays), weights.mean, weights.std, weights.config)
    _same(_parameters(restore(_model(), held, head=True)), _parameters(restore(_model(), weights, head=True)))


_PEAK = """
import re, sys
import jax, jax.numpy as jnp
from flax import nnx
from surm.models.convert import outline, restore
from surm.models.decoder import Decoder
from surm.models.hf_config import config_from_hf
from surm.models.weights import open_weights
def load(folder):
    opened = open_weights(folder)
    return restore(outline(lambda: Decoder(config_from_hf(opened.config), rngs=nnx.Rngs(0)), jnp.bfloat16), opened)
def kilobytes(what):
    return int(re.search(what + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
load(sys.argv[1])
before = kilobytes("VmRSS")
model = load(sys.argv[2])
own = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
print((kilobytes("VmHWM") - before) * 1024 / own, own)
"""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="reads the peak as Linux tells it")
def test_loading_takes_little_more_memory_than_the_model(tmp_path):
    """Peak of a process above one that has loaded a small model, over the size of the model: at most 1.3."""
    large = TINY | {
        "vocab_size": 8000, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_key_value_heads": 4, "intermediate_size": 2048,
    }  # fmt: skip
    folders = []
    for name, config in (("small", TINY), ("large", large)):
        (tmp_path / name).mkdir()
        folders.append(str(sharded(tmp_path / name, config, jnp.bfloat16, 3)))
    done = subprocess.run([sys.executable, "-c", _PEAK, *folders], capture_output=True, text=True, check=True)
    ratio, own = map(float, done.stdout.split()[-2:])
    assert own > 1.5e8 and ratio <= 1.3, (ratio, own)
