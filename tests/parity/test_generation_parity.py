"""Our generation against transformers': the choice of a token from logits, and greedy texts of a random Llama."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from transformers.generation import logits_process as theirs

from surm.models import convert, hf_config, sampling
from surm.models.decoder import Decoder
from surm.models.generation import generate
from surm.models.sampling import Sampling
from surm.models.weights import open_weights

PROMPTS = [[5, 9, 31], [7], [*range(1, 19)], [60, 2]]
PAD = 99


@pytest.fixture(scope="module")
def logits() -> jax.Array:
    """Random ones of 200 tokens, rounded so that many are equal."""
    return jnp.asarray(np.round(np.random.default_rng(0).normal(0, 3, (16, 200)), 1), jnp.float32)


def processed(processor, logits: jax.Array, tokens: np.ndarray | None = None) -> np.ndarray:
    tokens = torch.zeros((len(logits), 0), dtype=torch.long) if tokens is None else torch.from_numpy(tokens)
    return processor(tokens, torch.from_numpy(np.array(logits))).numpy()


@pytest.mark.parametrize("k", [1, 7, 50, 200])
def test_top_k(logits, k):
    np.testing.assert_array_equal(sampling.limited_to_k(logits, k), processed(theirs.TopKLogitsWarper(k), logits))


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.999])
def test_top_p(logits, p):
    """Sorting does not say which of equal logits is first; how many are kept and their values are the same."""
    ours, other = np.asarray(sampling.limited_to_p(logits, p)), processed(theirs.TopPLogitsWarper(p), logits)
    np.testing.assert_array_equal(np.sort(ours), np.sort(other))
    unequal = logits + np.linspace(0, 0.05, 200, dtype=np.float32)
    np.testing.assert_array_equal(sampling.limited_to_p(unequal, p), processed(theirs.TopPLogitsWarper(p), unequal))


def test_repetition_penalty(logits):
    tokens = np.random.default_rng(1).integers(0, 200, (16, 30))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    expected = processed(theirs.RepetitionPenaltyLogitsProcessor(1.3), logits, tokens)
    np.testing.assert_allclose(sampling.penalised(logits, jnp.asarray(seen), 1.3), expected, rtol=1e-6)


def test_all_of_them_in_their_order(logits):
    tokens = np.random.default_rng(1).integers(0, 200, (16, 30))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    order = transformers.LogitsProcessorList([theirs.RepetitionPenaltyLogitsProcessor(1.3),
                                              theirs.TemperatureLogitsWarper(0.7),
                                              theirs.TopKLogitsWarper(20), theirs.TopPLogitsWarper(0.8)])  # fmt: skip
    kept = np.isfinite(processed(order, logits, tokens))
    numbers = Sampling(temperature=0.7, top_p=0.8, repetition_penalty=1.3).numbers
    draw = jax.jit(
        jax.vmap(
            lambda key: sampling.choose(
                logits, numbers, top_k=20, seen=jnp.asarray(seen), keys=jax.random.split(key, 16)
            )
        )
    )
    drawn = np.zeros(logits.shape, bool)
    np.put_along_axis(drawn, np.asarray(draw(jax.random.split(jax.random.key(0), 4000))).T, True, axis=1)
    np.testing.assert_array_equal(drawn, kept)


@pytest.fixture(scope="module")
def llama() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, initializer_range=0.4, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=PAD, pad_token_id=PAD,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def ours(llama, tmp_path_factory) -> Decoder:
    folder = tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    weights = open_weights(str(folder))
    return convert.restore(Decoder(hf_config.config_from_hf(weights.config), rngs=nnx.Rngs(0)), weights)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_texts_of_prompts_that_are_padded_at_their_left(llama, ours, penalty):
    length = max(map(len, PROMPTS))
    tokens = torch.tensor([[PAD] * (length - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    options = {"max_new_tokens": 24, "do_sample": False, "repetition_penalty": penalty}
    found = llama.generate(tokens, attention_mask=mask, **options)[:, length:].tolist()
    expected = [text[: text.index(PAD)] if PAD in text else text for text in found]
    assert len({*map(tuple, expected)}) == len(PROMPTS)
    settings = Sampling(repetition_penalty=penalty)
    assert generate(ours, PROMPTS, max_new_tokens=24, sampling=settings, ends=[PAD]) == expected
