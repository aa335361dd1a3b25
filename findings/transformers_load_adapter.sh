#!/usr/bin/env bash
# transformers 5.23.0 with peft 0.21.2 (torch 2.13.0): `model.load_adapter` of adapters that PEFT itself saved.
#
# DoRA: the magnitudes are left out. They are saved as `lora_magnitude_vector`, loaded as `lora_magnitude_vector.default`
# and held as `lora_magnitude_vector.default.weight`; a report lists both names, nothing is raised, and the model answers
# with new ones. `peft.PeftModel.from_pretrained` reads the same folder right.
# AdaLoRA, once its schedule has taken components away: RuntimeError of mismatched sizes, as the layers are made with
# `init_r` rows and not cut to the config's rank_pattern. `PeftModel` reads it right, but warns that the rank_pattern's
# keys "did not match any targeted module and were ignored", which they were not.
#
# Seen (the largest difference from the logits of the model that was saved):
#   DoRA     PeftModel 0.0   load_adapter 0.15
#   AdaLoRA  PeftModel 2e-08   load_adapter RuntimeError   warned
#
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 peft==0.21.2 torch==2.13.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys
import warnings

import peft
import torch
import transformers

sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
pixels = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(0))


def base():
    torch.manual_seed(1)
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3)
    return transformers.ViTForImageClassification(config).eval()


def answer(model):
    with torch.no_grad():
        return model.eval()(pixel_values=pixels).logits


def saved(config, name):
    model = peft.get_peft_model(base(), config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
                parameter.grad = torch.randn(parameter.shape, generator=generator)
    if isinstance(config, peft.AdaLoraConfig):
        for step in range(config.total_step):
            model.base_model.update_and_allocate(step)
    model.save_pretrained(name)
    return answer(model)


def difference(load, expected):
    try:
        return float((answer(load()) - expected).abs().max())
    except RuntimeError as error:
        return type(error).__name__


def loaded(name):
    model = base()
    model.load_adapter(name)
    return model


modules = ["q_proj", "v_proj"]
configs = {
    "DoRA": peft.LoraConfig(r=2, use_dora=True, target_modules=modules),
    "AdaLoRA": peft.AdaLoraConfig(init_r=4, target_r=2, tinit=1, tfinal=1, total_step=5, target_modules=modules),
}
found = {}
for name, config in configs.items():
    expected = saved(config, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        by_peft = difference(lambda: peft.PeftModel.from_pretrained(base(), name), expected)
    ignored = any("rank_pattern keys did not match any targeted module" in str(one.message) for one in caught)
    found[name] = by_peft, difference(lambda: loaded(name), expected), ignored
    print(f"{name:8} PeftModel {by_peft}   load_adapter {found[name][1]}" + "   warned" * ignored)
dora, adalora = found["DoRA"], found["AdaLoRA"]
right = dora[0] < 1e-6 and isinstance(dora[1], float) and dora[1] > 0.01
sys.exit(not (right and adalora[0] < 1e-6 and adalora[1] == "RuntimeError" and adalora[2]))
PYTHON
