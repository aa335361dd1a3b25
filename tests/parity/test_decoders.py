"""Decoders against transformers, in float32, from random weights as save_pretrained writes them.

A new kind is a line of `CASES` for each form that it has. Hidden states and logits are compared for whole rows, for
rows that are padded at their left, for packed rows, and token by token through the cache.
"""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from surm.exchange import names
from surm.models import catalogue, convert, decoder, decoder_files, hf_config, weights
from tests.parity import torch_models

TOLERANCE = 1e-5  # of the largest entry
LENGTH = 12  # tokens of a row, longer than every window and than the original context of `longrope`
PADDED = (0, 3, 7)  # tokens of padding in front of each row
PACKED = (4, 3, 5)  # tokens of each text in a row


class Case(NamedTuple):
    """One form of a kind; the arguments of `torch_models.decoder`."""

    word: str
    options: dict[str, Any]
    name: str = ""


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16, "rope_theta": 500.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 100.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [2.0, 3.0, 5.0, 7.0],
        "rope_theta": 100.0}  # fmt: skip
MANY = {"num_hidden_layers": 4, "head_dim": 12, "sliding_window": 4}
CASES = {
    "llama": Case("Llama", {}),
    "llama_biases": Case(
        "Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "tie_word_embeddings": True}
    ),
    "llama_3": Case("Llama", {"rope_parameters": LLAMA3}),
    "llama_linear": Case("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "llama_yarn": Case("Llama", {"rope_parameters": YARN}),
    "llama_yarn_scaled": Case(
        "Llama", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False}}
    ),
    "llama_dynamic": Case(
        "Llama", {"max_position_embeddings": 8, "rope_parameters": {"rope_type": "dynamic", "factor": 3.0}}
    ),
    "mistral": Case("Mistral", {"sliding_window": 4, "head_dim": 12}),
    "mistral_whole": Case("Mistral", {"sliding_window": None}),
    "qwen2": Case("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_windows": Case(
        "Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    ),
    "qwen3": Case("Qwen3", {"head_dim": 12}),
    "qwen3_biases": Case("Qwen3", {"head_dim": 12, "attention_bias": True, "hidden_act": "gelu"}),
    "gemma": Case("Gemma", {"head_dim": 12}),
    "gemma_untied": Case(
        "Gemma", {"head_dim": 12, "tie_word_embeddings": False, "num_key_value_heads": 1, "hidden_act": "gelu"}
    ),
    "gemma2": Case("Gemma2", {**MANY, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0,
                              "final_logit_softcapping": 3.0}),
    "gemma2_uncapped": Case("Gemma2", {**MANY, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": Case("Gemma3Text", {
        **MANY, "sliding_window_pattern": 3, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 20,
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 900.0},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}},
    }, "Gemma3ForCausalLM"),
    "smollm3": Case("SmolLM3", {"num_hidden_layers": 4}),
    "smollm3_windows": Case("SmolLM3", {
        "no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 4, "attention_bias": True
    }),
    "phi3": Case("Phi3", {"sliding_window": 4}),
    "phi3_partial": Case("Phi3", {
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
    }),
    "phi3_short": Case("Phi3", {"original_max_position_embeddings": 16, "rope_parameters": LONG}),
    "phi3_long": Case("Phi3", {"original_max_position_embeddings": 8, "rope_parameters": LONG}),
    "gpt2": Case("GPT2", {"vocab_size": 60, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 16},
                 "GPT2LMHeadModel"),
    "gpt2_other": Case("GPT2", {
        "vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "n_inner": 40,
        "scale_attn_weights": False, "activation_function": "relu", "tie_word_embeddings": False,
    }, "GPT2LMHeadModel"),
}  # fmt: skip
STATEFUL = ("llama_dynamic", "phi3_long")  # the rotation of earlier tokens depends on the length of the call


class Pair:
    """The same model as transformers has it and as we have it, with rows of tokens."""

    def __init__(self, case: Case, folder):
        self.theirs, self.folder = torch_models.decoder(case.word, case.name, **case.options), folder
        self.theirs.save_pretrained(folder)
        self.ours = read(folder)
        self.tokens = np.random.default_rng(1).integers(3, 60, (3, LENGTH)).astype(np.int32)
        graph, self.state = nnx.split(self.ours)

        @jax.jit
        def run(state, tokens, segments):
            model = nnx.merge(graph, state)
            states, _ = model.hidden_states(tokens, segments=segments)
            return [*states[:-1], model.norm(states[-1])], model(tokens, segments=segments)

        self.run = run

    def compared(self, segments: np.ndarray, expected: list[np.ndarray]) -> None:
        """Compares hidden states and logits with those expected, where there is no padding."""
        states, logits = self.run(self.state, jnp.asarray(self.tokens), jnp.asarray(segments))
        mask = (segments > 0)[..., None]
        errors = [error(one * mask, other * mask) for one, other in zip([*states, logits], expected, strict=True)]
        print(errors)  # pytest -rP
        assert max(errors) < TOLERANCE

    def expected(self, tokens: np.ndarray, **given: Any) -> list[np.ndarray]:
        """Hidden states and logits of transformers; the last state is the one after the last norm."""
        with torch.no_grad():
            said = self.theirs(torch.tensor(tokens).long(), output_hidden_states=True, use_cache=False, **given)
        return [state.numpy() for state in (*said.hidden_states, said.logits)]


