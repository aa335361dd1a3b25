"""PEFT on decoders of transformers loads what we export and answers as we do, and the other way round."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx

import surm
from surm.exchange import export_merged, export_peft, import_peft
from surm.models import convert, decoder, hf_config, weights
from tests.exchange.models import noisy
from tests.language import exported_runs, small_decoder
from tests.parity import torch_models

TOLERANCE = 1e-5  # of the largest logit
MANY = {"num_hidden_layers": 4, "sliding_window": 4}
SQUARE = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 4}
BASES = {
    "llama": ("Llama", {}),
    "square": ("Llama", SQUARE),
    "tied": ("Qwen2", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 4, "head_dim": 16}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", {**MANY, "head_dim": 16, "query_pre_attn_scalar": 20}),
    "gemma3": ("Gemma3Text", {**MANY, "head_dim": 16, "query_pre_attn_scalar": 20}, "Gemma3ForCausalLM"),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "phi3": ("Phi3", {}),
    "gpt2": ("GPT2", {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16,
                      "tie_word_embeddings": False}, "GPT2LMHeadModel"),
}  # fmt: skip


class Pair:
    """The same base as transformers has it and as we have it, with rows of tokens."""

    def __init__(self, kind, folder):
        word, options, *name = BASES[kind]
        self.folder = folder
        torch_models.decoder(word, *name, **options).save_pretrained(folder)
        self.ours = read(folder)
        self.tokens = np.random.default_rng(1).integers(3, 60, (2, 7)).astype(np.int32)
        self.before = self.answer(self.ours)

    def fresh(self, folder=None):
        """The base in transformers; PEFT changes it in place."""
        return transformers.AutoModelForCausalLM.from_pretrained(folder or self.folder, attn_implementation="eager")

    def theirs(self, model) -> np.ndarray:
        """The logits of a model of transformers or PEFT."""
        with torch.no_grad():
            return model.eval()(torch.tensor(self.tokens).long()).logits.numpy()

    def answer(self, model) -> np.ndarray:
        """The logits of a model of ours."""
        graph, state = nnx.split(model)
        return np.asarray(jax.jit(lambda state, tokens: nnx.merge(graph, state)(tokens))(state, self.tokens))


def read(folder):
    opened = weights.open_weights(str(folder))
    shape = hf_config.config_from_hf(opened.config)
    return convert.restore(nnx.eval_shape(lambda: decoder.Decoder(shape, rngs=nnx.Rngs(0))), opened)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made = {}

    def pair(kind):
        if kind not in made:
            made[kind] = Pair(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return pair


def same(one: np.ndarray, other: np.ndarray) -> None:
    """Two answers are the same."""
    assert np.abs(one - other).max() < TOLERANCE * np.abs(other).max()


def check(one: np.ndarray, other: np.ndarray, base: np.ndarray) -> None:
    """Two answers are the same, and not those of the base."""
    same(one, other)
    assert np.abs(one - base).max() > 0.02 * np.abs(base).max()


ATTENTION = r".*\.attention\.(query|key|value|output)"
OURS = {
    "low_rank": {"options": "rank=3", "scale": 0.5},
    "low_rank dora": {"options": "rank=3", "magnitude": True},
    "low_rank ruled": {"options": "rank=3", "rules": r".*\.0\.attention\.value => rank=1, scale=4; .*\.up => rank=2"},
    "low_rank some": {"options": "rank=3", "targets": r".*\.(query|value|up)"},
    "low_rank beside": {"options": "rank=2", "train": (r".*\.1\.norm1", "norm")},
    "adalora": {"options": "rank=2,initial_rank=3", "scale": 2.0},
    "c3a": {"options": "block_size=8", "scale": 3.0},
    "block_circulant": {"options": "block_size=16", "targets": ATTENTION},
}
EVERY = ("llama", "tied", "mistral", "qwen3", "gemma", "gemma2", "gemma3", "smollm3", "phi3", "gpt2")
CASES = [
    *((kind, "low_rank") for kind in EVERY),
    *(("llama", case) for case in OURS if case != "low_rank"),
    *(("phi3", case) for case in OURS if case != "low_rank"),
    *(("gpt2", case) for case in ("low_rank dora", "low_rank ruled", "low_rank some", "adalora")),
]


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")  # AdaLoRA's, which PEFT follows
@pytest.mark.parametrize(("kind", "case"), CASES)
def test_peft_answers_as_we_do(kind, case, pairs, tmp_path):
    pair = pairs(kind)
    spec = {"family": case.split()[0]} | OURS[case]
    model = noisy(surm.attach(pair.ours, surm.PeftSpec(**spec), nnx.Rngs(1)))
    export_peft(tmp_path, model)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    loaded = peft.PeftModel.from_pretrained(pair.fresh(), tmp_path)
    check(pair.answer(model), pair.theirs(loaded), pair.before)
    check(pair.answer(import_peft(tmp_path, pair.ours)), pair.theirs(loaded), pair.before)


MORE = {
    "square": {"family": "kronecker", "options": "rank=4", "scale": 1.5},
    "tied": {"family": "low_rank", "options": "rank=2", "train": ("embed",)},
    "llama": {"family": "low_rank", "options": "rank=2", "targets": (r".*\.query", "lm_head"), "train": ("embed",)},
    "gpt2": {"family": "low_rank", "options": "rank=2", "targets": r".*\.query", "train": ("lm_head", r".*\.bias")},
}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer is part of the adapter")
@pytest.mark.parametrize("kind", MORE)
def test_peft_answers_as_we_do_with_words_output_and_all_maps_square(kind, pairs, tmp_path):
    pair = pairs(kind)
    model = noisy(surm.attach(pair.ours, surm.PeftSpec(**MORE[kind]), nnx.Rngs(1)))
    export_peft(tmp_path, model)
    loaded = peft.PeftModel.from_pretrained(pair.fresh(), tmp_path)
    check(pair.answer(model), pair.theirs(loaded), pair.before)
    again = import_peft(tmp_path, pair.ours)
    check(pair.answer(again), pair.theirs(loaded), pair.before)
    if kind != "gpt2":  # there, query alone comes back as query, key and value, which are one map
        assert surm.count_parameters(again) == surm.count_parameters(model)


SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
THEIRS = {
    "llama": {
        "lora": peft.LoraConfig(r=2, lora_alpha=8, target_modules=SEVEN, lora_dropout=0.1, task_type="CAUSAL_LM"),
        "lora uneven": peft.LoraConfig(
            r=2, lora_alpha=4, target_modules=SEVEN, rank_pattern={"up_proj": 5, r".*\.1\..*q_proj": 1},
            alpha_pattern={"v_proj": 1}, use_rslora=True, modules_to_save=["lm_head", "embed_tokens"],
        ),
        "lora chosen": peft.LoraConfig(r=1, target_modules=SEVEN, layers_to_transform=[1]),
        "lora of the output": peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]),
        "dora": peft.LoraConfig(r=2, use_dora=True, target_modules=SEVEN),
        "c3a": peft.C3AConfig(block_size=8, target_modules=SEVEN),
        "lokr": peft.LoKrConfig(r=64, alpha=3, target_modules=SEVEN, decompose_factor=4),
        "lokr of factors": peft.LoKrConfig(r=1, alpha=2, target_modules=SEVEN, decompose_both=True, decompose_factor=8),
        "adalora": peft.AdaLoraConfig(init_r=3, target_r=2, lora_alpha=5, total_step=9, target_modules=SEVEN),
    },
    "tied": {
        "lora": peft.LoraConfig(r=2, target_modules=SEVEN, bias="all"),
        "lora, own biases": peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], bias="lora_only"),
        "lora, words": peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
        "lora, words and output": peft.LoraConfig(
            r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
        ),
        "lora of the output": peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]),
    },
    "gemma2": {"lora": peft.LoraConfig(r=2, target_modules=SEVEN)},
    "phi3": {
        "lora": peft.LoraConfig(r=2, target_modules=FUSED),
        "dora": peft.LoraConfig(r=2, target_modules=FUSED, use_dora=True, modules_to_save=["embed_tokens"]),
        "c3a": peft.C3AConfig(block_size=8, target_modules=FUSED),
        "lokr": peft.LoKrConfig(r=64, target_modules=FUSED, decompose_factor=8),
        "saved": peft.LoraConfig(r=2, target_modules=["o_proj"], modules_to_save=["qkv_proj"]),
    },
    "gpt2": {
        "lora": peft.LoraConfig(r=2, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
        "dora": peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True),
        "lora, own biases": peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, bias="lora_only"),
        "lora, saved": peft.LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True,
                                       modules_to_save=["wte", "lm_head", "ln_f", "c_attn"]),
        "adalora": peft.AdaLoraConfig(init_r=3, target_r=2, total_step=9, target_modules=["c_attn", "c_fc"],
                                      fan_in_fan_out=True),
    },
}  # fmt: skip


def randomised(model: peft.PeftModel) -> peft.PeftModel:
    """With other values in all that trains."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = 0.2 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter + noise if "lora_" not in name or "magnitude" in name else noise)
    return model


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True` as embedding layers found")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True` and")
@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, cases in THEIRS.items() for case in cases])
def test_we_answer_as_peft_does(kind, case, pairs, tmp_path):
    pair = pairs(kind)
    model = randomised(peft.get_peft_model(pair.fresh(), THEIRS[kind][case]))
    model.save_pretrained(tmp_path)
    again = import_peft(tmp_path, pair.ours)
    check(pair.answer(again), pair.theirs(model), pair.before)


