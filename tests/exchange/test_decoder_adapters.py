"""Adapters of PEFT on decoders without PEFT: joint maps, tied outputs, packed bases, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import surm
from surm import InputError
from surm.exchange import export_merged, joint, lokr, peft_files
from surm.exchange.updates import Update
from surm.models import catalogue, decoder
from surm.models.decoder_shape import Layer
from surm.peft import surgery
from surm.peft.base_dtype import with_base_dtype
from tests.exchange.models import change, noisy, one_line, put, tensors

SIZES = {"vocabulary": 300, "width": 32, "depth": 2, "heads": 4, "mlp_width": 48, "positions": 16}
KINDS = {
    "llama": {"key_value_heads": 2, "head_size": 8, "tied": False, "kind": "llama"},
    "tied": {"key_value_heads": 2, "head_size": 8, "tied": True, "kind": "llama"},
    "phi3": {"key_value_heads": 2, "head_size": 8, "tied": False, "kind": "phi3"},
    "gpt2": {
        "key_value_heads": 4, "head_size": 8, "tied": True, "kind": "gpt2", "layers": (Layer(rotary=None),),
        "activation": "gelu_tanh", "biases": ("query", "key", "value", "output", "up", "down"), "gated": False,
        "centred": True, "learned_positions": True,
    },
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 300, (2, 5)).astype(np.int32)


@pytest.fixture(scope="module")
def bases():
    return {kind: decoder.Decoder(decoder.DecoderConfig(**SIZES | fields), rngs=nnx.Rngs(0))
            for kind, fields in KINDS.items()}  # fmt: skip


def adapted(base, **spec):
    spec = {"family": "low_rank", "options": "rank=2"} | spec
    return noisy(surm.attach(base, surm.PeftSpec(**spec), nnx.Rngs(1)))


def answer(model) -> np.ndarray:
    """The logits of a model, its update merged."""
    graph, state = nnx.split(surgery.detach(surgery.merge(model)))
    return np.asarray(_answer(graph, state))


_answer = jax.jit(lambda graph, state: nnx.merge(graph, state)(jnp.asarray(TOKENS)), static_argnums=0)


def config(folder) -> dict:
    return json.loads((folder / "adapter_config.json").read_text())


def test_parts_are_joined_and_split_exactly():
    random, sizes = np.random.default_rng(0), (8, 4, 4)
    parts = [None if size is None else Update("low_rank", {"rank": rank}, {
        "a": random.normal(size=(rank, 6)).astype(np.float32), "b": random.normal(size=(size, rank)).astype(np.float32),
    }, size, 6, scale) for size, rank, scale in ((8, 2, 0.5), (None, 1, 1.0), (4, 3, 2.0))]  # fmt: skip
    whole = joint.join("there", parts, sizes)
    dense = [np.zeros((4, 6)) if part is None else part.scale * part.params["b"] @ part.params["a"] for part in parts]
    np.testing.assert_allclose(whole.params["b"] @ whole.params["a"], np.concatenate(dense), rtol=1e-5)
    assert whole.scale == 1.0 and whole.options == {"rank": 5} and (whole.n_out, whole.n_in) == (16, 6)
    again = joint.split("there", whole, sizes)
    for part, expected in zip(again, dense, strict=True):
        np.testing.assert_allclose(part.params["b"] @ part.params["a"], expected, rtol=1e-5)
    back = joint.join("there", again, sizes)  # they share a, so the rank stays
    assert back.options == {"rank": 5} and np.array_equal(back.params["b"], whole.params["b"])


@pytest.mark.parametrize(
    "sizes", [((3, 4), (4, 5)), ((3, 4), (2, 5)), ((2, 3), (6, 4)), ((5, 6), (4, 1)), ((2, 2), (3, 2))]
)
def test_every_lokr_is_a_sum_of_kroneckers(sizes):
    w1, w2 = (np.random.default_rng(0).normal(size=size).astype(np.float32) for size in sizes)
    params = lokr._terms(w1, w2)
    dense = sum(np.kron(b, a) for a, b in zip(params["a"], params["b"], strict=True))
    np.testing.assert_array_equal(dense, np.kron(w1, w2))


@pytest.mark.parametrize("kind", ["phi3", "gpt2"])
def test_joint_maps_come_back_apart_and_keep_their_rank(kind, bases, tmp_path):
    model = adapted(bases[kind], targets=r".*\.attention\.(query|value)")
    surm.export_peft(tmp_path / "one", model)
    name = "qkv_proj" if kind == "phi3" else "c_attn"
    assert config(tmp_path / "one")["target_modules"] == [name] and config(tmp_path / "one")["r"] == 4
    assert config(tmp_path / "one")["fan_in_fan_out"] is (kind == "gpt2")
    again = surm.import_peft(tmp_path / "one", bases[kind])
    np.testing.assert_allclose(answer(again), answer(model), atol=1e-5)
    surm.export_peft(tmp_path / "other", again)
    for key, array in tensors(tmp_path / "one").items():
        np.testing.assert_array_equal(tensors(tmp_path / "other")[key], array)


def test_words_of_a_tied_output_go_under_both_names(bases, tmp_path):
    model = adapted(bases["tied"], targets=r".*\.query", train="embed")
    surm.export_peft(tmp_path, model)
    assert config(tmp_path)["modules_to_save"] == ["lm_head", "model.embed_tokens"]
    again = surm.import_peft(tmp_path, bases["tied"])
    assert again.config.tied and surm.count_parameters(again) == surm.count_parameters(model)
    held = tensors(tmp_path)
    put(tmp_path, held | {peft_files.ROOT + "lm_head.weight": 2 * held[peft_files.ROOT + "lm_head.weight"]})
    apart = surm.import_peft(tmp_path, bases["tied"])
    assert not apart.config.tied and bases["tied"].config.tied
    np.testing.assert_allclose(answer(apart), 2 * answer(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [pytest.param("int8", marks=pytest.mark.slow), "int4"])
def test_a_packed_base_goes_out_as_what_it_stands_for(form, bases, tmp_path):
    pytest.importorskip("qwix")
    model = adapted(with_base_dtype(bases["tied"], form), scale=0.3)
    export_merged(tmp_path / "merged", model)
    arrays = load_file(tmp_path / "merged" / "model.safetensors")
    merged = surgery.detach(surgery.merge(model))
    key = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_array_equal(arrays[key], np.asarray(merged.blocks[1].mlp.down.kernel[...]).T)
    np.testing.assert_array_equal(arrays["model.embed_tokens.weight"], np.asarray(merged.embed.word.embedding[...]))
    surm.export_peft(tmp_path / "peft", model)
    np.testing.assert_allclose(
        answer(surm.import_peft(tmp_path / "peft", surgery.detach(model))), answer(model), atol=1e-5
    )


ATTENTION = r".*\.attention\.(query|key|value)"
OUT = {
    "kronecker": ("gpt2", {"family": "kronecker", "options": ""}, "the kroneckers of its parts do not make one LoKr"),
    "c3a": ("gpt2", {"family": "c3a", "options": "block_size=8"}, "is a Conv1D in transformers, .* but no C3A; "),
    "c3a blocks": (
        "phi3",
        {"family": "c3a", "options": "block_size=8", "targets": ATTENTION, "rules": ".*key => block_size=4"},
        "with one block size",
    ),
    "magnitude": (
        "phi3", {"magnitude": True, "targets": r".*\.query"}, "only some of its parts have magnitude=True"
    ),
    "kernel": ("gpt2", {"targets": r".*\.query", "train": r".*\.0\.attention\.key"}, "trains and its layer has an"),
    "toeplitz": ("llama", {"family": "toeplitz", "options": ""}, "family 'toeplitz' cannot be written in PEFT's files"),
}  # fmt: skip


@pytest.mark.parametrize("case", OUT)
def test_what_peft_cannot_hold_is_not_written(case, bases, tmp_path):
    kind, spec, message = OUT[case]
    with pytest.raises(InputError, match=message) as error:
        surm.export_peft(tmp_path / "out", adapted(bases[kind], **spec))
    assert one_line(error) and not (tmp_path / "out").exists()


def test_a_head_that_is_tied_is_no_target(bases):
    with pytest.raises(InputError, match="its output is tied to embed.word") as error:
        adapted(bases["tied"], targets="lm_head")
    assert one_line(error)


def other(kind: str, **changes) -> nnx.Module:
    return decoder.Decoder(decoder.DecoderConfig(**SIZES | KINDS[kind] | changes), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: other("llama", depth=1), "adapts model.layers.1.*, but the last of the 1 blocks here is 0"),
        (lambda: other("llama", depth=3), r"no tensor of model.layers.2.*, which target_modules in .* names as"),
        (lambda: other("gpt2"), "which this gpt2 lacks; expected keys such as transformer.h.0.attn.c_attn.weight"),
        (lambda: other("phi3"), "holds model.*, which this phi3 lacks; expected .*self_attn.qkv_proj.weight"),
        (lambda: other("llama", mlp_width=64), "adapts model.layers.*of 48×32, but blocks.* of this model is 64×32"),
    ],
)
def test_an_adapter_of_another_model_is_refused(base, message, bases, tmp_path):
    surm.export_peft(tmp_path, adapted(bases["llama"], targets=r".*\.(query|gate|up)"))
    with pytest.raises(InputError, match=message) as error:
        surm.import_peft(tmp_path, base())
    assert one_line(error)


def test_other_adapters_of_words_and_maps_are_refused(bases, tmp_path):
    surm.export_peft(tmp_path, adapted(bases["llama"], targets=r".*\.query"))
    held = tensors(tmp_path)
    words = {peft_files.ROOT + "model.embed_tokens.lora_embedding_A": np.ones((2, 300), np.float32)}
    put(tmp_path, held | words)
    with pytest.raises(
        InputError, match="adapts model.embed_tokens, which is embed.word here; expected a linear layer"
    ):
        surm.import_peft(tmp_path, bases["llama"])
    put(tmp_path, held)
    change(tmp_path, target_modules=["q_proj", "wqkv"])
    assert surm.import_peft(tmp_path, bases["llama"])  # PEFT, too, passes over names that match nothing
    wqkv = {key.replace("self_attn.q_proj", "attention.wqkv"): array for key, array in held.items()}
    put(tmp_path, wqkv)
    with pytest.raises(InputError, match="attention.wqkv.weight, which this llama lacks"):
        surm.import_peft(tmp_path, bases["llama"])


def test_every_kind_is_written_under_a_class_of_its_own():
    named = {kind: of["language"] for kind, of in catalogue.of_shape(decoder.PRESETS["gpt2"]).classes.items()}
    assert named["internlm2"] == "LlamaForCausalLM"  # the form in which it is written
    assert len({*named.values()}) == len(named) - 1