def read(folder) -> decoder.Decoder:
    opened = weights.open_weights(str(folder))
    shape = hf_config.config_from_hf(opened.config)
    return convert.restore(decoder.Decoder(shape, rngs=nnx.Rngs(0)), opened)


def error(ours, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@pytest.fixture(scope="session", params=CASES)
def pair(request, tmp_path_factory) -> Pair:
    found = Pair(CASES[request.param], tmp_path_factory.mktemp(request.param))
    found.name = request.param
    return found


def test_whole_rows_agree(pair):
    pair.compared(np.ones((3, LENGTH), np.int32), pair.expected(pair.tokens))


def test_rows_that_are_padded_at_their_left_agree(pair):
    mask = (np.arange(LENGTH) >= np.array(PADDED)[:, None]).astype(np.int32)
    places = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
    expected = pair.expected(pair.tokens, attention_mask=torch.tensor(mask), position_ids=places)
    pair.compared(mask, expected)


def test_packed_texts_agree_with_each_alone(pair):
    if pair.name in STATEFUL:
        pytest.skip("the rotation depends on the longest text of a call")
    segments = np.broadcast_to(np.repeat([1, 2, 3], PACKED), pair.tokens.shape).astype(np.int32)
    parts = np.split(pair.tokens, np.cumsum(PACKED)[:-1], axis=1)
    alone = [pair.expected(np.ascontiguousarray(part)) for part in parts]
    pair.compared(segments, [np.concatenate(states, axis=1) for states in zip(*alone, strict=True)])


@pytest.mark.parametrize("first", [1, 5], ids=["token_by_token", "after_a_prefill"])
def test_the_cache_gives_what_whole_rows_give(pair, first):
    if pair.name in STATEFUL:
        pytest.skip("the rotation depends on the length of a call")
    mask = (np.arange(LENGTH) >= np.array(PADDED)[:, None]).astype(np.int32)
    places = np.maximum(mask.cumsum(1) - 1, 0)
    expected = pair.expected(pair.tokens, attention_mask=torch.tensor(mask), position_ids=torch.tensor(places))[-1]
    graph, _ = nnx.split(pair.ours)

    @jax.jit
    def step(state, cache, tokens, positions, segments):
        return nnx.merge(graph, state)(tokens, positions=positions, segments=segments, cache=cache)

    cache, found = pair.ours.empty_cache(3, LENGTH + 3), []
    for start, end in [(0, first), *((place, place + 1) for place in range(first, LENGTH))]:
        logits, cache = step(pair.state, cache, *(array[:, start:end] for array in (pair.tokens, places, mask)))
        found.append(logits)
    assert error(jnp.concatenate(found, axis=1) * mask[..., None], expected * mask[..., None]) < TOLERANCE


def test_what_we_write_is_opened_by_transformers_with_the_same_function(pair, tmp_path):
    one, naming = catalogue.of(pair.ours), names.naming_of_files(pair.ours)
    kind = one.kind_of(pair.ours.config)
    arrays = {naming.theirs(path): naming.their_array(path, array, pair.ours.config)
              for path, array in names.parameters(pair.ours).items()}  # fmt: skip
    written = {key: np.ascontiguousarray(array) for key, array in naming.table.together(arrays).items()}
    save_file(written, tmp_path / "model.safetensors", {"format": "pt"})
    held = load_file(pair.folder / "model.safetensors")
    assert written.keys() == held.keys()
    for key, array in held.items():
        np.testing.assert_array_equal(written[key], array, err_msg=key)
    config = {"model_type": kind, "architectures": [one.classes[kind]["language"]]} | one.to_hf(pair.ours.config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(loaded) is type(pair.theirs)
    with torch.no_grad():
        found = loaded(torch.tensor(pair.tokens).long()).logits.numpy()
    assert error(found, pair.expected(pair.tokens)[-1]) < TOLERANCE


@pytest.mark.parametrize("held", ["another_output", "output_alone"])
def test_a_file_whose_output_is_not_as_the_config_says_is_read_as_transformers_does(held, tmp_path):
    pair = Pair(CASES["llama_biases"], tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    words = arrays["model.embed_tokens.weight"]
    if held == "output_alone":
        arrays["lm_head.weight"] = arrays.pop("model.embed_tokens.weight")
    else:
        arrays["lm_head.weight"] = np.ascontiguousarray(words[::-1])
    save_file(arrays, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = loaded(torch.tensor(pair.tokens).long()).logits.numpy()
    ours = read(tmp_path)
    assert ours.config.tied == (held == "output_alone")
    assert error(ours(jnp.asarray(pair.tokens)), expected) < TOLERANCE


def test_every_kind_is_compared():
    compared = {getattr(transformers, f"{case.word}Config").model_type for case in CASES.values()}
    assert compared | {"internlm2"} == decoder_files.KINDS.keys()  # transformers has no InternLM 2


@pytest.mark.parametrize("kind", sorted(decoder_files.KINDS.keys() - {"internlm2"}))
def test_what_a_config_leaves_out_is_transformers_default(kind):
    theirs = transformers.AutoConfig.for_model(kind).to_dict()
    shape = hf_config.config_from_hf({"model_type": kind})
    assert shape == hf_config.config_from_hf(theirs)
    stated = decoder_files.KINDS[kind].defaults
    same = {key: value for key, value in stated.items() if None not in (value, theirs.get(key))}
    assert same == {key: theirs[key] for key in same}
