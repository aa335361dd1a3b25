"""Targets and trained modules of a decoder whose output is tied to its words, or that has no biases."""

import dataclasses
import logging

import pytest
from flax import nnx

import surm
from surm import InputError, PeftSpec
from surm.models.decoder import Decoder, DecoderConfig
from surm.peft import surgery

TINY = DecoderConfig(31, 12, 1, 4, 2, 4, 20, tied=True)


@pytest.fixture(scope="module")
def tied() -> Decoder:
    return Decoder(TINY, rngs=nnx.Rngs(0))


def trained(model: nnx.Module, **spec) -> list[str]:
    return sorted(surgery.split(surm.attach(model, PeftSpec(**spec), nnx.Rngs(1)))[1])


@pytest.mark.parametrize(
    "spec",
    [
        {"train": "lm_head"},
        {"train": ("embed", "lm_head")},
        {"targets": (".*query", "lm_head")},
        {"rules": {"lm_head": {"scale": 2.0}}},
        {"method": "full", "targets": r"lm_head\.kernel"},
    ],
    ids=["train", "trains", "targets", "rules", "full"],
)
def test_a_tied_output_is_named_by_its_words(tied, spec):
    with pytest.raises(InputError, match=r"matches lm_head.*lacks: its output is tied to embed\.word"):
        surm.attach(tied, PeftSpec(**spec), nnx.Rngs(1))


def test_words_that_train_as_the_output_too_are_reported(tied, caplog):
    with caplog.at_level(logging.INFO, "surm"):
        assert trained(tied, method="head", train="embed|lm_head") == ["embed.word.embedding"]
    assert "embed.word.embedding trains as the table of the words and, because it is tied" in caplog.text


def test_an_output_of_its_own_is_a_target_or_trains_as_a_whole(caplog):
    model = Decoder(dataclasses.replace(TINY, tied=False), rngs=nnx.Rngs(0))
    with caplog.at_level(logging.INFO, "surm"):
        assert trained(model, method="head", train="embed|lm_head") == ["embed.word.embedding", "lm_head.kernel"]
    assert not caplog.text
    assert {path.split(".")[0] for path in trained(model, targets="lm_head")} == {"lm_head"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"targets": "embed.word"}, r"nnx\.Embed that holds .*; train='embed\.word' trains it as a whole"),
        ({"method": "bitfit"}, "method='bitfit' trains biases, but the model has none"),
        ({"targets": "q_proj"}, r"Hugging Face's q_proj is '\.\*query' here"),
        ({"targets": "o_proj"}, r"Hugging Face's o_proj is '\.\*attention"),
        ({"train": "embed_tokens"}, r"Hugging Face's embed_tokens is 'embed\.word' here"),
    ],
)
def test_what_has_another_name_or_is_no_map_is_refused(tied, spec, message):
    with pytest.raises(InputError, match=message):
        surm.attach(tied, PeftSpec(**spec), nnx.Rngs(1))


def test_the_norms_of_a_hadamard_adapter_are_those_behind_attention(tied):
    behind = Decoder(dataclasses.replace(TINY, branch_norms=True), rngs=nnx.Rngs(0))
    assert "blocks.0.norm2.scale" in trained(tied, method="hadamard_adapter")
    found = trained(behind, method="hadamard_adapter")
    assert "blocks.0.attention_norm.scale" in found and "blocks.0.norm2.scale" not in found