@pytest.mark.parametrize("gguf", [False, True])
def test_a_merged_run_chats_in_transformers(gguf, tmp_path):
    made = exported_runs.make(tmp_path, gguf=gguf)
    run, chat = surm.load_run(made.run), [{"role": "user", "content": small_decoder.QUESTIONS[0][0]}]
    opened = transformers.AutoTokenizer.from_pretrained(made.merged)
    model = transformers.AutoModelForCausalLM.from_pretrained(made.merged)
    assert (opened.eos_token, model.generation_config.eos_token_id) == ("<|im_end|>", [opened.eos_token_id])
    given = opened.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**given, max_new_tokens=12, do_sample=False)[0, given["input_ids"].shape[1] :]
    expected = run.generate([chat], max_new_tokens=12)[0]
    assert opened.decode(written, skip_special_tokens=True) == expected and expected
    if not gguf:
        alone = peft.AutoPeftModelForCausalLM.from_pretrained(made.peft).eval()
        with torch.no_grad():
            same(alone(given["input_ids"]).logits.numpy(), model(given["input_ids"]).logits.numpy())


@pytest.mark.parametrize("kind", EVERY)
def test_merged_folders_load_whole(kind, pairs, tmp_path):
    pair = pairs(kind)
    model = noisy(surm.attach(pair.ours, surm.PeftSpec(family="toeplitz", scale=0.1), nnx.Rngs(1)))
    export_merged(tmp_path, model)
    auto = transformers.AutoModelForCausalLM
    loaded, found = auto.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert type(loaded) is type(pair.fresh()) and loaded.dtype == torch.float32
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    check(pair.theirs(loaded), pair.answer(model), pair.before)
    same(pair.answer(read(tmp_path)), pair.answer(model))
    assert jnp.all(jnp.isfinite(pair.answer(model)))
