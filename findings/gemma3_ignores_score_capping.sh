#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0): Gemma 3 takes `attn_logit_softcapping` and never caps its attention scores.
#
# Gemma3TextConfig documents the field and config.json keeps it. Gemma 2 computes cap·tanh(score/cap) with the field of
# the same name. In Gemma 3 a cap of 0.01, which would make every attention nearly uniform, leaves all logits as they
# are, bit for bit, with the eager implementation too. (`final_logit_softcapping` is applied by both.)
#
# Seen: gemma3 equal with and without a cap: True; gemma2: False.
#
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import transformers

SIZES = dict(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=48,
)


def logits(model, config, cap):
    built = model._from_config(config(attn_logit_softcapping=cap, **SIZES), attn_implementation="eager").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.3)
        return built(torch.arange(10)[None]).logits


classes = {
    "gemma3": (transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig),
    "gemma2": (transformers.Gemma2ForCausalLM, transformers.Gemma2Config),
}
equal = {name: torch.equal(logits(*both, None), logits(*both, 0.01)) for name, both in classes.items()}
print("logits equal with and without attn_logit_softcapping=0.01:", equal)
sys.exit(equal != {"gemma3": True, "gemma2": False})
PYTHON
