"""Of 111 adapter configs from public repositories: how many are followed, on bases that are known by name."""

import collections
import contextlib
import json
import pathlib
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from safetensors.numpy import save_file

import surm
from surm import InputError
from surm.exchange import names, peft_import
from surm.exchange.peft_files import ROOT, module_of
from surm.models import decoder
from surm.models.decoder_shape import Layer
from surm.models.rotary import Rotary
from surm.peft import select

PUBLIC = pathlib.Path(__file__).parents[3] / "shared" / "adapter_configs"
pytestmark = pytest.mark.skipif(not PUBLIC.is_dir(), reason=f"the public configs are not at {PUBLIC}")

CLASSES = {
    "Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama", "RobertaModel": "roberta",
    "ViTForImageClassification": "vit",
}  # fmt: skip
NAMES = {
    r"whisper|t5|nllb|clip|-vl-|vlm|llava|gemma-4|granite|esm2": None,  # other models, some named after a known one
    r"vikhr-3|qwen-?3": "qwen3", "qwen-?2": "qwen2", r"gemma-3-(270m|1b)": "gemma3_text", "gemma-2-": "gemma2",
    r"gemma-(2|7)b": "gemma", "phi-?(3|4-mini)": "phi3", "mistral": "mistral", "llam": "llama", "gpt2|dialogpt": "gpt2",
    "bge-reranker-v2-m3": "xlm-roberta", "roberta|codebert": "roberta", "distilbert": "distilbert", "bert": "bert",
    "vit-": "vit",
}  # fmt: skip
"""The `model_type` of a base by a pattern in its name; the first that matches counts."""

_WIDE = {"vocabulary": 60, "width": 32, "depth": 2, "heads": 4, "mlp_width": 48, "positions": 16, "head_size": 8}
_GEMMA = {"key_value_heads": 2, "activation": "gelu_tanh", "norm_offset": 1.0, "scaled_words": True, "tied": True}
SHAPES = {
    **dict.fromkeys(("llama", "mistral", "phi3"), {"key_value_heads": 2}),
    "qwen2": {"key_value_heads": 2, "biases": ("query", "key", "value")},
    "qwen3": {"key_value_heads": 2, "head_norms": True},
    "gemma": _GEMMA,
    "gemma2": _GEMMA | {"branch_norms": True, "score_size": 8},
    "gemma3_text": _GEMMA | {"branch_norms": True, "score_size": 8, "head_norms": True},
    "gpt2": {"key_value_heads": 4, "layers": (Layer(rotary=None),), "activation": "gelu_tanh", "gated": False,
             "biases": ("query", "key", "value", "output", "up", "down"), "centred": True, "learned_positions": True},
}  # fmt: skip


def kind_of(config: dict) -> str | None:
    """The `model_type` of an adapter's base, as far as its config says."""
    stated = (config.get("auto_mapping") or {}).get("base_model_class")
    if stated is not None:
        return CLASSES.get(stated)
    name = (config.get("base_model_name_or_path") or "").lower()
    return next((kind for pattern, kind in NAMES.items() if re.search(pattern, name)), None)


def config_of(file: pathlib.Path) -> dict:
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError:
        return {}


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> dict[str, tuple[dict, str | None]]:
    """The configs that are followed, each with its kind of base."""
    folder, found = tmp_path_factory.mktemp("public"), {}
    for file in sorted(PUBLIC.glob("*.json")):
        shutil.copy(file, folder / "adapter_config.json")
        with contextlib.suppress(InputError):
            found[file.stem] = (peft_import._read_config(epath.Path(folder)), kind_of(config_of(file)))
    return found


def test_fifty_seven_of_a_hundred_are_followed_and_have_a_base_that_is_known(followed):
    drawn = {name: kind for name, (_, kind) in followed.items() if name <= "100"}  # later ones are of a benchmark
    kinds = collections.Counter(kind for kind in drawn.values() if kind)
    assert (len(followed), len(drawn)) == (101, 95)
    assert kinds == {
        "llama": 17, "qwen2": 15, "qwen3": 5, "gpt2": 3, "mistral": 3, "gemma2": 2, "gemma": 1, "gemma3_text": 1,
        "bert": 3, "distilbert": 2, "roberta": 2, "vit": 2, "xlm-roberta": 1,
    }  # fmt: skip
    assert sum(kinds.values()) == 57


@pytest.fixture(scope="module")
def bases():
    def made(kind):
        shape = decoder.DecoderConfig(**{"layers": (Layer(rotary=Rotary(10000.0)),)} | _WIDE | SHAPES[kind], kind=kind)
        return decoder.Decoder(shape, rngs=nnx.Rngs(0))

    return {kind: made(kind) for kind in SHAPES}


@pytest.mark.slow
def test_adapters_of_these_configs_are_read_on_small_models(followed, bases, tmp_path):
    """The tensors have the names and ranks that the config asks for, and random values."""
    seen = set()
    for name, (config, kind) in followed.items():
        form = (kind, len(config["target_modules"] or []))
        if kind not in bases or form in seen:
            continue
        seen.add(form)
        base, naming = bases[kind], names.namings_of(bases[kind])["transformers5"]
        arrays, rank = {}, config["r"]
        for path, place in select.linear_layers(base).items():
            module, parts = module_of(naming.theirs(f"{path}.kernel")), naming.apart(naming.joined(path))
            if module.rpartition(".")[2] in config["target_modules"] or module in config["target_modules"]:
                linear = select.linear_layers(base)
                outputs = sum(select.get(base, linear[part]).kernel.shape[1] for part in parts)
                n_in = select.get(base, place).kernel.shape[0]
                arrays[f"{ROOT}{module}.lora_A.weight"] = np.ones((rank, n_in), np.float32)
                arrays[f"{ROOT}{module}.lora_B.weight"] = np.ones((outputs, rank), np.float32)
        shutil.copy(PUBLIC / f"{name}.json", tmp_path / "adapter_config.json")
        save_file(arrays, tmp_path / "adapter_model.safetensors")
        model = surm.import_peft(tmp_path, base)
        updates = surm.peft.surgery.layers_by_path(model)
        assert {module_of(naming.theirs(f"{path}.kernel")) for path in updates} == {
            key.removeprefix(ROOT).partition(".lora_")[0] for key in arrays
        }
        scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        assert all(jnp.allclose(layer.scale, scale) for layer in updates.values()), name
    assert len(seen) == 17
