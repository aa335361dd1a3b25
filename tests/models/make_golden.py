"""Writes tests/models/golden: tiny random models as transformers saves them, and what they compute.

    python -m tests.models.make_golden

Needs torch and transformers; test_golden.py then needs neither. Run again only to change the sizes: another
version of torch may draw other weights.
"""

import pathlib

import numpy as np
from safetensors.numpy import save_file

from tests.parity import torch_models

GOLDEN = pathlib.Path(__file__).parent / "golden"
SIZES = {"width": 16, "depth": 2, "heads": 2, "image": 16, "patch": 8}

TEXT_SIZES = {"width": 16, "depth": 2, "heads": 2, "positions": 12}
SMALLEST = {"width": 8, "depth": 1, "heads": 2}
SMALL_DECODER = {
    "vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 12, "max_position_embeddings": 32,
}  # fmt: skip

DECODERS = {
    "llama": ("Llama", "", {**SMALL_DECODER, "rope_parameters": {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500.0,
        "original_max_position_embeddings": 16,
    }}),
    "gemma3": ("Gemma3Text", "Gemma3ForCausalLM", {
        **SMALL_DECODER, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 10, "final_logit_softcapping": 3.0, "head_dim": 6,
    }),
    "gpt2": ("GPT2", "GPT2LMHeadModel", {"vocab_size": 24, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 9}),
}  # fmt: skip


def main() -> None:
    """Writes all models."""
    for name, model in (("vit", torch_models.vit(**SIZES)), ("clip", torch_models.clip_vision(**SIZES))):
        folder = GOLDEN / name
        model.save_pretrained(folder)
        save_file(torch_models.reference(model), folder / "computed.safetensors")
    dinov2 = torch_models.dinov2(**SMALLEST, image=8, patch=4, registers=2, use_swiglu_ffn=True, mlp_ratio=1)
    dinov2.save_pretrained(GOLDEN / "dinov2")
    save_file(torch_models.reference(dinov2, batch=1, size=12), GOLDEN / "dinov2" / "computed.safetensors")
    distilbert = torch_models.distilbert(**SMALLEST, positions=12)
    bert, roberta = torch_models.bert(**TEXT_SIZES), torch_models.roberta(**TEXT_SIZES)
    for name, model in (("bert", bert), ("roberta", roberta), ("distilbert", distilbert)):
        folder = GOLDEN / name
        model.save_pretrained(folder)
        inputs = torch_models.texts(model)
        save_file(inputs | torch_models.text_reference(model, inputs), folder / "computed.safetensors")
    for name, (word, head, options) in DECODERS.items():
        decoder(name, torch_models.decoder(word, head, **options))


def decoder(name: str, model) -> None:
    """Writes a decoder, and what it computes for two texts, of which one is padded at its left."""
    model.save_pretrained(GOLDEN / name)
    (GOLDEN / name / "generation_config.json").unlink()
    tokens = np.random.default_rng(3).integers(3, 24, (2, 8)).astype(np.int32)
    segments = (np.arange(8) >= np.array([[0], [3]])).astype(np.int32)
    inputs = {"tokens": tokens, "segments": segments}
    save_file(inputs | torch_models.language_reference(model, tokens, segments), GOLDEN / name / "computed.safetensors")


if __name__ == "__main__":
    main()
